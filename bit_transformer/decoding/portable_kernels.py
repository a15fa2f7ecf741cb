"""The model's step in one fixed order of operations, so that every machine computes the same bits.

Only IEEE additions, multiplications, divisions and square roots of float32 are used, which every processor rounds the same way; no
fused multiply-add, no reassociation (numba without `fastmath`), no functions of the platform's library. The order of each sum:

    products of matrices    outputs are the vector's lanes; inputs are added one after the other, from 0
    dot products, norms     16 partial sums, of every 16th term, in order; then halves are added: 16, 8, 4, 2, 1
    attention               scores: channels one after the other. Values and weights: slots of the cache, one after the other
    quantized matrices      integers, 32 inputs at a time; then sums of different scales in order (`integer_kernels.py`)

No sum runs over streams, and none depends on the vector's width. So the result is the same for one stream or several, for any number of
threads, with SSE2, AVX2, AVX512 or NEON. It equals the PyTorch path up to rounding.
"""

# Shapes: B streams, L layers, D model width, F feed-forward width, H heads, K head width, S slots, V = 2^P nodes, I inputs, O outputs.
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from bit_transformer.compiled import compiled, inline, part
from bit_transformer.decoding.integer_kernels import Tiles, add_row, product
from bit_transformer.experts.layout import fetch

Array = NDArray[Any]

LANES = 16
EPS = np.float32(1e-4)  # as in `nn.norm`
FRACTION = 2.0**18  # as in `nn.reversible`
STREAM_LIMIT = 2.0**31 / FRACTION / 2

# Rows of `State.place`.
LENGTH, SEEN, SLOT_END = range(3)

# Constants of `exp`.
_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # their sum is ln 2; the first has 9 bits
_LOWEST = np.float32(-87.0)
_ROUND = np.float32(12582912.0)  # 1.5 * 2^23: adding and subtracting it rounds to an integer, ties to even
_ROUND_64 = 6755399441055744.0  # 1.5 * 2^52
_E2, _E3, _E4, _E5, _E6, _E7 = (np.float32(1 / n) for n in (2, 6, 24, 120, 720, 5040))
_ZERO, _ONE = np.float32(0), np.float32(1)

# The constants of `nn.ngram`, without sign.
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FINISH = np.uint64(0xBF58476D1CE4E5B9)
WORD_REACH = 16


class Weights(NamedTuple):
    """A model's parameters, as the kernels read them. Matrices are stored input-major.

    Attributes:
        embed: (V + 1, D). `phase`: (phases, D). `table`: (contexts * rows, D), or of one row.
        query_key_value: (L, D, 3 D). `attend_out`: (L, D, D). `expand`: (L, D, F). `feed_out`: (L, F, D).
        rotary: (positions, K / 2, 2).
        head: (V, D). `bias`: (V).
        gate: (D, P * features). `by_node`: (V, features). Of one element without experts.
        tiles: the four matrices of the blocks, in the order above, if they are quantized; `table_codes`: the n-gram table, if it is. What
            is quantized is not among the others.
    """

    embed: Array
    phase: Array
    table: Array
    query_key_value: Array
    attend_out: Array
    expand: Array
    feed_out: Array
    rotary: Array
    head: Array
    bias: Array
    gate: Array
    by_node: Array
    tiles: tuple[Tiles, Tiles, Tiles, Tiles]
    table_codes: Tiles


class Plan(NamedTuple):
    """Constants of a model.

    Attributes:
        orders: of the n-gram embeddings. `rows`: of each context's table. `word_shift`: as in `NgramEmbedding`; -1: no words.
        window: slots of local attention; 0: the whole window.
        features: experts' features of a bit; 0 without experts. `scale`: the logit that a feature of 1 stands for.
    """

    orders: Array
    rows: int
    word_shift: int
    heads: int
    patch_bits: int
    window: int
    reversible: bool
    features: int
    scale: np.float32


