"""The loops of the searches, compiled by numba: CRCs forwards and backwards, sums of changes that meet a target, sets of flips best first.

A *key* is what a change of the file does to the difference between its checksum and the one that it should have: 64 bits that are added
by XOR (CRCs), or two halves of 32 bits that are added modulo `modulus` (Adler-32, sums of bytes).
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-untyped-decorators=False, check-untyped-defs=False
# Shapes: N bytes, C changes with the likeliest first, P pairs of them, K sets that are kept, S changes of a set.
from __future__ import annotations

import numpy as np

from bit_transformer.compiled import compiled

_0, _1, _3, _7, _8, _16, _32 = (np.uint64(value) for value in (0, 1, 3, 7, 8, 16, 32))
_BYTE, _LOW = np.uint64(0xFF), np.uint64(0xFFFFFFFF)
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: spreads keys over the buckets


# CRCs. The register is held reflected, also for those that are defined the other way: then `order` reverses the bits of each byte.


@compiled
def crc_forward(table, order, state, data):
    """The register after some bytes."""
    for i in range(len(data)):
        state = table[(state ^ order[data[i]]) & _BYTE] ^ (state >> _8)
    return state


@compiled
def crc_backward(table, inverse, order, top, mask, state, data):
    """The register before some bytes, from the one after them. `inverse`: the index in the table of each highest byte."""
    for i in range(len(data) - 1, -1, -1):
        index = inverse[state >> top]
        state = (((state ^ table[index]) << _8) & mask) | (index ^ order[data[i]])
    return state


@compiled
def bit_keys(poly, reflected, begin, keys_N8):
    """What each bit of N bytes does to the register at their end. `begin`: the key of the last bit that was processed, `poly` at the end.

    Returns:
        the key of the bit before these bytes, to go on with.
    """
    key = begin
    for i in range(len(keys_N8) - 1, -1, -1):
        for k in range(7, -1, -1):
            keys_N8[i, 7 - k if reflected else k] = key
            key = (key >> _1) ^ (poly if key & _1 else _0)
    return key


@compiled
def bit_keys_at(poly, reflected, size, bits_C, keys_C):
    """The same for some bits only, in rising order; for files that are too large to hold the keys of all bits."""
    key, at = poly, len(bits_C) - 1
    for i in range(size - 1, -1, -1):
        if at < 0:
            return
        for k in range(7, -1, -1):
            bit = 8 * i + (7 - k if reflected else k)
            # Within a byte the order may be the other way; at most eight are compared.
            c = at
            while c >= 0 and bits_C[c] >= 8 * i:
                if bits_C[c] == bit:
                    keys_C[c] = key
                c -= 1
            key = (key >> _1) ^ (poly if key & _1 else _0)
        while at >= 0 and bits_C[at] >= 8 * i:
            at -= 1


@compiled
def burst_patterns(table, inverse, top, mask, state, patterns_N):
    """For each position the one pattern of a register's width that makes up for `state`, as a number whose lowest byte comes first.

    The difference is run backwards through zeros from the end: what it is before a position is what must be XORed there.

    Returns:
        the state before the first position, to go on with.
    """
    for i in range(len(patterns_N) - 1, -1, -1):
        index = inverse[state >> top]
        state = (((state ^ table[index]) << _8) & mask) | index
        patterns_N[i] = state
    return state


@compiled
def lost_runs(table, inverse, order, top, mask, after, before, data, size, offsets, runs):
    """Where a run of `size` bytes may have been lost, and which bytes: found from the end.

    Args:
        after: the register that is needed at the end. `before`: the register at the end of the bytes as received.
        offsets, runs: (room,) the position before which the run belongs, its bytes as a number, the first lowest, in the register's order.

    Returns:
        how many were found; it stops where there is no more room.
    """
    count = 0
    beyond = mask ^ ((_1 << np.uint64(8 * size)) - _1) if size < 8 else _0
    for p in range(len(data), -1, -1):
        state = after
        for _ in range(size):
            index = inverse[state >> top]
            state = (((state ^ table[index]) << _8) & mask) | index
        run = state ^ before
        if run & beyond == _0:
            if count == len(offsets):
                return count
            # The same bytes result where the run is moved over equal ones; the leftmost stands for all.
            if p == 0 or order[data[p - 1]] != (run >> np.uint64(8 * (size - 1))) & _BYTE:
                offsets[count], runs[count] = p, run
                count += 1
        if p:
            byte = order[data[p - 1]]
            index = inverse[after >> top]
            after = (((after ^ table[index]) << _8) & mask) | (index ^ byte)
            index = inverse[before >> top]
            before = (((before ^ table[index]) << _8) & mask) | (index ^ byte)
    return count


@compiled
def extra_runs(table, inverse, order, top, mask, after, before, data, size, offsets):
    """Where a run of `size` bytes may be too much; `before` is the register `size` bytes before the end. Returns how many were found."""
    count = 0
    for p in range(len(data) - size, -1, -1):
        if after == before and (p == 0 or data[p - 1] != data[p + size - 1]):
            if count == len(offsets):
                return count
            offsets[count] = p
            count += 1
        if p:
            index = inverse[after >> top]
            after = (((after ^ table[index]) << _8) & mask) | (index ^ order[data[p + size - 1]])
            index = inverse[before >> top]
            before = (((before ^ table[index]) << _8) & mask) | (index ^ order[data[p - 1]])
    return count


# Keys and tables of them.


@compiled
def plus(a, b, modulus):
    """The key of two changes."""
    if modulus == _0:
        return a ^ b
    low, high = (a & _LOW) + (b & _LOW), (a >> _32) + (b >> _32)
    if low >= modulus:
        low -= modulus
    if high >= modulus:
        high -= modulus
    return high << _32 | low


@compiled
def minus(a, b, modulus):
    """What is needed besides b to make a."""
    if modulus == _0:
        return a ^ b
    low, high = (a & _LOW) + modulus - (b & _LOW), (a >> _32) + modulus - (b >> _32)
    if low >= modulus:
        low -= modulus
    if high >= modulus:
        high -= modulus
    return high << _32 | low


@compiled
def fill_table(keys, bucket_shift, sieve_shift, starts, sieve, tags, ids):
    """A hash table of keys: where each bucket starts, and tags and numbers of its keys.

    Args:
        starts: (buckets + 1,) int32, zeros. `sieve`: bits, zeros; a bit that is not set says at once that there is no such key.
    """
    for key in keys:
        mixed = key * _MIX
        starts[mixed >> bucket_shift] += 1
        place = mixed >> sieve_shift
        sieve[place >> _3] |= np.uint8(1) << np.uint8(place & _7)
    total = 0
    for b in range(len(starts)):
        total += starts[b]
        starts[b] = total
    for i in range(len(keys) - 1, -1, -1):
        mixed = keys[i] * _MIX
        bucket = mixed >> bucket_shift
        starts[bucket] -= 1
        at = starts[bucket]
        tags[at] = mixed >> _16 & _LOW
        ids[at] = i


@compiled
def count_pairs(odds_C, low):
    """How many pairs have odds that sum to `low` or more. The odds fall."""
    count, j = 0, len(odds_C) - 1
    for i in range(len(odds_C)):
        while j > i and odds_C[i] + odds_C[j] < low:
            j -= 1
        if j <= i:
            break
        count += j - i
    return count


@compiled
def fill_pairs(odds_C, keys_C, modulus, low, keys_P, firsts_P, seconds_P):
    """The keys of these pairs. Returns how many."""
    count, C = 0, len(odds_C)
    for i in range(C - 1):
        if odds_C[i] + odds_C[i + 1] < low:
            break
        for j in range(i + 1, C):
            if odds_C[i] + odds_C[j] < low or count == len(keys_P):
                break
            keys_P[count] = plus(keys_C[i], keys_C[j], modulus)
            firsts_P[count], seconds_P[count] = i, j
            count += 1
    return count


# Sets that are kept: a heap whose first has the lowest odds, so that memory does not depend on how many are found.


@compiled
def keep(kept_K, sets_KS, count, odds, a, b, c, d):
    """Add a set of up to four changes, by rank; if there is no room, in place of the one with the lowest odds. Returns how many are kept."""
    K = len(kept_K)
    if count == K:
        if not odds > kept_K[0]:
            return count
        i = 0
        while True:
            child = 2 * i + 1
            if child >= K:
                break
            if child + 1 < K and kept_K[child + 1] < kept_K[child]:
                child += 1
            if kept_K[child] >= odds:
                break
            kept_K[i] = kept_K[child]
            for s in range(4):
                sets_KS[i, s] = sets_KS[child, s]
            i = child
    else:
        i = count
        count += 1
        while i > 0:
            parent = (i - 1) // 2
            if kept_K[parent] <= odds:
                break
            kept_K[i] = kept_K[parent]
            for s in range(4):
                sets_KS[i, s] = sets_KS[parent, s]
            i = parent
    kept_K[i] = odds
    sets_KS[i, 0], sets_KS[i, 1], sets_KS[i, 2], sets_KS[i, 3] = a, b, c, d
    return count


@compiled
def is_kept(kept_K, sets_KS, count, odds, a, b, c, d):
    """Whether a set is kept already. Its odds are summed in one order, so that they are equal to the bit."""
    for i in range(count):
        if (
            kept_K[i] == odds
            and sets_KS[i, 0] == a
            and sets_KS[i, 1] == b
            and sets_KS[i, 2] == c
            and sets_KS[i, 3] == d
        ):
            return True
    return False


@compiled
def singles(odds_C, keys_C, target, kept_K, sets_KS):
    """Single changes that make up for the target."""
    count = 0
    for i in range(len(keys_C)):
        if keys_C[i] == target:
            count = keep(kept_K, sets_KS, count, odds_C[i], i, -1, -1, -1)
    return count


@compiled
def pairs(odds_C, keys_C, modulus, target, bucket_shift, sieve_shift, starts, sieve, tags, ids, kept_K, sets_KS):
    """Pairs that do; the table is of the single changes."""
    count = 0
    for i in range(len(keys_C)):
        needed = minus(target, keys_C[i], modulus)
        mixed = needed * _MIX
        place = mixed >> sieve_shift
        if sieve[place >> _3] >> np.uint8(place & _7) & np.uint8(1) == 0:
            continue
        bucket, tag = mixed >> bucket_shift, mixed >> _16 & _LOW
        for at in range(starts[bucket], starts[bucket + _1]):
            if tags[at] == tag:
                j = ids[at]
                if j > i and keys_C[j] == needed:
                    count = keep(kept_K, sets_KS, count, odds_C[i] + odds_C[j], i, j, -1, -1)
    return count


@compiled
def triples(odds_C, keys_C, modulus, target, low, bucket_shift, sieve_shift, starts, sieve, tags, ids, kept_K, sets_KS):
    """Triples that do, of which the two likeliest sum to `low` or more; the table is of the single changes.

    A triple is taken where its pair is of its two likeliest: that pair is among the pairs if any of its three is.
    """
    count, C, K = 0, len(keys_C), len(kept_K)
    for i in range(C - 2):
        if odds_C[i] + odds_C[i + 1] < low:
            break
        first = minus(target, keys_C[i], modulus)
        for j in range(i + 1, C - 1):
            both = odds_C[i] + odds_C[j]
            if both < low or (count == K and both + odds_C[j + 1] <= kept_K[0]):
                break
            needed = minus(first, keys_C[j], modulus)
            mixed = needed * _MIX
            place = mixed >> sieve_shift
            if sieve[place >> _3] >> np.uint8(place & _7) & np.uint8(1) == 0:
                continue
            bucket, tag = mixed >> bucket_shift, mixed >> _16 & _LOW
            for at in range(starts[bucket], starts[bucket + _1]):
                if tags[at] == tag:
                    k = ids[at]
                    if k > j and keys_C[k] == needed:
                        count = keep(kept_K, sets_KS, count, both + odds_C[k], i, j, k, -1)
    return count


@compiled
def quadruples(
    odds_C,
    keys_C,
    modulus,
    target,
    low,
    keys_P,
    firsts_P,
    seconds_P,
    bucket_shift,
    sieve_shift,
    starts,
    sieve,
    tags,
    ids,
    kept_K,
    sets_KS,
):
    """Sets of four that do: a pair of the table, and one that sums to `low` or more."""
    count, C, K = 0, len(keys_C), len(kept_K)
    best = odds_C[0] + odds_C[1]
    for i in range(C - 1):
        if odds_C[i] + odds_C[i + 1] < low:
            break
        first = minus(target, keys_C[i], modulus)
        for j in range(i + 1, C):
            both = odds_C[i] + odds_C[j]
            if both < low or (count == K and both + best < kept_K[0]):
                break
            needed = minus(first, keys_C[j], modulus)
            mixed = needed * _MIX
            place = mixed >> sieve_shift
            if sieve[place >> _3] >> np.uint8(place & _7) & np.uint8(1) == 0:
                continue
            bucket, tag = mixed >> bucket_shift, mixed >> _16 & _LOW
            for at in range(starts[bucket], starts[bucket + _1]):
                if tags[at] != tag or keys_P[ids[at]] != needed:
                    continue
                k, m = firsts_P[ids[at]], seconds_P[ids[at]]
                if i in (k, m) or j in (k, m):
                    continue
                a, d = min(i, k), max(j, m)
                b, c = (i if a == k else k), (j if d == m else m)
                if b > c:
                    b, c = c, b
                odds = odds_C[a] + odds_C[b] + odds_C[c] + odds_C[d]
                if count == K and odds <= kept_K[0]:
                    continue
                if not is_kept(kept_K, sets_KS, count, odds, a, b, c, d):
                    count = keep(kept_K, sets_KS, count, odds, a, b, c, d)
    return count


# Sets best first.


@compiled
def first_below(odds_C, base, limit):
    """The first change whose odds, added to `base`, are less than a limit."""
    low, high = 0, len(odds_C)
    while low < high:
        middle = (low + high) // 2
        if base + odds_C[middle] < limit:
            high = middle
        else:
            low = middle + 1
    return low


@compiled
def sets_between(odds_C, size, low, high, most, writes, at, sums, begin, odds_B, sets_BS):
    """Sets of `size` changes whose odds sum to `low` or more and less than `high`: counted, and written if wanted.

    Args:
        most: count no further than this.
        writes: whether they are written to `odds_B` and `sets_BS`, from row `begin` on; it stops where there is no more room.
        at, sums: room for `size` + 1 numbers: int64, float64.

    Returns:
        how many there are; -1 where there was no room.
    """
    C, count, d = len(odds_C), 0, 0
    at[0], sums[0] = -1, 0.0
    # The last two levels are one loop: as the last but one gets less likely, the range of the last one only moves to the front.
    first, last, entered = C, C, True
    while d >= 0:
        at[d] += 1
        i = at[d]
        left = size - d
        if i + left > C:
            d -= 1
            continue
        best = sums[d]
        for r in range(left):
            best += odds_C[i + r]
        if best < low:
            d -= 1
            continue
        if left > 2:
            sums[d + 1] = sums[d] + odds_C[i]
            at[d + 1] = i
            d += 1
            entered = True
            continue
        if left == 1:  # sets of one
            if odds_C[i] >= high:
                continue
            begins, ends, base = i, i + 1, 0.0
        else:
            base = sums[d] + odds_C[i]
            if entered:
                first, last, entered = first_below(odds_C, base, high), first_below(odds_C, base, low), False
            while last > i + 1 and base + odds_C[last - 1] < low:
                last -= 1
            while first > i + 1 and base + odds_C[first - 1] < high:
                first -= 1
            begins, ends = max(first, i + 1), last
        if ends <= begins:
            continue
        if writes:
            if begin + count + ends - begins > len(odds_B):
                return -1
            for j in range(begins, ends):
                row = begin + count + j - begins
                odds_B[row] = base + odds_C[j]
                for s in range(size - 1):
                    sets_BS[row, s] = at[s]
                sets_BS[row, size - 1] = j
                for s in range(size, sets_BS.shape[1]):
                    sets_BS[row, s] = -1
        count += ends - begins
        if count >= most:
            return count
    return count
