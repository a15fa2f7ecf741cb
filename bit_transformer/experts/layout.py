"""What the bank's loops share: its tables, the state of a stream, constants, hashes.

`light` and `rich` banks have the same tables of bit histories; what only a rich bank has is empty in a light one.
"""

# Shapes: K experts, M inputs of a mixer (padded), S mixers, U bits of a unit.
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from bit_transformer.compiled import inline

Table = NDArray[Any]

# For loops. numba takes a literal False for a type of its own, and compiles all that is called with it once more.
NO = np.bool_(False)

LOGIT_ONE = 256  # logits are in 1/256 ...
LOGIT_MAX = 3071  # ... and clipped to +-12
FEATURE_ONE = 12  # features are in 1/12
PAGE = 255  # buckets
BUCKET = 16  # bytes: a check, then the histories of the 15 nodes of up to four bits
MATCH_MAX = 31
MAP_STEP = 128  # an adaptive map has a knot every 1/2 ...
MAP_KNOTS = 32  # ... from -7.75 to 7.75: one cache line
MAP_REACH = MAP_STEP * (MAP_KNOTS - 1) // 2

# Rows of `Stream.place`.
PLACE, WORD, WORD_1, WORD_2, MATCH, LENGTH, SHIFTED = range(7)

# Kinds of context, and their arguments.
ORDER, BITS, TEXT, SPARSE, TERMS = range(5)  # units back; bits back; 0, 1, 2 as below; distances; numbers of `terms.py`
TEXT_WORD, TEXT_PAIR, TEXT_SKIP = range(3)  # the current word; with the previous word; with the word before that
MAX_ARGUMENTS = 5

# An entry of `Tables.runs`: what followed a context. From the lowest bit: the latest unit (9 bits); the latest other one plus 1, or 0
# (10); how often in a row the latest came (5); a check of the context (8).
RUN_OTHER, RUN_COUNT, RUN_CHECK = 9, 19, 24
RUN_MAX = 31
RUN_ROWS = 96  # 0: nothing; 2 to 63: the latest unit agrees, by count and by whether there is another; 64 to 95: only the other agrees
RICH_UNITS = (8, 9)  # bits that a unit of a rich bank may have
ABOVE_REACH = 1024  # units that a rich bank looks back for the line above; a power of two

DIRECT = 6  # contexts of a rich bank that also have probabilities of their own, not only histories
INPUTS = 4  # of a rich bank's mixers, for each context
OTHERS = 6 + 2 * DIRECT  # inputs of other kinds
MIXERS = 10
HEARD = 28  # of its contexts, the first ones are features for a model
REFINED = 3  # final maps of a rich bank ...
REFINED_ROWS = 1 << 16  # ... with so many rows each


class Tables(NamedTuple):
    """Everything that a bank has learned. K experts, M weights of a mixer (padded), U bits of a unit.

    Attributes:
        slots: (K * buckets + 1) * 16 bytes, flat: check, histories; the last bucket is for unknown contexts.
        chance: (K, 256): probability of a one after each history, 22 bits, and how often it was used, 10 bits.
        first: (2^U): probability of a one at each node, without context; 16 bits.
        match: (MATCH_MAX + 1): probability that a match of a given length continues; 16 bits.
        weights: (sets, M): of the three mixers, one set after the other.
        last: (2^U, 4): weights of the mixers' own logits.
        maps: (2, rows, MAP_KNOTS): final adaptive maps, by previous unit and node, and by a hash of two units and node.
        history: the latest units, a ring buffer; `heads`: by a hash of some units, the position after their last occurrence.
        learned: total number of units.

    Only of a rich bank:

    Attributes:
        runs: (K * entries), flat: what followed each context, see above.
        run_logits: (K, RUN_ROWS): the logit that the unit which followed comes again.
        direct: (DIRECT * lines * 16), flat: probability of a one at the 15 nodes of up to four bits, as `chance`, of a few contexts.
        mixing: float32, flat: weights of the mixers, rows of M. `visits`: how often each row was used.
        blend: float32, (2^U + 256, 16): weights of the mixers' own logits, by node and by previous unit.
        refined: float32, (REFINED, REFINED_ROWS, MAP_KNOTS): final adaptive maps.
        far_heads: as `heads`, for longer matches. `far`: (64), probability that one continues.
        followed: (3 * 2^16), flat: the two units that followed a token (word or gap), the latest unit, the latest two, the last times.
        seen: (2^16): where a word was seen last, in units, times 2^16, with a check. `next_words`: (3 * 2^16), flat: the word after a
            word, the one that was before, and the word after two words.
    """

    slots: Table
    chance: Table
    first: Table
    match: Table
    weights: Table
    last: Table
    maps: Table
    history: Table
    heads: Table
    learned: Table
    runs: Table
    run_logits: Table
    direct: Table
    mixing: Table
    visits: Table
    blend: Table
    refined: Table
    far_heads: Table
    far: Table
    followed: Table
    seen: Table
    next_words: Table


