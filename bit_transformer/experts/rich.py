"""What a rich bank does with its contexts: several inputs of each, ten mixers, a last stage. In float32, in one order of operations.

For each context there are four inputs of the mixers: the logit of its history's probability; that probability minus 1/2, which grows slower; the
logit once more where the history holds bits of one kind only; and the logit that the unit comes again which followed this context the last time
(a run), or else the one before it. Two matches, the order-0 probability and a constant are the others.

Each mixer takes its weights from a row that something small selects. Its rate falls with the use of the row. The mixers' logits are blended by two
sets of weights (by the bits of the unit so far, and by the unit before), and three adaptive maps correct the result.

Every number is made by IEEE additions, multiplications, divisions and square roots of float32, written in the order in which they are done, or
looked up; so all machines compute the same bits.

Sources: Mahoney 2005 and 2013, as in `kernels.py`; that a determined history is worth an input of its own, and a run another, is from PAQ8.
"""

from __future__ import annotations

import numpy as np

from bit_transformer.compiled import inline, part
from bit_transformer.experts.instructions import note_instruction
from bit_transformer.experts.layout import (
    DIRECT,
    INPUTS,
    LENGTH,
    MAP_KNOTS,
    MATCH,
    MATCH_MAX,
    MIXERS,
    PLACE,
    REFINED,
    REFINED_ROWS,
    RUN_CHECK,
    RUN_COUNT,
    RUN_MAX,
    RUN_OTHER,
    age,
    fetch,
    mixed,
    repeated,
)
from bit_transformer.experts.markup import note_markup
from bit_transformer.experts.numbers import note_number, write_number_inputs
from bit_transformer.experts.terms import Term, Text, joined, note_unit
from bit_transformer.experts.vectors import LANES, add_scaled, dot

FAR_ORDER = 12  # units of the shortest far match
FAR_MAX = 63
OUTPUTS = 16  # the mixers' logits, padded

# Rows of weights of each mixer, by what selects them.
SETS = (512, 512, 256, 256, 512, 2048, 256, 64, 384, 4608)
ROWS_BEGIN = tuple(sum(SETS[:i]) for i in range(MIXERS))
MIXER_ROWS = sum(SETS)

_BEST, _MOST, _FALL = (
    np.float32(0.0003),
    np.float32(0.005),
    np.float32(0.1),
)  # rate of a row: 0.1 / sqrt(uses), within these
_BLEND = np.float32(0.0008)
_REFINE = np.float32(0.02)
_RUN_RATE = np.float32(0.02)
DIRECT_MAX = 400  # uses after which a direct probability does not slow down further
_EDGE = np.float32(11.99)
_REACH = np.float32(7.7499)
_ZERO, _HALF, _ONE, _TWO, _TWELVE, _STEPS = (np.float32(x) for x in (0, 0.5, 1, 2, 12, 256))
_THIRD, _MIDDLE, _WORTH = np.float32(1 / 3), np.float32(15.5), np.float32(0.4)
_MOST_FEATURE = np.float32(127)
_LEAST = np.float32(2.0**-20)
_PER_22, _PER_16 = np.float32(2.0**-22), np.float32(2.0**-16)
_LIFT = np.float32(4)  # of a probability minus 1/2, as an input

# Places in `Stream.made`, and in `Stream.at`.
P_NODE, P_BEFORE, PART = range(3)
LOW, REFINED_0, REFINED_1, REFINED_2, BIT, FAR_BIT, FOUND, FAR_FOUND = range(8)


@inline
def _clipped(z):
    return min(max(z, -_EDGE), _EDGE)


@inline
def _chance(curves, z):
    """P(bit = 1) from a clipped logit."""
    return curves.probability[np.int64((z + _TWELVE) * _STEPS)]


@inline
def _run_place(shape, tables, h, k):
    """Where `Tables.runs` has a context, and its check there."""
    entries = len(tables.runs) // len(shape.spec)
    return k * entries + (np.int64(h >> np.uint64(32)) & (entries - 1)), np.int64(h >> np.uint64(24)) & 255


