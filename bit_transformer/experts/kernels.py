"""The expert bank's inner loops: one pass over a stream of units, bit by bit. In integers only, but for what `rich.py` does for rich banks.

With integers the bank is exact: the same bits give the same features on every machine, for pieces of any size and any number of
streams. Logits are in 1/256, probabilities in 1/65536 (1/2^22 while learned), weights in 1/65536.

For each bit of a unit every expert k looks up one byte: the *bit history* (`histories.py`) of its context followed by the earlier bits
of the unit. Each expert has a table that maps histories to probabilities, and learns it; so a context seen once and always right can
mean something else for order 2 than for order 6. A match expert follows the longest repeat; an order-0 expert needs no hash. Three
small online mixers sum their logits, each with weights selected by something small (the bits so far, the previous unit, how many experts
know their context). A fourth weighs these three, and two adaptive maps correct the result. It is one more expert for the transformer:
"the bank's own mixture".

Sources: Mahoney 2005, "Adaptive weighing of context models for lossless data compression" (logistic mixing, bit
histories, buckets of a nibble); Mahoney 2013, "Data Compression Explained", sections 4.3 and 4.4 (indirect models, SSE).
"""

from __future__ import annotations

import numpy as np

from bit_transformer.coding.arithmetic import PLACE as PLACE_OF_CODE
from bit_transformer.coding.arithmetic import begin_code, decode_bit, encode_bit, end_code
from bit_transformer.compiled import compiled, inline, part
from bit_transformer.experts import rich
from bit_transformer.experts.instructions import write_instruction_terms
from bit_transformer.experts.layout import (
    BITS,
    BUCKET,
    LENGTH,
    LOGIT_MAX,
    LOGIT_ONE,
    MAP_KNOTS,
    MAP_REACH,
    MAP_STEP,
    MATCH,
    MATCH_MAX,
    MAX_ARGUMENTS,
    NO,
    ORDER,
    PAGE,
    PLACE,
    SHIFTED,
    TERMS,
    TEXT,
    TEXT_PAIR,
    TEXT_SKIP,
    WORD,
    WORD_1,
    WORD_2,
    age,
    fetch,
    mixed,
    repeated,
)
from bit_transformer.experts.markup import write_markup_terms
from bit_transformer.experts.numbers import begin_number
from bit_transformer.experts.terms import write_terms


@inline
def _begin_unit(shape, tables, stream, learn):
    """Hash the contexts of the next unit, and find the match that predicts it."""
    spec, place, hashes, recent = shape.spec, stream.place, stream.hashes, stream.recent
    n, ring = place[PLACE], len(recent) - 1
    last = age(stream, 1)
    word = np.uint64(place[WORD])
    if word == 0:
        word = last * np.uint64(0xD6E8FEB86659FD93)
    pair = np.uint64(place[WORD_1]) * np.uint64(0xBF58476D1CE4E5B9)
    skip = np.uint64(place[WORD_2]) * np.uint64(0x94D049BB133111EB)
    matching = n >= shape.match_order
    slot = np.int64(0)
    if matching:
        match_hash = np.uint64(0)
        for a in range(1, shape.match_order + 1):
            match_hash = (match_hash + np.uint64(recent[(n - a) & ring])) * np.uint64(0x9E3779B97F4A7C15)
        slot = np.int64(match_hash >> np.uint64(shape.heads_shift))
        fetch(tables.heads, slot)
    if shape.rich:
        write_terms(shape, tables, stream)
        if shape.instructions:
            write_instruction_terms(stream.text, stream.terms)
        if shape.markup:
            write_markup_terms(stream.text, stream.terms)
        if len(shape.numbers):
            begin_number(shape, stream)
    chain = np.uint64(0)
    done = 0
    for k in range(len(spec)):
        kind, first = spec[k, 0], spec[k, 1]
        value = np.uint64(0)
        if kind == ORDER:  # ascending, so that each hash continues the previous one
            while done < first:
                done += 1
                unit = np.uint64(recent[(n - done) & ring]) + np.uint64(1)
                chain = mixed((chain ^ unit) * np.uint64(0xBF58476D1CE4E5B9))
            value = chain
        elif kind == TEXT:
            value = word
            if first == TEXT_PAIR:
                value ^= pair
            elif first == TEXT_SKIP:
                value ^= skip
        elif kind == BITS:
            value = np.uint64(place[SHIFTED]) & ((np.uint64(1) << np.uint64(first)) - np.uint64(1))
        elif kind == TERMS:
            for a in range(1, MAX_ARGUMENTS + 1):
                term = spec[k, a]
                if term:
                    value = mixed(
                        (value ^ np.uint64(stream.terms[term])) * np.uint64(0xD6E8FEB86659FD93) + np.uint64(term)
                    )
        else:
            for a in range(1, MAX_ARGUMENTS + 1):
                if spec[k, a]:
                    value = mixed((value ^ age(stream, spec[k, a])) * np.uint64(0xBF58476D1CE4E5B9))
        hashes[k] = mixed(mixed(value + np.uint64(k + 1) * np.uint64(0xD1B54A32D192ED03)))
    _fetch_buckets(shape, tables, stream, np.int64(0))
    if matching:
        if place[LENGTH] == 0:
            _find_match(shape, tables, stream, np.int64(tables.heads[slot]))
        if learn:
            tables.heads[slot] = tables.learned[0]
    if place[LENGTH] and place[MATCH] >= tables.learned[0]:
        place[LENGTH] = 0  # the end of the history: nothing follows
    if shape.rich:
        rich.begin_unit(shape, tables, stream, learn)