class State(NamedTuple):
    """The state of B streams at the same position, and room to work.

    Attributes:
        place: see the names above: positions in the window, symbols so far, positions so far.
        recent: (B, R): the latest symbols, oldest first. `rows`: (B, contexts), of the n-gram table.
        keys: (B, L, H, K, S). `values`: (B, L, H, S, K).
        hidden: (B, D): the trunk's state that predicts the next patch.
        gates: (B, P * features): weights of the experts' features from the trunk's state.
        x1: (B, D). `grid`: (2, B, D), the streams of a reversible trunk.
        normed: (B, D). `mixed`: (B, 3 D). `read`: (B, D). `inner`: (B, F). `update`: (B, D). `scores`: (S). `every`: (max(S, K)), the
            numbers 0, 1, 2 ...
        used: (I): indices of inputs that are not zero. `sums`: (LANES). `reach`: (1), the largest value of a reversible trunk.
        rounded: int16, (B I): activations as integers, with `corrections` for each 32 of them, and the `scales` of each stream.
    """

    place: Array
    recent: Array
    rows: Array
    keys: Array
    values: Array
    hidden: Array
    gates: Array
    x1: Array
    grid: Array
    normed: Array
    mixed: Array
    read: Array
    inner: Array
    update: Array
    scores: Array
    every: Array
    used: Array
    sums: Array
    reach: Array
    rounded: Array
    corrections: Array
    scales: Array


@intrinsic
def _power_of_two(_context, exponent):
    """2^n in float32 for -126 <= n <= 127, by writing the exponent's bits."""

    def generate(context, builder, signature, arguments):
        i32 = ir.IntType(32)
        bits = builder.shl(builder.add(arguments[0], i32(127)), i32(23))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.int32), generate


@inline
def exp(x):
    """e^x in float32 for x <= 0, to about 1 unit in the last place; e^-87 below."""
    x = _LOWEST if x < _LOWEST else x  # NaN stays NaN
    n = (x * _LOG2_E + _ROUND) - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = r * _E7 + _E6
    p = p * r + _E5
    p = p * r + _E4
    p = p * r + _E3
    p = p * r + _E2
    return ((p * r) * r + r + _ONE) * _power_of_two(np.int32(n))


@inline
def dot(a, b, sums):
    """The sum of products of two vectors."""
    for lane in range(LANES):
        sums[lane] = _ZERO
    whole = len(a) & ~(LANES - 1)
    for i in range(0, whole, LANES):
        for lane in range(LANES):
            sums[lane] += a[i + lane] * b[i + lane]
    for lane in range(len(a) - whole):
        sums[lane] += a[whole + lane] * b[whole + lane]
    return _halved(sums)


@inline
def _halved(sums):
    """The sum of the partial sums."""
    for lane in range(8):
        sums[lane] += sums[lane + 8]
    for lane in range(4):
        sums[lane] += sums[lane + 4]
    return (sums[0] + sums[2]) + (sums[1] + sums[3])


@inline
def _add_eight(y, a, i, weight, j):
    """Add eight rows of a matrix, times a[i[j]] .. a[i[j + 7]], one after the other. The rows are those of the same indices."""
    i0, i1, i2, i3, i4, i5, i6, i7 = i[j], i[j + 1], i[j + 2], i[j + 3], i[j + 4], i[j + 5], i[j + 6], i[j + 7]
    a0, a1, a2, a3, a4, a5, a6, a7 = a[i0], a[i1], a[i2], a[i3], a[i4], a[i5], a[i6], a[i7]
    w0, w1, w2, w3 = weight[i0], weight[i1], weight[i2], weight[i3]
    w4, w5, w6, w7 = weight[i4], weight[i5], weight[i6], weight[i7]
    for o in range(len(y)):
        half = (((y[o] + a0 * w0[o]) + a1 * w1[o]) + a2 * w2[o]) + a3 * w3[o]
        y[o] = (((half + a4 * w4[o]) + a5 * w5[o]) + a6 * w6[o]) + a7 * w7[o]


@inline
def _add_rows(y, a, i, count, weight):
    """y += the sum of a[i] times row i of a matrix, for `count` indices, one after the other."""
    whole = count & ~7
    for j in range(0, whole, 8):
        _add_eight(y, a, i, weight, j)
    for j in range(whole, count):
        factor, row = a[i[j]], weight[i[j]]
        for o in range(len(y)):
            y[o] += factor * row[o]