@inline
def far_slot(tables, units, n):
    """Where `Tables.far_heads` has the units before place n of a ring."""
    value = np.int64(0)
    for a in range(1, FAR_ORDER + 1):
        value = joined(value, units[(n - a) & (len(units) - 1)])
    return np.int64(np.uint64(value) >> np.uint64(20)) & (len(tables.far_heads) - 1)


@part
def begin_unit(shape, tables, stream, learn):
    """After contexts were hashed: find what followed them, and the far match."""
    for k in range(len(shape.spec)):
        fetch(tables.runs, _run_place(shape, tables, stream.hashes[k], k)[0])
    text, recent, history, n = stream.text, stream.recent, tables.history, stream.place[PLACE]
    learned = tables.learned[0]
    if n >= FAR_ORDER:
        slot = far_slot(tables, recent, n)
        if text[Text.FAR_LENGTH] == 0:
            found = np.int64(tables.far_heads[slot])
            oldest = max(np.int64(0), learned - (len(history) - 1))
            if found > oldest:
                length = repeated(history, recent, found, oldest, n, FAR_MAX)
                if length >= FAR_ORDER:
                    text[Text.FAR_LENGTH], text[Text.FAR_MATCH] = length, found
        if learn:
            tables.far_heads[slot] = learned
    if text[Text.FAR_LENGTH] and text[Text.FAR_MATCH] >= learned:
        text[Text.FAR_LENGTH] = 0
    for k in range(len(shape.spec)):
        place, check = _run_place(shape, tables, stream.hashes[k], k)
        entry = np.int64(tables.runs[place])
        stream.entries[k] = entry if entry >> RUN_CHECK == check else 0


@part
def find_lines(shape, tables, stream, root):
    """Find the probabilities of the next up to four bits, of the contexts that have some."""
    lines = len(tables.direct) // (DIRECT * LANES)
    for d in range(DIRECT):
        h = mixed(stream.hashes[shape.direct[d]] ^ np.uint64(root) * np.uint64(0xE7037ED1A0B428DB))
        stream.lines[d] = (d * lines + (np.int64(h >> np.uint64(20)) & (lines - 1))) * LANES
        fetch(tables.direct, stream.lines[d])


@inline
def _expected(shape, tables, at, length, node, depth):
    """The next bit of a match: 0 or 1, or -1 where there is none or it disagrees with the unit so far."""
    if length == 0:
        return np.int64(-1)
    symbol = np.int64(tables.history[at & (len(tables.history) - 1)]) | (1 << shape.unit_bits)
    if symbol >> (shape.unit_bits - depth) != node:
        return np.int64(-1)
    return (symbol >> (shape.unit_bits - 1 - depth)) & 1


@inline
def _write_match(curves, x, j, entry, bit):
    """Two inputs of a match whose bit is right with a probability in 1/65536."""
    sign = _ZERO if bit < 0 else _ONE if bit else -_ONE
    x[j] = sign * curves.logit[entry >> 4]
    x[j + 1] = sign * (np.float32(entry) * _PER_16 - _HALF) * _TWO