@part
def _find_match(shape, tables, stream, found):
    """Whether the units before `found` in the history equal the units before the current position."""
    place, history, recent = stream.place, tables.history, stream.recent
    n = place[PLACE]
    oldest = max(0, tables.learned[0] - (len(history) - 1))
    if found <= oldest:
        return
    length = repeated(history, recent, found, oldest, n, MATCH_MAX)
    if length >= shape.match_order:
        place[LENGTH], place[MATCH] = length, found


@inline
def _line(shape, h, k, above):
    """The hash of a context followed by all but the last bit of a node, and the cache line of its buckets."""
    near = (h ^ np.uint64(above) * np.uint64(0xE7037ED1A0B428DB)) * np.uint64(0x9E3779B97F4A7C15)
    mask = np.int64((1 << shape.bucket_bits) - 1)
    index = (np.int64(h >> np.uint64(20)) & ~PAGE) | (np.int64(near >> np.uint64(40)) & PAGE)
    return near, ((np.int64(k) << shape.bucket_bits) + (index & mask & ~3)) * BUCKET


@inline
def _fetch_buckets(shape, tables, stream, above):
    """Prefetch the lines that `_find_buckets` will read; the last bit of its node only selects within them."""
    for k in range(len(stream.hashes)):
        fetch(tables.slots, _line(shape, stream.hashes[k], k, above)[1])


@inline
def _find_buckets(shape, tables, stream, node, learn):
    """Find the bucket of histories of the next up to four bits, for every expert; learning allocates missing ones."""
    slots, buckets, hashes, known = tables.slots, stream.buckets, stream.hashes, stream.known
    unknown = len(slots) - BUCKET
    for k in range(len(hashes)):
        near, line = _line(shape, hashes[k], k, node >> 1)
        near += np.uint64(node & 1) * np.uint64(0xE7037ED1A0B428DB)
        a = line + (np.int64(near >> np.uint64(40)) & 3) * BUCKET
        buckets[k] = a
        known[k] = np.int64(slots[a]) ^ np.int64(near >> np.uint64(56))
    for k in range(len(hashes)):
        if known[k]:
            a = buckets[k]
            check = np.uint8(known[k] ^ np.int64(slots[a]))
            b, c = a ^ BUCKET, a ^ (2 * BUCKET)
            if slots[b] == check:
                a = b
            elif slots[c] == check:
                a = c
            elif learn:  # replace the least used of the three; histories are numbered by length
                if slots[b + 1] < slots[a + 1]:
                    a = b
                if slots[c + 1] < slots[a + 1]:
                    a = c
                slots[a] = check
                for i in range(1, BUCKET):
                    slots[a + i] = 0
            else:
                a = unknown
            buckets[k] = a
    if shape.rich:
        rich.find_lines(shape, tables, stream, node)