class Stream(NamedTuple):
    """The state of one stream of units.

    Attributes:
        place: see the names above.
        recent: the latest units, a ring buffer.
        hashes: (K): of the contexts of the current unit.
        buckets: (K): positions of their histories, for the current up to four bits.
        inputs: (M): inputs of the mixers; `known`: histories in use.

    Only of a rich bank:

    Attributes:
        text: see the names in `terms.py`. `terms`: what contexts are made of.
        entries: (K): what followed the current contexts. `run_rows`: (K), of their logits for the current bit.
        lines: (DIRECT): where `Tables.direct` has the current up to four bits.
        x: float32, (M): inputs of the mixers. `rows`: (MIXERS), their rows. `outputs`: (16), their logits.
        made: float32, (3): what learning needs of a prediction; `at`: (8), see the names in `rich.py`.

    Only of a bank of numbers, all float64 (C channels, R regressions of up to N neighbours, P predictions):

    Attributes:
        moments: (C, R, N + 1, N), lower triangle: sums of products of two neighbours; last row: of a neighbour and the number.
        weights: (C, R, N). `spreads`: (C, P), mean absolute errors. `errors`: (ring, P), those of the latest numbers.
        near: (N + 1): the neighbours, less the number before in the channel; that number. `guesses`: (P), the predictions.
        left: (P): the predictions in units of the current byte, less what is known of the number; `wide`: (P, 2), scales.
        factor: (N, N): room.
    """

    place: Table
    recent: Table
    hashes: Table
    buckets: Table
    inputs: Table
    known: Table
    text: Table
    terms: Table
    entries: Table
    run_rows: Table
    lines: Table
    x: Table
    rows: Table
    outputs: Table
    made: Table
    at: Table
    moments: Table
    weights: Table
    spreads: Table
    errors: Table
    near: Table
    guesses: Table
    left: Table
    wide: Table
    factor: Table


class Shape(NamedTuple):
    """Constants. `spec` is (K, 1 + MAX_ARGUMENTS): a kind and its arguments. `rich`: whether the bank is a rich one. `width`: of rows, or 0. `heard`: how many
    of its first contexts are features. `direct`: (DIRECT), which have probabilities of their own. `instructions`: whether contexts are of machine
    code. `markup`: whether some are of XML, JSON and tables. `numbers`: (5), what the data's numbers are, see `numbers.py`, or (0); `reach`: (N), the distances
    to their neighbours."""

    spec: Table
    unit_bits: int
    bucket_bits: int
    match_order: int
    text_shift: int
    heads_shift: int
    rich: bool
    width: int
    heard: int
    direct: Table
    instructions: bool
    markup: bool
    numbers: Table
    reach: Table


class Curves(NamedTuple):
    """Look-up tables: `stretch` (4096, by the 12 high bits of a probability), `squash` (6144), `after` (256, 2), `share` (1024, rate by use). In
    float32, for rich banks: `logit` as `stretch`, `probability` as `squash`, `sure` (256): 1 for histories of one kind of bit, else 0."""

    stretch: Table
    squash: Table
    after: Table
    share: Table
    logit: Table
    probability: Table
    sure: Table


@intrinsic
def fetch(_context, array, index):
    """Prefetch the cache line of a flat array's element: a pass would spend most of its time waiting for memory."""

    def generate(context, builder, signature, arguments):
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        address = builder.bitcast(builder.gep(view.data, [arguments[1]]), ir.IntType(8).as_pointer())
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), i32, i32, i32])
        name = "llvm.prefetch.p0i8"
        call = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        builder.call(call, [address, i32(1), i32(3), i32(1)])  # to write, keep it near, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@inline
def mixed(x):
    """A hash of a number: high bits depend on all of it."""
    x = np.uint64(x) * np.uint64(0x9E3779B97F4A7C15)
    return x ^ (x >> np.uint64(29))


@inline
def age(stream, distance):
    """The unit `distance` back, plus one; 0 before the stream's first, and for what is not known yet."""
    n = stream.place[PLACE]
    if distance > n or distance == 0:
        return np.uint64(0)
    return np.uint64(stream.recent[(n - distance) & (len(stream.recent) - 1)]) + np.uint64(1)


@inline
def repeated(history, recent, found, oldest, n, most):
    """How many units before `found` in the history, back to `oldest`, equal the last ones of a stream that has read n; at most `most`."""
    ring, near, length = len(history) - 1, len(recent) - 1, 0
    while (
        length < most
        and found - 1 - length >= oldest
        and length < n
        and history[(found - 1 - length) & ring] == recent[(n - 1 - length) & near]
    ):
        length += 1
    return length