@part
def predict_bit(shape, tables, stream, curves, node, depth):
    """Predict the bit at a node. Returns the probability of a one in 1/65536."""
    U, K, x, known, terms = shape.unit_bits, len(shape.spec), stream.x, stream.known, stream.terms
    slots, chance, entries, run_rows = tables.slots, tables.chance, stream.entries, stream.run_rows
    buckets, at, made, outputs, rows = stream.buckets, stream.at, stream.made, stream.outputs, stream.rows
    M = len(x)
    inside = depth & 3
    slot = (1 << inside) | (node & ((1 << inside) - 1))
    unit_mask, other_mask = (1 << RUN_OTHER) - 1, (1 << (RUN_COUNT - RUN_OTHER)) - 1
    informed, longest = np.int64(0), np.int64(0)
    for k in range(K):
        s = np.int64(slots[buckets[k] + slot])
        known[k] = s
        p = np.int64(chance[k, s] >> 10)
        z = curves.logit[p >> 10]
        x[k] = z
        x[K + k] = (np.float32(p) * _PER_22 - _HALF) * _LIFT
        x[2 * K + k] = z * curves.sure[s]
        informed += s != 0
        longest = np.int64(k + 1) if s != 0 and k < 8 else longest
        entry = entries[k]
        count = (entry >> RUN_COUNT) & RUN_MAX
        latest, other = (entry & unit_mask) | (1 << U), ((entry >> RUN_OTHER) & other_mask) + (1 << U) - 1
        first = count != 0 and latest >> (U - depth) == node
        second = other >= 1 << U and other >> (U - depth) == node
        row = count * 2 + np.int64(other >= 1 << U) if first else 64 + count if second else np.int64(0)
        unit = latest if first else other
        z = tables.run_logits[k, row]
        x[3 * K + k] = z if (unit >> (U - 1 - depth)) & 1 else -z
        run_rows[k] = row if (unit >> (U - 1 - depth)) & 1 or row == 0 else -row
    o = INPUTS * K
    length, far_length = min(stream.place[LENGTH], MATCH_MAX), min(stream.text[Text.FAR_LENGTH], FAR_MAX)
    bit = _expected(shape, tables, stream.place[MATCH], length, node, depth)
    far_bit = _expected(shape, tables, stream.text[Text.FAR_MATCH], far_length, node, depth)
    length, far_length = length if bit >= 0 else np.int64(0), far_length if far_bit >= 0 else np.int64(0)
    _write_match(curves, x, o, np.int64(tables.match[length]), bit)
    _write_match(curves, x, o + 2, np.int64(tables.far[far_length]), far_bit)
    x[o + 4] = curves.logit[tables.first[node] >> 4]
    x[o + 5] = _WORTH
    for d in range(DIRECT):
        p = np.int64(tables.direct[stream.lines[d] + slot] >> 10)
        x[o + 6 + 2 * d] = curves.logit[p >> 10]
        x[o + 7 + 2 * d] = (np.float32(p) * _PER_22 - _HALF) * _LIFT
    before = terms[Term.UNIT_1] - 1 if terms[Term.UNIT_1] else np.int64(0)
    word_length, classes = min(terms[Term.LENGTH], 15), terms[Term.CLASSES_2]
    rows[0] = node
    rows[1] = before
    rows[2] = min(length, 15) * 16 + min(informed * 16 // (K + 1), 15)
    rows[3] = word_length * 16 + (classes & 15)
    rows[4] = terms[Term.UNIT_2] & 511
    rows[5] = classes * 8 + (depth & 7)
    rows[6] = min(terms[Term.COLUMN], 63) * 4 + min(depth, 3)
    rows[7] = terms[Term.SENTENCE] * 8 + terms[Term.CAPITALS]
    rows[8] = (word_length * 3 + terms[Term.COMPLETE]) * 8 + (depth & 7)
    rows[9] = longest * 512 + node
    token = terms[Term.TOKEN]
    if shape.instructions:  # instructions are the words of machine code
        token = terms[Term.INSTRUCTION]
        rows[3] = terms[Term.CODE_AT] * 16 + terms[Term.CODE_BYTES]
        rows[5] = (terms[Term.OPCODE] & 255) * 8 + (depth & 7)
        rows[8] = (terms[Term.CODE_AT] * 3 + terms[Term.COMPLETE]) * 8 + (depth & 7)
    if len(shape.numbers):
        write_number_inputs(shape, stream, curves, node, depth, x, o + 6 + 2 * DIRECT)
        place_in = terms[Term.NUMBER_BYTE]
        rows[3] = terms[Term.SPREAD] * 8 + (depth & 7)
        rows[5] = (terms[Term.EXPECTED_1] & 255) * 8 + (depth & 7)
        rows[6] = terms[Term.SPREAD_LONG] * 8 + (depth & 7)
        rows[7] = (terms[Term.CHANNEL] & 1) * 32 + place_in * 8 + (depth & 7)
        rows[8] = (min(terms[Term.DISAGREED], 11) * 4 + place_in) * 8 + (depth & 7)
        token = terms[Term.EXPECTED_PART] * 4 + place_in
    for m in range(MIXERS):
        rows[m] += ROWS_BEGIN[m]
        outputs[m] = _clipped(dot(tables.mixing, rows[m] * M, x, M))
    blend = tables.blend
    z_node = _clipped(dot(blend, node * OUTPUTS, outputs, OUTPUTS))
    z_before = _clipped(dot(blend, ((1 << U) + before) * OUTPUTS, outputs, OUTPUTS))
    made[P_NODE], made[P_BEFORE] = _chance(curves, z_node), _chance(curves, z_before)
    z = (z_node + z_before) * _HALF
    place = min(max(z, -_REACH), _REACH) * _TWO + _MIDDLE
    low = np.int64(place)
    part = place - np.float32(low)
    two = np.int64(mixed(np.uint64(terms[Term.UNIT_1] * 4099 + terms[Term.UNIT_2])) >> np.uint64(30))
    token ^= node * 0x5851F42D4C957F2D
    at[LOW], made[PART] = low, part
    at[REFINED_0] = ((before << U | node) & (REFINED_ROWS - 1)) * MAP_KNOTS
    at[REFINED_1] = (((two ^ node * 40503) & (REFINED_ROWS - 1)) + REFINED_ROWS) * MAP_KNOTS
    at[REFINED_2] = (
        (np.int64(mixed(np.uint64(token)) >> np.uint64(40)) & (REFINED_ROWS - 1)) + 2 * REFINED_ROWS
    ) * MAP_KNOTS
    at[BIT], at[FAR_BIT], at[FOUND], at[FAR_FOUND] = bit, far_bit, length, far_length
    total = _ZERO
    for r in range(REFINED):
        a = at[REFINED_0 + r] + low
        total += tables.refined[a] * (_ONE - part) + tables.refined[a + 1] * part
    final = _HALF * _chance(curves, z) + _HALF * total * _THIRD
    one = min(max(np.int64(final * np.float32(65536)), 1), 65535)
    return np.int64(one)


@inline
def _feature(z):
    """A logit in 1/12, as an integer of at most 127."""
    return np.int8(min(max(np.floor(z * _TWELVE + _HALF), -_MOST_FEATURE), _MOST_FEATURE))


@inline
def write_features(shape, stream, curves, one, features, i, j):
    """The features of the bit that was predicted last, in row (i, j): the first contexts, both matches, the mixture of all."""
    x, heard, o = stream.x, shape.heard, INPUTS * len(shape.spec)
    for k in range(heard):
        features[i, j, k] = _feature(x[k])
    features[i, j, heard] = _feature(x[o])
    features[i, j, heard + 1] = _feature(x[o + 2])
    features[i, j, heard + 2] = _feature(curves.logit[one >> 4])


@inline
def _toward(old, right, shift):
    """A probability in 1/65536 after one more case."""
    return old + (((65535 if right else 0) - old) >> shift)


@inline
def _inside(p):
    """A probability that is neither 0 nor 1, nor so small that processors may treat it differently."""
    return min(max(p, _LEAST), _ONE - _LEAST)


@inline
def _moved(entry, share, y, most):
    """A probability of 22 bits and a count of 10, after one more bit."""
    p, n = entry >> 10, entry & 1023
    p += (((y << 22) - y - p) * share[n]) >> 16
    return p << 10 | min(n + 1, most)


@part
def learn_bit(shape, tables, stream, curves, node, depth, y):
    """Update all tables with the bit at a node, after `predict_bit` of it."""
    U, K, x, M = shape.unit_bits, len(shape.spec), stream.x, len(stream.x)
    slots, chance, buckets, known, at, made = (
        tables.slots,
        tables.chance,
        stream.buckets,
        stream.known,
        stream.at,
        stream.made,
    )
    outputs, rows, after, share = stream.outputs, stream.rows, curves.after, curves.share
    goal = np.float32(y)
    for m in range(MIXERS):
        uses = tables.visits[rows[m]] + _ONE
        tables.visits[rows[m]] = uses
        rate = max(_BEST, min(_MOST, _FALL / np.sqrt(uses)))
        error = (goal - _chance(curves, outputs[m])) * rate
        add_scaled(tables.mixing, rows[m] * M, x, M, error)
    before = stream.terms[Term.UNIT_1] - 1 if stream.terms[Term.UNIT_1] else np.int64(0)
    add_scaled(tables.blend, node * OUTPUTS, outputs, OUTPUTS, (goal - made[P_NODE]) * _BLEND)
    add_scaled(tables.blend, ((1 << U) + before) * OUTPUTS, outputs, OUTPUTS, (goal - made[P_BEFORE]) * _BLEND)
    part, refined = made[PART], tables.refined
    for r in range(REFINED):
        a = at[REFINED_0 + r] + at[LOW]
        refined[a] = _inside(refined[a] + (goal - refined[a]) * (_ONE - part) * _REFINE)
        refined[a + 1] = _inside(refined[a + 1] + (goal - refined[a + 1]) * part * _REFINE)
    tables.first[node] = _toward(np.int64(tables.first[node]), y == 1, 7)
    if at[BIT] >= 0:
        tables.match[at[FOUND]] = _toward(np.int64(tables.match[at[FOUND]]), at[BIT] == y, 7)
    if at[FAR_BIT] >= 0:
        tables.far[at[FAR_FOUND]] = _toward(np.int64(tables.far[at[FAR_FOUND]]), at[FAR_BIT] == y, 7)
    slot = (1 << (depth & 3)) | (node & ((1 << (depth & 3)) - 1))
    for d in range(DIRECT):
        place = stream.lines[d] + slot
        tables.direct[place] = _moved(np.int64(tables.direct[place]), share, y, DIRECT_MAX)
    run_logits, run_rows = tables.run_logits, stream.run_rows
    for k in range(K):
        s = known[k]
        entry = np.int64(chance[k, s])
        chance[k, s] = _moved(entry, share, y, 1023) if s else entry  # an empty history learns nothing
        slots[buckets[k] + slot] = after[s, y]
        row = run_rows[k]
        right = np.float32(np.int64(row > 0) == y)
        row = abs(row)
        z = run_logits[k, row]
        moved = _clipped(z + (right - _chance(curves, z)) * _RUN_RATE)
        run_logits[k, row] = moved if row else _ZERO


@part
def end_unit(shape, tables, stream, unit, learn):
    """Advance past a complete unit, before `Stream.place` and the history do."""
    text = stream.text
    if text[Text.FAR_LENGTH]:
        if np.int64(tables.history[text[Text.FAR_MATCH] & (len(tables.history) - 1)]) == unit:
            text[Text.FAR_LENGTH] += 1
            text[Text.FAR_MATCH] += 1
        else:
            text[Text.FAR_LENGTH] = 0
    if learn:
        unit_mask = (1 << RUN_OTHER) - 1
        for k in range(len(shape.spec)):
            place, check = _run_place(shape, tables, stream.hashes[k], k)
            entry = stream.entries[k]
            count, latest = (entry >> RUN_COUNT) & RUN_MAX, entry & unit_mask
            other = (entry >> RUN_OTHER) & ((1 << (RUN_COUNT - RUN_OTHER)) - 1)
            if count and latest != unit:
                other, count = latest + 1, np.int64(0)
            count = min(count + 1, RUN_MAX)
            tables.runs[place] = check << RUN_CHECK | count << RUN_COUNT | other << RUN_OTHER | unit
    if len(shape.numbers):
        note_number(shape, stream, unit)
    if shape.instructions or shape.markup:
        c, before = unit >> shape.text_shift & 255, max(np.int64(age(stream, 1)) - 1, 0) >> shape.text_shift
        if shape.instructions:
            note_instruction(text, c, before)
        else:
            note_markup(text, c, before)
    note_unit(shape, tables, stream, unit, learn)