@inline
def _end_unit(shape, tables, stream, unit, learn):
    """Advance the stream past a complete unit."""
    if shape.rich:
        rich.end_unit(shape, tables, stream, unit, learn)
    place = stream.place
    n = place[PLACE]
    if place[LENGTH]:
        if np.int64(tables.history[place[MATCH] & (len(tables.history) - 1)]) == unit:
            place[LENGTH] += 1
            place[MATCH] += 1
        else:
            place[LENGTH] = 0
    stream.recent[n & (len(stream.recent) - 1)] = unit
    place[PLACE] = n + 1
    place[SHIFTED] = place[SHIFTED] << shape.unit_bits | unit
    if shape.text_shift >= 0:
        c = unit >> shape.text_shift
        if 65 <= c <= 90:
            c += 32
        if 97 <= c <= 122 or c >= 128:
            place[WORD] = np.int64(mixed((np.uint64(place[WORD]) + np.uint64(c)) * np.uint64(0x2545F4914F6CDD1D)))
        elif place[WORD]:
            place[WORD_2], place[WORD_1], place[WORD] = place[WORD_1], place[WORD], 0
    if learn:
        tables.history[tables.learned[0] & (len(tables.history) - 1)] = unit
        tables.learned[0] += 1


@inline
def _feature(logit):
    return np.int8((logit * 3 + 32) >> 6)


@inline
def _about_unit(shape, tables, stream):
    """What is the same for all bits of a unit: the unit that the match predicts under a leading one, or -1; the previous unit; a hash of the
    two previous units; a row of mixer weights."""
    place, U = stream.place, shape.unit_bits
    symbol = np.int64(-1)
    if place[LENGTH]:
        symbol = np.int64(tables.history[place[MATCH] & (len(tables.history) - 1)]) | (1 << U)
    before = np.int64(age(stream, 1))  # 0 .. 2^U
    two = np.int64(mixed(before * 4099 + np.int64(age(stream, 2))) >> np.uint64(30))
    row1 = (1 << U) + ((before >> max(0, U - 8)) & 255)
    return symbol, before, two, row1


@inline
def _predict_bit(shape, tables, stream, curves, about, node, depth):
    """Predict the bit at a node. Returns what `_learn_bit` needs; its last number is the probability of a one, in 1/65536.

    Args:
        about: from `_about_unit`.
    """
    if shape.rich:
        n = np.int64(0)
        one = rich.predict_bit(shape, tables, stream, curves, node, depth)
        return n, n, n, n, n, n, n, n, n, n, n, one
    slots, chance, first, match, weights = tables.slots, tables.chance, tables.first, tables.match, tables.weights
    last, maps = tables.last, tables.maps
    buckets, inputs, known = stream.buckets, stream.inputs, stream.known
    stretch, squash = curves.stretch, curves.squash
    K, U, M = len(shape.spec), shape.unit_bits, len(inputs)
    map_rows, flat_maps = maps.shape[1] - 1, maps.reshape(-1)
    symbol, before, two, row1 = about
    inside = depth & 3
    m0 = (before << U | node) & map_rows
    m1 = (two ^ node * 40503) & map_rows
    fetch(flat_maps, m0 * MAP_KNOTS)
    fetch(flat_maps, (map_rows + 1 + m1) * MAP_KNOTS)
    slot = (1 << inside) | (node & ((1 << inside) - 1))
    informed = 0
    for k in range(K):
        s = np.int64(slots[buckets[k] + slot])
        known[k] = s
        inputs[k] = stretch[chance[k, s] >> 20]
        informed += s != 0
    expected, length = -1, np.int64(0)
    inputs[K] = 0
    if symbol >> (U - depth) == node:
        expected = (symbol >> (U - 1 - depth)) & 1
        length = min(stream.place[LENGTH], MATCH_MAX)
        z = stretch[match[length] >> 4]
        inputs[K] = z if expected else -z
    inputs[K + 1] = stretch[first[node] >> 4]
    inputs[K + 2] = LOGIT_ONE
    row2 = (1 << U) + 256 + min(length, 15) * 16 + min(informed, 15)
    a0, a1, a2 = np.int64(0), np.int64(0), np.int64(0)
    for m in range(M):
        z = np.int64(inputs[m])
        a0 += np.int64(weights[node, m]) * z
        a1 += np.int64(weights[row1, m]) * z
        a2 += np.int64(weights[row2, m]) * z
    a0 = min(max(a0 >> 16, -LOGIT_MAX), LOGIT_MAX)
    a1 = min(max(a1 >> 16, -LOGIT_MAX), LOGIT_MAX)
    a2 = min(max(a2 >> 16, -LOGIT_MAX), LOGIT_MAX)
    mixed = (last[node, 0] * a0 + last[node, 1] * a1 + last[node, 2] * a2) >> 16
    mixed = min(max(mixed, -LOGIT_MAX), LOGIT_MAX)
    p = np.int64(squash[mixed + LOGIT_MAX + 1])
    cut = min(max(mixed, -MAP_REACH), MAP_REACH - 1) + MAP_REACH
    low, part = cut >> 7, cut & (MAP_STEP - 1)
    p0 = maps[0, m0, low] * (MAP_STEP - part) + maps[0, m0, low + 1] * part
    p1 = maps[1, m1, low] * (MAP_STEP - part) + maps[1, m1, low + 1] * part
    final = (2 * p + ((p0 + p1) >> 7)) >> 2
    return a0, a1, a2, p, m0, m1, low, part, expected, length, row2, min(max(final, 1), 65535)


