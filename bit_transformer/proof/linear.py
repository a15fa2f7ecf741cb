"""Searches that a checksum's arithmetic makes short: changes of a file add up to a change of its CRC, so a solution is a sum that fits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bit_transformer.errors import BitStreamError, ConfigError, Give
from bit_transformer.proof import kernels
from bit_transformer.proof.checks import Bytes, Crc, Keys, LinearCheck
from bit_transformer.proof.edits import Edit, merged

# Shapes: N bytes, C changes with the likeliest first, K solutions, S changes of one.

WIDEST = 1 << 23  # changes that are looked at; all bits of a file of 1 MiB
TABLE_PAIRS = 1 << 22  # pairs that are kept for sets of four, 20 bytes each; more no longer fit a cache
PROBE_PAIRS = 1 << 26  # pairs that are tried with them
TRIPLE_PAIRS = 1 << 27  # pairs that are tried with any third change
ACCIDENTS = 1 << 22  # sums that fit by chance, at most: a narrow CRC decides little, so that fewer are tried
MOST_FLIPS = 4
_TIES = 1e-6  # nats by which equal odds are told apart, so that a limit can be set between any two sums


@dataclass(frozen=True)
class Changes:
    """Changes of a file that may be made, the likeliest first.

    Attributes:
        bits_C: which bit of the file is flipped; from 8 N on, which of `edits` is made.
        keys_C, odds_C: what each does to the check; its odds in nats.
        modulus: of the keys.
        data, edits: the file; edits that are no flips of single bits.
    """

    bits_C: NDArray[np.int64]
    keys_C: Keys
    odds_C: NDArray[np.float64]
    modulus: int
    data: bytes
    edits: tuple[Edit, ...] = ()

    def edits_of(self, ranks: Iterable[int]) -> tuple[Edit, ...] | None:
        """Some changes as edits; None if they overlap."""
        made, flat = [], 8 * len(self.data)
        for rank in ranks:
            bit = int(self.bits_C[rank])
            if bit >= flat:
                made.append(self.edits[bit - flat])
            else:
                old = self.data[bit // 8]
                made.append(Edit(bit // 8, bytes([old]), bytes([old ^ 0x80 >> bit % 8])))
        return merged(made, self.data)


def told_apart(odds_C: NDArray[Any]) -> NDArray[np.float64]:
    """Odds in which none are equal: always the same tiny amounts are added."""
    odds = odds_C.astype(np.float64)
    return odds + _TIES * np.random.default_rng(0).random(len(odds))


def likeliest(odds_A: NDArray[Any], most: int) -> NDArray[np.int64]:
    """Which are the highest odds, from the highest on; those that are not finite are left out."""
    best, values = np.zeros(0, np.int64), odds_A[:0]
    piece = max(2 * most, 1 << 16)  # in pieces, so that memory does not depend on the file
    for begin in range(0, len(odds_A), piece):
        part = odds_A[begin : begin + piece]
        above = np.isfinite(part) if len(best) < most else np.isfinite(part) & (part > values.min())
        more = np.flatnonzero(above)
        best, values = np.concatenate([best, more + begin]), np.concatenate([values, part[more]])
        if len(best) > most:
            which = np.argpartition(values, len(values) - most)[-most:]
            best, values = best[which], values[which]
    order: NDArray[np.int64] = best[np.lexsort((best, -values))]
    return order


def changes(
    check: LinearCheck,
    data: bytes,
    odds_N8: NDArray[np.float32],
    extra_edits: Iterable[tuple[Edit, float]] = (),
    *,
    widest: int = WIDEST,
) -> Changes:
    """What may be changed in a check's range, and in its stored value: bits, and edits that keep the length.

    Args:
        odds_N8: of the whole file's bits; -inf for those that must stay.
        extra_edits: with their odds; those that are elsewhere or change the length are left out.
        widest: at most so many changes, the likeliest.
    """
    begin, end = check.begin, check.end
    stored_bits, stored_keys = (
        check.stored_keys() if isinstance(check, Crc) else (np.zeros(0, np.int64), np.zeros(0, np.uint64))
    )
    modulus = check.modulus
    if isinstance(check, Crc) and 8 * (end - begin) > widest:
        # The keys of all bits would take more memory than the file by far.
        bits = np.sort(likeliest(odds_N8[begin:end].ravel(), widest))
        keys = np.empty(len(bits), np.uint64)
        kernels.bit_keys_at(np.uint64(check.kind.last_bit), check.kind.refin, end - begin, bits, keys)
        odds = odds_N8[begin:end].ravel()[bits].astype(np.float64)
        bits = bits + 8 * begin
        all_keys = None
    else:
        all_keys, usable = check.keys(data)
        flat = np.flatnonzero(usable.ravel())
        bits = flat + 8 * begin
        keys = all_keys.ravel()[flat]
        odds = odds_N8[begin:end].ravel()[flat].astype(np.float64)
    edits, edit_keys, edit_odds = [], [], []
    for edit, value in extra_edits:
        if (
            not edit.growth
            and begin <= edit.offset
            and edit.end <= end
            and all_keys is not None
            and len(edit.flipped) > 1
        ):
            key = np.uint64(0)
            for bit in edit.flipped:
                key = kernels.plus(key, all_keys[bit // 8 - begin, bit % 8], np.uint64(modulus))
            edits.append(edit)
            edit_keys.append(key)
            edit_odds.append(value)
    bits = np.concatenate([bits, stored_bits, 8 * len(data) + np.arange(len(edits), dtype=np.int64)])
    keys = np.concatenate([keys, stored_keys, np.array(edit_keys, np.uint64)])
    odds = np.concatenate([odds, odds_N8.reshape(-1)[stored_bits].astype(np.float64), np.array(edit_odds, np.float64)])
    odds = told_apart(odds)
    order = likeliest(odds, widest)
    return Changes(bits[order], keys[order], odds[order], modulus, data, tuple(edits))


@dataclass(frozen=True)
class Sets:
    """Sets of changes that a check allows, the likeliest first.

    Attributes:
        ranks_KS: ranks in `Changes`. `odds_K`: their sums.
        tried: how many sets were covered.
    """

    ranks_KS: NDArray[np.int32]
    odds_K: NDArray[np.float64]
    tried: int


@dataclass(frozen=True)
class _Table:
    """A hash table of keys, as the compiled loops take it."""

    bucket_shift: np.uint64
    sieve_shift: np.uint64
    starts: NDArray[np.int32]
    sieve: NDArray[np.uint8]
    tags: NDArray[np.uint32]
    ids: NDArray[np.int32]

    @classmethod
    def of(cls, keys: Keys) -> _Table:
        buckets = min(24, max(4, len(keys).bit_length()))
        sieve = min(27, buckets + 4)  # one bit in 16 is set, and the sieve of a short list fits a processor's cache
        made = cls(
            np.uint64(64 - buckets),
            np.uint64(64 - sieve),
            np.zeros((1 << buckets) + 1, np.int32),
            np.zeros(1 << sieve - 3, np.uint8),
            np.empty(len(keys), np.uint32),
            np.empty(len(keys), np.int32),
        )
        kernels.fill_table(keys, *made.arguments)
        return made

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.bucket_shift, self.sieve_shift, self.starts, self.sieve, self.tags, self.ids


def pair_limit(odds_C: NDArray[np.float64], most: int) -> float:
    """The sum of odds that at most, and about, so many pairs reach."""
    if len(odds_C) * (len(odds_C) - 1) // 2 <= most:
        return -math.inf
    low, high = 2 * float(odds_C[-1]), 2 * float(odds_C[0])
    high = math.nextafter(high, math.inf)
    while high - low > 1e-9 * max(1.0, abs(high)):
        middle = (low + high) / 2
        count = kernels.count_pairs(odds_C, middle)
        if count > most:
            low = middle
        else:
            high = middle
            if count > 0.98 * most:
                break
    return high


def flip_sets(
    changes: Changes,
    target: int,
    size: int,
    *,
    kept: int = 4096,
    table_pairs: int = TABLE_PAIRS,
    probe_pairs: int = PROBE_PAIRS,
    triple_pairs: int = TRIPLE_PAIRS,
    bits: int = 32,
) -> Sets:
    """Sets of `size` changes, 1 to 4, whose keys sum to the target: the `kept` likeliest by the sum of their odds.

    Of one or two changes all sets are covered; of three, those of which the likeliest pair is among `triple_pairs`; of four, those that
    consist of a pair among the `table_pairs` likeliest and one among `probe_pairs`.

    Args:
        bits: of the check. Of narrow ones, which are met by chance more often, less is covered.
    """
    if not 1 <= size <= MOST_FLIPS:
        raise ConfigError(
            f"flips: got {size}; must be 1 to {MOST_FLIPS}", field="most_flips", tries=(Give("most_flips", MOST_FLIPS),)
        )
    odds_K = np.empty(kept, np.float64)
    sets_KS = np.full((kept, 4), -1, np.int32)
    odds_C, keys_C = changes.odds_C, changes.keys_C
    modulus, wanted = np.uint64(changes.modulus), np.uint64(target)
    most = ACCIDENTS << min(bits, 36)  # sets that may be covered
    count, tried = 0, len(odds_C)
    if size == 2:
        C = min(len(odds_C), math.isqrt(2 * most))
        odds_C, keys_C = odds_C[:C], keys_C[:C]
    if len(odds_C) < size:
        tried = 0
    elif size == 1:
        count = kernels.singles(odds_C, keys_C, wanted, odds_K, sets_KS)
    elif size < 4:
        table = _Table.of(keys_C)
        if size == 2:
            tried = len(odds_C) * (len(odds_C) - 1) // 2
            count = kernels.pairs(odds_C, keys_C, modulus, wanted, *table.arguments, odds_K, sets_KS)
        else:
            pairs = max(1, min(triple_pairs, most // len(odds_C)))
            low = pair_limit(odds_C, pairs)
            tried = kernels.count_pairs(odds_C, low) * len(odds_C) // 3
            count = kernels.triples(odds_C, keys_C, modulus, wanted, low, *table.arguments, odds_K, sets_KS)
    else:
        table_pairs = max(1, min(table_pairs, math.isqrt(most)))
        low = pair_limit(odds_C, table_pairs)
        room = min(table_pairs, len(odds_C) * (len(odds_C) - 1) // 2)
        keys_P, firsts_P, seconds_P = np.empty(room, np.uint64), np.empty(room, np.int32), np.empty(room, np.int32)
        P = kernels.fill_pairs(odds_C, keys_C, modulus, low, keys_P, firsts_P, seconds_P)
        table = _Table.of(keys_P[:P])
        low = pair_limit(odds_C, max(table_pairs, min(probe_pairs, most // table_pairs)))
        tried = P * kernels.count_pairs(odds_C, low) // 6
        count = kernels.quadruples(
            odds_C, keys_C, modulus, wanted, low, keys_P[:P], firsts_P, seconds_P, *table.arguments, odds_K, sets_KS
        )
    order = np.argsort(-odds_K[:count], kind="stable")
    return Sets(sets_KS[order, :size], odds_K[order], int(tried))


# What only CRCs can do: a register can be run backwards.


@dataclass(frozen=True)
class Bursts:
    """Runs of bytes that make up for a CRC's difference: exactly one at each position, of which the likeliest are kept.

    Attributes:
        offsets_K: where each begins. `patterns_KB`: what its bytes are XORed with. `scores_K`: how likely, roughly, in nats.
        tried: positions that were looked at.
    """

    offsets_K: NDArray[np.int64]
    patterns_KB: NDArray[np.uint8]
    scores_K: NDArray[np.float64]
    tried: int

    def edit(self, data: bytes, k: int) -> Edit:
        """One of them as an edit, without the bytes at its ends that stay."""
        touched = np.flatnonzero(self.patterns_KB[k])
        begin, end = int(touched[0]), int(touched[-1]) + 1
        at = int(self.offsets_K[k]) + begin
        old = data[at : at + end - begin]
        return Edit(at, old, bytes(a ^ int(b) for a, b in zip(old, self.patterns_KB[k, begin:end], strict=True)))


_CHUNK = 1 << 18


def bursts(
    check: Crc,
    data: bytes,
    *,
    cost_N: NDArray[Any] | None = None,
    may_change_N: NDArray[np.bool_] | None = None,
    kept: int = 4096,
) -> Bursts:
    """Runs of bytes, as wide as the CRC at most, that repair it: the `kept` likeliest.

    They are scored cheaply: a byte that is touched was surprising (`cost_N`, in bits), each costs what a byte costs on average, and what
    comes is more frequent in this file than what goes.

    Args:
        cost_N: the surprise of each byte of the file, in bits; where it is not known, all cost the same.
        may_change_N: which bytes of the file may change.
    """
    kind, begin, end = check.kind, check.begin, check.end
    width = kind.width // 8
    bytes_N = np.frombuffer(data, np.uint8)
    frequency = np.log(np.bincount(bytes_N[begin:end], minlength=256) + 0.5)
    state = np.uint64(check.target(data))
    offsets, patterns, scores = [], [], []
    for last in range(end, begin, -_CHUNK):
        first = max(begin, last - _CHUNK)
        packed_N = np.empty(last - first, np.uint64)
        state = np.uint64(
            kernels.burst_patterns(
                kind.table, kind.inverse, np.uint64(kind.width - 8), np.uint64(kind.mask), state, packed_N
            )
        )
        shifts_B = 8 * np.arange(width, dtype=np.uint64)
        pattern_NB = kind.order.astype(np.uint8)[((packed_N[:, None] >> shifts_B) & np.uint64(0xFF)).astype(np.int64)]
        at_NB = np.arange(first, last)[:, None] + np.arange(width)
        touched_NB = pattern_NB != 0
        # A pattern that begins with a zero is that of the next position.
        usable_N = touched_NB[:, 0] & ~(touched_NB & (at_NB >= end)).any(1)
        if may_change_N is not None:
            usable_N &= ~(touched_NB & ~may_change_N[np.minimum(at_NB, len(data) - 1)]).any(1)
        which = np.flatnonzero(usable_N)
        pattern_NB, touched_NB, at_NB = pattern_NB[which], touched_NB[which], np.minimum(at_NB[which], len(data) - 1)
        old_NB = bytes_N[at_NB]
        gain_NB = frequency[old_NB ^ pattern_NB] - frequency[old_NB] - math.log(255)
        if cost_N is not None:
            gain_NB = gain_NB + math.log(2) * np.asarray(cost_N)[at_NB]
        score_N = np.where(touched_NB, gain_NB, 0.0).sum(1)
        best = likeliest(score_N, kept)
        offsets.append(which[best] + first)
        patterns.append(pattern_NB[best])
        scores.append(score_N[best])
    joined = np.concatenate(scores)
    best = likeliest(joined, kept)
    return Bursts(np.concatenate(offsets)[best], np.concatenate(patterns)[best], joined[best], end - begin)


def lost_bytes(check: Crc, data: bytes, size: int = 1, *, most: int = 65536) -> list[Edit]:
    """Runs of `size` bytes, at most the CRC's width, that are missing: where, and which. The end of the range moves.

    For one byte and 32 bits, one in 2^24 places fits by chance.
    """
    kind, begin = check.kind, check.begin
    end = check.received_end(size)
    if end < begin:
        return []
    part = np.frombuffer(data, np.uint8)[begin:end]
    offsets, runs = np.empty(most, np.int64), np.empty(most, np.uint64)
    count = kernels.lost_runs(
        *_machine(kind),
        np.uint64(_wanted(check, data)),
        np.uint64(kind.run(data[begin:end])),
        part,
        size,
        offsets,
        runs,
    )
    return [
        Edit(begin + int(offsets[k]), b"", bytes(int(kind.order[int(runs[k]) >> 8 * i & 255]) for i in range(size)))
        for k in range(count)
    ]


def extra_bytes(check: Crc, data: bytes, size: int = 1, *, most: int = 65536) -> list[Edit]:
    """Runs of `size` bytes that are too much, doubled ones among them."""
    kind, begin = check.kind, check.begin
    end = min(check.received_end(-size), len(data))
    if end - begin <= size:
        return []
    part = np.frombuffer(data, np.uint8)[begin:end]
    offsets = np.empty(most, np.int64)
    count = kernels.extra_runs(
        *_machine(kind),
        np.uint64(_wanted(check, data)),
        np.uint64(kind.run(data[begin : end - size])),
        part,
        size,
        offsets,
    )
    return [
        Edit(begin + at, data[begin + at : begin + at + size], b"")
        for at in (int(offset) for offset in offsets[:count])
    ]


def range_guesses(
    check: Crc, data: bytes, lost: tuple[int, int], guesses: Iterable[bytes] = ()
) -> Iterator[tuple[Edit, float]]:
    """What may have been in a range of known length that is lost.

    A range that is no wider than the CRC has one solution, whose rank is that among the guesses. For a longer one guesses are taken: as they are, and with a run of few bytes
    corrected at any place of the range; a run of more than half of the CRC's width would fit by chance.

    Yields:
        edits, each with the logarithm of how many others were as likely, and tried.
    """
    kind, (first, last) = check.kind, lost
    if not check.begin <= first < last <= check.end:
        raise BitStreamError(
            f"lost: got bytes {first}:{last}; they must be in the {check.end - check.begin} bytes from {check.begin} on that {check.name} covers",
            field="lost",
        )
    size, width = last - first, kind.width // 8
    before = kind.run(data[check.begin : first])
    after = int(
        kernels.crc_backward(
            *_machine(kind), np.uint64(_wanted(check, data)), np.frombuffer(data, np.uint8)[last : check.end]
        )
    )
    old = data[first:last]

    def patterns(guess: bytes) -> NDArray[np.uint64]:
        packed = np.empty(size, np.uint64)
        difference = np.uint64(kind.run(guess, before) ^ after)
        kernels.burst_patterns(
            kind.table, kind.inverse, np.uint64(kind.width - 8), np.uint64(kind.mask), difference, packed
        )
        return packed

    def corrected(guess: bytes, at: int, pattern: int) -> bytes:
        made = bytearray(guess)
        for i in range(width):
            byte = int(kind.order[pattern >> 8 * i & 255])
            if byte:
                made[at + i] ^= byte
        return bytes(made)

    if size <= width:
        pattern = int(patterns(bytes(size))[0])
        if pattern >> 8 * size == 0:
            made_up = corrected(bytes(size), 0, pattern)
            # Some bytes always fit, whatever is wrong elsewhere. What speaks for these is that they are among the likely ones.
            rank = next((number for number, guess in enumerate(guesses, 1) if guess == made_up), None)
            yield Edit(first, old, made_up), math.log(rank) if rank else size * math.log(256)
        return
    few = max(1, width // 2)
    shifts_B = 8 * np.arange(width, dtype=np.uint64)
    seen = set()
    for number, guess in enumerate(guesses, 1):
        if len(guess) != size:
            raise BitStreamError(f"guesses: got one of {len(guess)} bytes; must be {size}", field="lost")
        if kind.run(guess, before) == after:
            made = [guess]
        else:
            packed = patterns(guess)
            touched_NB = (packed[:, None] >> shifts_B) & np.uint64(0xFF) != 0
            ends_N = np.where(touched_NB, np.arange(1, width + 1), 0).max(1) + np.arange(size)
            usable = touched_NB[:, 0] & (touched_NB.sum(1) <= few) & (ends_N <= size)
            made = [corrected(guess, int(at), int(packed[at])) for at in np.flatnonzero(usable)]
        for new in made:
            if new not in seen:
                seen.add(new)
                changed = sum(a != b for a, b in zip(guess, new, strict=True))
                yield (
                    Edit(first, old, new),
                    math.log(number) + (math.log(size) + changed * math.log(255) if changed else 0.0),
                )


def _machine(kind: Any) -> tuple[Any, ...]:
    return kind.table, kind.inverse, kind.order, np.uint64(kind.width - 8), np.uint64(kind.mask)


def _wanted(check: Crc, data: Bytes) -> int:
    """The register that the range should end with. A stored value is where it is in the file as received."""
    return check.kind.register(check.expected(data))