@compiled
def linear_one(x, weight, y, used):
    """y = x W for one stream. Zero inputs are skipped, which changes no sum."""
    n = 0
    for i in range(len(x)):
        used[n] = i
        n += x[i] != _ZERO
    for o in range(len(y)):
        y[o] = _ZERO
    _add_rows(y, x, used, n, weight)


@compiled
def linear_four(x0, x1, x2, x3, weight, y0, y1, y2, y3, used):
    """The same for four streams, which share each row of weights."""
    n = 0
    for i in range(len(x0)):
        used[n] = i
        n += x0[i] != _ZERO or x1[i] != _ZERO or x2[i] != _ZERO or x3[i] != _ZERO
    for o in range(len(y0)):
        y0[o] = y1[o] = y2[o] = y3[o] = _ZERO
    whole = n & ~1
    for j in range(0, whole, 2):
        i, k = used[j], used[j + 1]
        w, v = weight[i], weight[k]
        a0, a1, a2, a3 = x0[i], x1[i], x2[i], x3[i]
        b0, b1, b2, b3 = x0[k], x1[k], x2[k], x3[k]
        for o in range(len(y0)):
            y0[o] = (y0[o] + a0 * w[o]) + b0 * v[o]
            y1[o] = (y1[o] + a1 * w[o]) + b1 * v[o]
            y2[o] = (y2[o] + a2 * w[o]) + b2 * v[o]
            y3[o] = (y3[o] + a3 * w[o]) + b3 * v[o]
    for j in range(whole, n):
        i = used[j]
        w = weight[i]
        a0, a1, a2, a3 = x0[i], x1[i], x2[i], x3[i]
        for o in range(len(y0)):
            y0[o] += a0 * w[o]
            y1[o] += a1 * w[o]
            y2[o] += a2 * w[o]
            y3[o] += a3 * w[o]


@compiled
def linear_two(x0, x1, weight, y0, y1, used):
    """The same for two streams."""
    n = 0
    for i in range(len(x0)):
        used[n] = i
        n += x0[i] != _ZERO or x1[i] != _ZERO
    for o in range(len(y0)):
        y0[o] = y1[o] = _ZERO
    whole = n & ~3
    for j in range(0, whole, 4):
        i0, i1, i2, i3 = used[j], used[j + 1], used[j + 2], used[j + 3]
        w0, w1, w2, w3 = weight[i0], weight[i1], weight[i2], weight[i3]
        a0, a1, a2, a3 = x0[i0], x0[i1], x0[i2], x0[i3]
        b0, b1, b2, b3 = x1[i0], x1[i1], x1[i2], x1[i3]
        for o in range(len(y0)):
            y0[o] = (((y0[o] + a0 * w0[o]) + a1 * w1[o]) + a2 * w2[o]) + a3 * w3[o]
            y1[o] = (((y1[o] + b0 * w0[o]) + b1 * w1[o]) + b2 * w2[o]) + b3 * w3[o]
    for j in range(whole, n):
        i = used[j]
        w, a, b = weight[i], x0[i], x1[i]
        for o in range(len(y0)):
            y0[o] += a * w[o]
            y1[o] += b * w[o]


@part
def _linear(x, weight, y, used):
    B = len(x)
    whole = B & ~3
    for b in range(0, whole, 4):
        linear_four(x[b], x[b + 1], x[b + 2], x[b + 3], weight, y[b], y[b + 1], y[b + 2], y[b + 3], used)
    if B & 2:
        linear_two(x[whole], x[whole + 1], weight, y[whole], y[whole + 1], used)
        whole += 2
    if B & 1:
        linear_one(x[whole], weight, y[whole], used)


@part
def _map(x, weight, tiles, layer, y, state):
    """y = x W, by a matrix of a layer, quantized or not."""
    if tiles.bits:
        product(x, tiles, layer, y, state.rounded, state.corrections, state.scales)
    else:
        _linear(x, weight[layer], y, state.used)


@inline
def _normalize(x, y, sums):
    """y = x / rms(x)."""
    scale = np.sqrt(np.float32(len(x)) / (dot(x, x, sums) + EPS))
    for d in range(len(x)):
        y[d] = x[d] * scale


# ---- embeddings ----