@inline
def _write_features(shape, stream, curves, one, features, i, j):
    """Write row (i, j) of the features, after `_predict_bit`, which gave the probability of a one."""
    if shape.rich:
        rich.write_features(shape, stream, curves, one, features, i, j)
        return
    K = len(shape.spec)
    for k in range(K + 1):
        features[i, j, k] = _feature(stream.inputs[k])
    features[i, j, K + 1] = _feature(curves.stretch[one >> 4])


@inline
def _learn_bit(shape, tables, stream, curves, about, predicted, node, depth, y):
    """Update all tables with the bit at a node, after `_predict_bit` of it."""
    if shape.rich:
        rich.learn_bit(shape, tables, stream, curves, node, depth, y)
        return
    slots, chance, first, match, weights = tables.slots, tables.chance, tables.first, tables.match, tables.weights
    last, maps = tables.last, tables.maps
    buckets, inputs, known = stream.buckets, stream.inputs, stream.known
    squash, after, share = curves.squash, curves.after, curves.share
    K, M = len(shape.spec), len(inputs)
    row1 = about[3]
    a0, a1, a2, p, m0, m1, low, part, expected, length, row2, _ = predicted
    slot = (1 << (depth & 3)) | (node & ((1 << (depth & 3)) - 1))
    goal = y << 16
    e0 = np.int64(np.int32(goal - squash[a0 + LOGIT_MAX + 1]))
    e1 = np.int64(np.int32(goal - squash[a1 + LOGIT_MAX + 1]))
    e2 = np.int64(np.int32(goal - squash[a2 + LOGIT_MAX + 1]))
    for m in range(M):
        weights[node, m] += (np.int64(inputs[m]) * e0 + 32768) >> 16
    for m in range(M):
        weights[row1, m] += (np.int64(inputs[m]) * e1 + 32768) >> 16
    for m in range(M):
        weights[row2, m] += (np.int64(inputs[m]) * e2 + 32768) >> 16
    e3 = goal - p
    last[node, 0] += (a0 * e3 + 65536) >> 17
    last[node, 1] += (a1 * e3 + 65536) >> 17
    last[node, 2] += (a2 * e3 + 65536) >> 17
    aim = y * 65535
    old = np.int64(maps[0, m0, low])
    maps[0, m0, low] = old + (((aim - old) * (MAP_STEP - part)) >> 13)
    old = np.int64(maps[0, m0, low + 1])
    maps[0, m0, low + 1] = old + (((aim - old) * part) >> 13)
    old = np.int64(maps[1, m1, low])
    maps[1, m1, low] = old + (((aim - old) * (MAP_STEP - part)) >> 13)
    old = np.int64(maps[1, m1, low + 1])
    maps[1, m1, low + 1] = old + (((aim - old) * part) >> 13)
    old = np.int64(first[node])
    first[node] = old + ((aim - old) >> 7)
    if expected >= 0:
        old = np.int64(match[length])
        match[length] = old + (((65535 if expected == y else 0) - old) >> 8)
    for k in range(K):
        s = known[k]
        entry = np.int64(chance[k, s])
        p22, n = entry >> 10, entry & 1023
        p22 += ((((y << 22) - y - p22) * share[n]) >> 16) * np.int64(s != 0)  # an empty history learns nothing
        chance[k, s] = p22 << 10 | min(n + 1, 1023)
        slots[buckets[k] + slot] = after[s, y]


READ, ENCODE, DECODE = range(3)


@compiled
def read(shape, tables, stream, curves, units, learn, features, mode, coder, payload):
    """Advance a stream by units, bit by bit. With `learn`, the tables learn each bit after it was predicted.

    Args:
        units: (N); written if `mode` is DECODE.
        features: int8, (N, U, F): as `ExpertBank.features`. Length 0: not wanted.
        mode: READ; or ENCODE or DECODE, with the probability of the bank's own mixture.
        coder, payload: as in `coding.arithmetic`. The first decoding of a code begins it; an encoded one is ended by `end`. Encoding stops when
            the payload is full.
    """
    U, wanted = shape.unit_bits, len(features) > 0
    if mode == DECODE and coder[PLACE_OF_CODE] == 0:
        begin_code(coder, payload)
    for i in range(len(units)):
        unit = np.int64(units[i])
        _begin_unit(shape, tables, stream, learn)
        about = _about_unit(shape, tables, stream)
        node, root = np.int64(1), np.int64(0)
        for depth in range(U):
            if node >> (depth & 3) != root:
                root = node >> (depth & 3)
                _find_buckets(shape, tables, stream, root, learn)
            if depth & 3 == 3:
                _fetch_buckets(shape, tables, stream, node)
            predicted = _predict_bit(shape, tables, stream, curves, about, node, depth)
            if wanted:
                _write_features(shape, stream, curves, predicted[11], features, i, depth)
            if mode == DECODE:
                y = decode_bit(coder, payload, predicted[11])
            else:
                y = (unit >> (U - 1 - depth)) & 1
                if mode == ENCODE:
                    encode_bit(coder, payload, predicted[11], y)
            if learn:
                _learn_bit(shape, tables, stream, curves, about, predicted, node, depth, y)
            node = node << 1 | y
        unit = node - (1 << U)
        units[i] = unit
        _end_unit(shape, tables, stream, unit, learn)
        if mode == ENCODE and coder[PLACE_OF_CODE] > len(payload):
            return


@part
def _read_unit(shape, tables, stream, curves, unit, learn, one, i):
    """Advance a stream by a unit; row i of `one` gets the probability that each of its bits is 1, in 1/65536."""
    U = shape.unit_bits
    _begin_unit(shape, tables, stream, learn)
    about = _about_unit(shape, tables, stream)
    node, root = np.int64(1), np.int64(0)
    for depth in range(U):
        if node >> (depth & 3) != root:
            root = node >> (depth & 3)
            _find_buckets(shape, tables, stream, root, learn)
        if depth & 3 == 3:
            _fetch_buckets(shape, tables, stream, node)
        predicted = _predict_bit(shape, tables, stream, curves, about, node, depth)
        one[i, depth] = predicted[11]
        y = (unit >> (U - 1 - depth)) & 1
        if learn:
            _learn_bit(shape, tables, stream, curves, about, predicted, node, depth, y)
        node = node << 1 | y
    _end_unit(shape, tables, stream, unit, learn)


@inline
def _copy(source, target):
    """Copy an array, whatever its shape."""
    given, taken = source.reshape(-1), target.reshape(-1)
    for i in range(len(given)):
        taken[i] = given[i]


@inline
def _copy_stream(source, target):
    """Copy where a stream stands. Hashes, buckets and inputs are made anew for every unit."""
    for i in range(len(source.place)):
        target.place[i] = source.place[i]
    for i in range(len(source.recent)):
        target.recent[i] = source.recent[i]
    for i in range(len(source.text)):
        target.text[i] = source.text[i]
    if len(source.near):  # data is made of numbers
        _copy(source.moments, target.moments)
        _copy(source.weights, target.weights)
        _copy(source.spreads, target.spreads)
        _copy(source.errors, target.errors)
        _copy(source.near, target.near)
        _copy(source.guesses, target.guesses)