@inline
def _mixed(x):
    return x ^ (x >> np.uint64(29))


@inline
def _is_letter(c):
    return 97 <= c <= 122 or 65 <= c <= 90 or 128 <= c <= 255


@inline
def _word(recent, at, shift):
    """The hash of the word that ends at an index of the recent symbols, or of what is there instead."""
    c = recent[at] >> shift
    if not _is_letter(c):
        return np.uint64(c + 1) * _FINISH
    value, power = np.uint64(0), np.uint64(1)
    for back in range(WORD_REACH):
        if at - back < 0:
            break
        c = recent[at - back] >> shift
        if not _is_letter(c):
            break
        if 65 <= c <= 90:
            c += 32
        value += np.uint64(c + 1) * power
        power *= _STEP
    return value


@inline
def _word_before(recent, shift):
    """The hash of the word before the current one; 0 if none ends in the last WORD_REACH symbols."""
    at = len(recent) - 1
    first = at
    while at >= 0 and first - at <= WORD_REACH and _is_letter(recent[at] >> shift):
        at -= 1
    while at >= 0 and first - at <= WORD_REACH and not _is_letter(recent[at] >> shift):
        at -= 1
    if at < 0 or first - at > WORD_REACH:
        return np.uint64(0)
    return _word(recent, at, shift)


@inline
def _find_row(plan, weights, state, b, context, value):
    """Find the row of a context by its hash, and fetch it: rows of all streams then come from memory together."""
    row = context * plan.rows + (np.int64((value * _STEP) >> np.uint64(20)) & (plan.rows - 1))
    state.rows[b, context] = row
    width = weights.table.shape[1]
    if weights.table_codes.bits:
        codes, size = weights.table_codes.codes.reshape(-1), weights.table_codes.codes.shape[3]
        for at in range(0, size, 64):
            fetch(codes, row * size + at)
        return
    flat = weights.table.reshape(-1)
    for d in range(0, width, LANES):  # a cache line
        fetch(flat, row * width + d)


@part
def _find_rows(plan, weights, state, symbol, b):
    """Append a stream's symbol, and find the rows of its contexts."""
    recent = state.recent[b]
    last = len(recent) - 1
    for i in range(last):
        recent[i] = recent[i + 1]
    recent[last] = symbol
    value, age = np.uint64(0), 0
    for k in range(len(plan.orders)):
        while age < plan.orders[k]:
            value = _mixed((value * _FINISH) ^ (np.uint64(recent[last - age] + 1) * _STEP))
            age += 1
        _find_row(plan, weights, state, b, k, value)
    if plan.word_shift >= 0:
        word, before = _word(recent, last, plan.word_shift), _word_before(recent, plan.word_shift)
        _find_row(plan, weights, state, b, len(plan.orders), _mixed(word))
        _find_row(plan, weights, state, b, len(plan.orders) + 1, _mixed(_mixed(before * _FINISH) ^ word))


@inline
def _add_row(x, table, row):
    for d in range(len(x)):
        x[d] += table[row, d]


@part
def _embed(plan, weights, state, symbol, b):
    """The input of the first block, for one stream: its sum begins with the symbol's embedding; n-grams are summed apart."""
    x, total = state.x1[b], state.update[b]
    for d in range(len(x)):
        x[d] = weights.embed[symbol, d]
    if len(weights.phase) > 1:
        _add_row(x, weights.phase, state.place[SEEN] % len(weights.phase))
    contexts = len(plan.orders) + (2 if plan.word_shift >= 0 else 0)
    if contexts == 0:
        return
    for d in range(len(total)):
        total[d] = _ZERO
    for k in range(contexts):
        if weights.table_codes.bits:
            add_row(total, weights.table_codes, state.rows[b, k])
        else:
            _add_row(total, weights.table, state.rows[b, k])
    for d in range(len(x)):
        x[d] += total[d]


# ---- blocks ----


@inline
def _rotate(x, begin, rotary):
    """Rotate one head's channels, which start at `begin`."""
    for k in range(len(rotary)):
        even, odd = x[begin + 2 * k], x[begin + 2 * k + 1]
        cos, sin = rotary[k, 0], rotary[k, 1]
        x[begin + 2 * k] = even * cos - odd * sin
        x[begin + 2 * k + 1] = even * sin + odd * cos