@compiled
def probabilities(shape, tables, stream, curves, units, learn, one, aside, begins, starts, replaced, instead):
    """Advance a stream by units as `read` does, and say what the bank's own mixture made of each bit; and of bits that could stand there instead.
    These variants are read without learning, by the bank as it is at that place.

    Args:
        one: uint16, (N, U): written; the probability that a bit is 1, in 1/65536.
        aside: another stream of the bank, which reads the variants.
        begins: (V) ascending, up to N: the unit of `units` before which a variant begins; N: after all of them.
        starts: (V + 1): its units are `replaced[starts[v] : starts[v + 1]]`.
        instead: as `one`, of `replaced`.
    """
    v = 0
    for i in range(len(units) + 1):
        while v < len(begins) and begins[v] == i:
            _copy_stream(stream, aside)
            for r in range(starts[v], starts[v + 1]):
                _read_unit(shape, tables, aside, curves, np.int64(replaced[r]), NO, instead, r)
            v += 1
        if i < len(units):
            _read_unit(shape, tables, stream, curves, np.int64(units[i]), learn, one, i)


@compiled
def end(coder, payload):
    """End a code that `read` wrote."""
    end_code(coder, payload)


@compiled
def nodes(shape, tables, stream, curves, start, patch_bits, features):
    """Features at all nodes of a possible next patch, without advancing or learning.

    Args:
        start: the node where the patch starts.
        features: int8, (1, 2^patch_bits, F), by node numbers relative to the start; 0 unused.
    """
    _begin_unit(shape, tables, stream, NO)
    about = _about_unit(shape, tables, stream)
    root = np.int64(0)
    for visit in range(1, 1 << patch_bits):  # level by level
        level = 0
        while visit >> (level + 1):
            level += 1
        node = (np.int64(start) << level) | (visit - (1 << level))
        depth = 0
        while node >> (depth + 1):
            depth += 1
        if node >> (depth & 3) != root:
            root = node >> (depth & 3)
            _find_buckets(shape, tables, stream, root, NO)
        predicted = _predict_bit(shape, tables, stream, curves, about, node, depth)
        _write_features(shape, stream, curves, predicted[11], features, 0, visit)


# ---- the same, bit by bit: for a decoder, which gets a bit only after predicting it ----

# Rows of `state`: of the whole unit, the position in it, and what `_learn_bit` needs.
ABOUT, NODE, DEPTH, ROOT, PREDICTED, STATE = 0, 4, 5, 6, 7, 19


@compiled
def begin_unit(shape, tables, stream, state, learn):
    """Call before the first bit of the next unit."""
    _begin_unit(shape, tables, stream, learn)
    state[0], state[1], state[2], state[3] = _about_unit(shape, tables, stream)
    state[NODE], state[DEPTH], state[ROOT] = 1, 0, 0


@compiled
def predict_bit(shape, tables, stream, curves, state, learn, features):
    """Features of the next bit, written to a (1, 1, F) array."""
    node, depth = state[NODE], state[DEPTH]
    if node >> (depth & 3) != state[ROOT]:
        state[ROOT] = node >> (depth & 3)
        _find_buckets(shape, tables, stream, state[ROOT], learn)
    about = state[0], state[1], state[2], state[3]
    if depth & 3 == 3:
        _fetch_buckets(shape, tables, stream, node)
    made = _predict_bit(shape, tables, stream, curves, about, node, depth)
    _write_features(shape, stream, curves, made[11], features, 0, 0)
    for k in range(STATE - PREDICTED):
        state[PREDICTED + k] = made[k]


@compiled
def learn_bit(shape, tables, stream, curves, state, y, learn):
    """Give the value of the bit; with `learn` the tables learn it."""
    node, depth = state[NODE], state[DEPTH]
    if learn:
        about = state[0], state[1], state[2], state[3]
        t = state[PREDICTED:]
        made = t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], t[9], t[10], t[11]
        _learn_bit(shape, tables, stream, curves, about, made, node, depth, y)
    state[NODE] = node << 1 | y
    state[DEPTH] = depth + 1


@compiled
def end_unit(shape, tables, stream, state, learn):
    """Call after the last bit: the stream advances past the unit."""
    _end_unit(shape, tables, stream, state[NODE] & ((1 << shape.unit_bits) - 1), learn)


@compiled
def merge_slots(mine, theirs, since, after, toward, sums, lengths):
    """Let a bank's histories go on as another's did.

    Args:
        since: what the other bank began with, or nothing.
        after, lengths: of histories; `toward`, `sums`: how one becomes another, as in `histories`.
    """
    for b in range(0, len(theirs) - BUCKET, BUCKET):
        if theirs[b + 1] == 0:
            continue
        known = len(since) > 0 and since[b] == theirs[b] and since[b + 1] != 0
        if known and _equal(theirs, since, b):
            continue
        for i in range(1, BUCKET if known else 1):  # without a way to it, the context was forgotten and came back
            begun = since[b + i]
            known = known and (begun == 0 or begun == theirs[b + i] or toward[begun, theirs[b + i]] < 2)
        # A bucket is at its index, or at one that differs in one of the two lowest bits. Where the other bank has the same check once more,
        # that is another context's.
        found = np.int64(-1)
        for other in range(4):
            at = b ^ (other * BUCKET)
            another = other != 0 and theirs[at] == theirs[b] and theirs[at + 1] != 0
            if found < 0 and mine[at] == theirs[b] and mine[at + 1] != 0 and not another:
                found = at
        if found >= 0:
            for i in range(1, BUCKET):
                if theirs[b + i]:
                    begun = since[b + i] if known else np.uint8(0)
                    mine[found + i] = _gone_on(mine[found + i], begun, theirs[b + i], after, toward, sums)
            continue
        # If its place is taken, it goes to a free one beside it. From there it is found if it belongs to either of them, which is likely: where
        # it belongs is not stored. Else the longer history stays, of two as long the newer.
        at = b
        if mine[b + 1] and not mine[(b ^ BUCKET) + 1]:
            at = b ^ BUCKET
        elif mine[b + 1] and not mine[(b ^ (2 * BUCKET)) + 1]:
            at = b ^ (2 * BUCKET)
        free = len(since) > 0 and _equal(mine, since, at)  # the other bank has given up what is here
        if free or lengths[mine[at + 1]] <= lengths[theirs[b + 1]]:
            for i in range(BUCKET):
                mine[at + i] = theirs[b + i]


@inline
def _equal(slots, others, b):
    """Whether a bucket is the same in two banks."""
    same = True
    for i in range(BUCKET):
        same = same and slots[b + i] == others[b + i]
    return same


@inline
def _gone_on(history, begun, ended, after, toward, sums):
    """A history after the bits that led from one to another."""
    if begun == 0:
        return sums[history, ended]
    while begun != ended:
        bit = toward[begun, ended]
        begun = after[begun, bit]
        history = after[history, bit]
    return history


@compiled
def remember(shape, tables, units):
    """Append units to the history that is searched for matches."""
    history, heads, learned = tables.history, tables.heads, tables.learned
    ring = len(history) - 1
    for i in range(len(units)):
        if i >= shape.match_order:
            value = np.uint64(0)
            for a in range(1, shape.match_order + 1):
                value = (value + np.uint64(units[i - a])) * np.uint64(0x9E3779B97F4A7C15)
            heads[np.int64(value >> np.uint64(shape.heads_shift))] = learned[0]
        if shape.rich and i >= rich.FAR_ORDER:
            tables.far_heads[rich.far_slot(tables, history, learned[0])] = learned[0]
        history[learned[0] & ring] = units[i]
        learned[0] += 1


# ---- the buckets in a file: every history, given the one above it ----

# Rows of probabilities: of a node, by the history above it and its side. A node under an empty history is empty, so its rows serve others:
ROOT_ROW, WHOLE_ROW, FLAG_ROW, ROWS = 0, 1, 512, 513
USED_FLAG, LEVELS_FLAG = 16, 32  # places in the row of flags; nodes that one bit describes have places 2 to 15