@part
def _attend_one(heads, mixed, rotary, keys, values, slot, used, scores, every, sums, out):
    """Attention of one stream's new position: its key and value are stored in `slot`, and the first `used` slots are read."""
    D = len(out)
    K = D // heads
    scale = np.float32(1) / np.sqrt(np.float32(K))
    padded = (used + LANES - 1) // LANES * LANES
    for h in range(heads):
        _rotate(mixed, h * K, rotary)
        _rotate(mixed, D + h * K, rotary)
        key, value = keys[h], values[h]
        for k in range(K):
            key[k, slot] = mixed[D + h * K + k]
            value[slot, k] = mixed[2 * D + h * K + k]
        for s in range(padded):
            scores[s] = _ZERO
        for k in range(K):
            mixed[h * K + k] *= scale
        _add_rows(scores[:used], mixed[h * K : (h + 1) * K], every, K, key)
        for s in range(used, padded):
            scores[s] = scores[0]
        for lane in range(LANES):
            sums[lane] = scores[lane]
        for s in range(LANES, padded, LANES):
            for lane in range(LANES):
                if scores[s + lane] > sums[lane]:
                    sums[lane] = scores[s + lane]
        top = sums[0]
        for lane in range(1, LANES):
            top = max(top, sums[lane])
        for s in range(used):
            scores[s] = exp(scores[s] - top)
        for s in range(used, padded):
            scores[s] = _ZERO
        for lane in range(LANES):
            sums[lane] = _ZERO
        for s in range(0, padded, LANES):
            for lane in range(LANES):
                sums[lane] += scores[s + lane]
        total = _halved(sums)
        read = out[h * K : (h + 1) * K]
        for k in range(K):
            read[k] = _ZERO
        _add_rows(read, scores, every, used, value)
        for k in range(K):
            read[k] = read[k] / total


@part
def _attend(plan, weights, state, layer, x):
    """The update of the attention branch for all streams, to `state.update`."""
    length, slots = state.place[LENGTH], state.keys.shape[4]
    slot = state.place[SLOT_END] % slots if plan.window else length
    used = min(state.place[SLOT_END] + 1, slots) if plan.window else length + 1
    for b in range(len(x)):
        _normalize(x[b], state.normed[b], state.sums)
    _map(state.normed, weights.query_key_value, weights.tiles[0], layer, state.mixed, state)
    for b in range(len(x)):
        _attend_one(
            plan.heads,
            state.mixed[b],
            weights.rotary[length],
            state.keys[b, layer],
            state.values[b, layer],
            slot,
            used,
            state.scores,
            state.every,
            state.sums,
            state.read[b],
        )
    _map(state.read, weights.attend_out, weights.tiles[1], layer, state.update, state)


@part
def _feed_forward(weights, state, layer, x):
    """The update of the feed-forward branch for all streams, to `state.update`."""
    for b in range(len(x)):
        _normalize(x[b], state.normed[b], state.sums)
    _map(state.normed, weights.expand, weights.tiles[2], layer, state.inner, state)
    for b in range(len(x)):
        inner = state.inner[b]
        for f in range(len(inner)):
            r = _ZERO if inner[f] < _ZERO else inner[f]
            inner[f] = r * r
    _map(state.inner, weights.feed_out, weights.tiles[3], layer, state.update, state)


@inline
def _add_to_grid(grid, x, update, reach):
    """Add an update, rounded to the grid, to a stream of integers, and convert it to numbers. Values beyond the limit are left out."""
    top = reach[0]
    for d in range(len(x)):
        u = update[d]
        if not abs(u) < STREAM_LIMIT:
            top = max(top, np.float64(abs(u))) if u == u else np.float64(np.inf)
            continue
        grid[d] += np.int32((np.float64(u) * FRACTION + _ROUND_64) - _ROUND_64)
        x[d] = np.float32(grid[d]) * np.float32(1 / FRACTION)
        top = max(top, np.float64(abs(x[d])))
    reach[0] = top