@inline
def _coded_bit(coder, code, probabilities, row, place, bit, decoding):
    """Encode or decode a bit with a probability, which learns it. Returns the bit."""
    one = np.int64(probabilities[row, place])
    if decoding:
        bit = decode_bit(coder, code, one)
    else:
        encode_bit(coder, code, one, bit)
    probabilities[row, place] = one + ((65536 - one) >> 5) if bit else one - (one >> 5)
    return bit


@inline
def _coded_byte(coder, code, probabilities, row, value, decoding):
    """The same for a byte, highest bit first."""
    node = np.int64(1)
    for depth in range(8):
        node = node << 1 | _coded_bit(coder, code, probabilities, row, node, (value >> (7 - depth)) & 1, decoding)
    return node & 255


@inline
def _levels(slots, b, counts, single):
    """How many levels of a bucket's tree are as the histories above say: a node that was never reached is empty, and one that was reached
    once holds one bit. Those below must be empty; else 0."""
    levels = 1
    for i in range(2, BUCKET):
        if slots[b + i]:
            levels = 2 if i < 4 else 3 if i < 8 else 4
    for i in range(2, 1 << levels):
        reached, history = counts[slots[b + (i >> 1)], i & 1], slots[b + i]
        if (reached == 0) != (history == 0) or (reached == 1 and history != single[0] and history != single[1]):
            return 0
    return levels


@compiled
def used_buckets(slots):
    """Number of buckets that are not all zero."""
    count = 0
    for b in range(0, len(slots), BUCKET):
        used = np.uint8(0)
        for i in range(BUCKET):
            used |= slots[b + i]
        count += used != 0
    return count


@compiled
def code_slots(slots, checks, code, coder, probabilities, counts, single, decoding):
    """Encode buckets, or decode them into slots that are zero.

    Args:
        checks: of the used buckets, one after the other.
        code, coder: as in `coding.arithmetic`.
        probabilities: uint16, (ROWS, 256): of ones, in 1 / 65536.
        counts: zeros and ones of each history; `single`: the histories of one bit.

    Returns:
        The number of used buckets. More than there are checks: the code is damaged.
    """
    if decoding:
        begin_code(coder, code)
    count, before = 0, 0
    for b in range(0, len(slots), BUCKET):
        place = (b // BUCKET) & 3
        if place == 0:
            before = 0
        used = np.int64(0)
        if not decoding:
            for i in range(BUCKET):
                used |= np.int64(slots[b + i])
            used = np.int64(used != 0)
        if not _coded_bit(coder, code, probabilities, FLAG_ROW, USED_FLAG + 4 * place + before, used, decoding):
            continue
        before += 1
        count += 1
        if count > len(checks):
            return count
        levels = np.int64(0)
        if decoding:
            slots[b] = checks[count - 1]
        else:
            checks[count - 1] = slots[b]
            levels = np.int64(_levels(slots, b, counts, single))
        whole = _coded_bit(coder, code, probabilities, FLAG_ROW, LEVELS_FLAG, np.int64(levels == 4), decoding)
        if whole:
            levels = np.int64(4)
        else:
            high = _coded_bit(coder, code, probabilities, FLAG_ROW, LEVELS_FLAG + 1, levels >> 1, decoding)
            low = _coded_bit(coder, code, probabilities, FLAG_ROW, LEVELS_FLAG + 2 + high, levels & 1, decoding)
            levels = high << 1 | low
        if levels == 0:
            for i in range(1, BUCKET):
                slots[b + i] = _coded_byte(coder, code, probabilities, WHOLE_ROW, np.int64(slots[b + i]), decoding)
            continue
        slots[b + 1] = _coded_byte(coder, code, probabilities, ROOT_ROW, np.int64(slots[b + 1]), decoding)
        for i in range(2, 1 << levels):
            above = np.int64(slots[b + (i >> 1)])
            reached = counts[above, i & 1]
            if reached == 1:
                bit = np.int64(slots[b + i] == single[1])
                slots[b + i] = single[_coded_bit(coder, code, probabilities, FLAG_ROW, i, bit, decoding)]
            elif reached > 1:
                row = 2 * above + (i & 1)
                slots[b + i] = _coded_byte(coder, code, probabilities, row, np.int64(slots[b + i]), decoding)
    if not decoding:
        end_code(coder, code)
    return count