@compiled
def step(plan, weights, state, symbols):
    """Advance B streams by one symbol each, and compute the states that predict what follows."""
    x, grid, update, hidden = state.x1, state.grid, state.update, state.hidden
    B, L = len(x), len(state.keys[0])
    for b in range(B):
        _find_rows(plan, weights, state, np.int64(symbols[b]), b)
    for b in range(B):
        _embed(plan, weights, state, np.int64(symbols[b]), b)
    if plan.reversible:
        for b in range(B):
            for d in range(x.shape[1]):
                grid[0, b, d] = 0
                update[b, d] = x[b, d]
            _add_to_grid(grid[0, b], x[b], update[b], state.reach)
            for d in range(x.shape[1]):
                grid[1, b, d] = grid[0, b, d]
                hidden[b, d] = x[b, d]
        for layer in range(L):  # x holds the first stream, hidden the second
            _attend(plan, weights, state, layer, hidden)
            for b in range(B):
                _add_to_grid(grid[0, b], x[b], update[b], state.reach)
            _feed_forward(weights, state, layer, x)
            for b in range(B):
                _add_to_grid(grid[1, b], hidden[b], update[b], state.reach)
        for b in range(B):
            for d in range(x.shape[1]):
                x[b, d] += hidden[b, d]
    else:
        for layer in range(L):
            _attend(plan, weights, state, layer, x)
            for b in range(B):
                for d in range(x.shape[1]):
                    x[b, d] += update[b, d]
            _feed_forward(weights, state, layer, x)
            for b in range(B):
                for d in range(x.shape[1]):
                    x[b, d] += update[b, d]
    for b in range(B):
        _normalize(x[b], hidden[b], state.sums)
    if plan.features:
        _linear(hidden, weights.gate, state.gates, state.used)
    state.place[LENGTH] += 1
    state.place[SEEN] += 1
    state.place[SLOT_END] += 1


@compiled
def prefill(plan, weights, state, symbols, states):
    """Advance B streams by N symbols, (N, B); the state after each is written to (N, B, D)."""
    for n in range(len(symbols)):
        step(plan, weights, state, symbols[n])
        for b in range(symbols.shape[1]):
            for d in range(states.shape[2]):
                states[n, b, d] = state.hidden[b, d]


@compiled
def forget(plan, weights, state, count):
    """Drop the `count` oldest positions after the first; see `nn.cache`."""
    keys, values, place = state.keys, state.values, state.place
    B, L, H, K, S = keys.shape
    rotary = weights.rotary[count]
    kept = place[LENGTH] - count
    begin, end, back = (0, S, 0) if plan.window else (1, kept, count)
    for b in range(B):
        for layer in range(L):
            for h in range(H):
                key, value = keys[b, layer, h], values[b, layer, h]
                for k in range(K // 2):
                    cos, sin = rotary[k, 0], -rotary[k, 1]
                    for s in range(begin, end):
                        even, odd = key[2 * k, s + back], key[2 * k + 1, s + back]
                        key[2 * k, s] = even * cos - odd * sin
                        key[2 * k + 1, s] = even * sin + odd * cos
                if not plan.window:
                    for s in range(begin, end):
                        for k in range(K):
                            value[s, k] = value[s + back, k]
    place[LENGTH] = kept


# ---- logits ----


@inline
def node_logit(plan, weights, state, b, node, depth, features):
    """The logit of the next bit of a stream at a node of its patch; `features`: the experts', at this node."""
    z = dot(state.hidden[b], weights.head[node], state.sums) + weights.bias[node]
    if plan.features:
        begin, mixed = depth * plan.features, _ZERO
        for f in range(plan.features):
            weight = state.gates[b, begin + f] + weights.by_node[node, f]
            mixed += weight * np.float32(features[f])
        z += mixed * plan.scale
    return z


@compiled
def node_logits(plan, weights, state, features, logits):
    """Logits at all nodes of the next patch of every stream: (B, V). `features`: int8, (B, V, F); of one element without experts."""
    for b in range(len(logits)):
        depth = 0
        logits[b, 0] = weights.bias[0]
        for node in range(1, logits.shape[1]):
            if node >> (depth + 1):
                depth += 1
            logits[b, node] = node_logit(plan, weights, state, b, node, depth, features[b, node])
