"""Guesses, the likeliest first, for checks of which nothing but yes or no is known: hashes, and CRCs of inflated bytes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from bit_transformer.errors import BitStreamError
from bit_transformer.proof import kernels
from bit_transformer.proof.checks import Check, Inflated, Stream
from bit_transformer.proof.edits import Edit
from bit_transformer.proof.linear import MOST_FLIPS, Changes, likeliest, told_apart

# Shapes: N bytes, C changes with the likeliest first, B sets of a batch, S changes of a set.

Ranks = NDArray[np.int32]

_FIRST_BATCH, _LARGEST_BATCH = 256, 1 << 16
_STEP = 2048  # bytes between two states of a hash that are kept
_STATES = {True: 256, False: 4096}  # at most; an inflater's take 40 kB each
_NONE = 1 << 62


@dataclass(frozen=True)
class Progress:
    """How far a search is.

    Attributes:
        stage: what is looked for, in words.
        tried: sets of changes so far. `per_second`: the latest rate.
        log_odds: of the sets that are tried now, in nats. `seconds`: since the beginning.
    """

    stage: str
    tried: int
    per_second: float
    log_odds: float
    seconds: float


Tell = Callable[[Progress], bool | None]


def best_first(
    odds_C: NDArray[np.float64], most_flips: int = MOST_FLIPS
) -> Iterator[tuple[NDArray[np.float64], Ranks]]:
    """All sets of 1 to `most_flips` changes by the sum of their odds, the highest first, in batches.

    Nothing is kept of those before, so it can go on for as long as one likes. Each batch is what lies between two sums; the lower one is
    chosen so that the batch has about the wanted size, which doubles.

    Args:
        odds_C: falling.

    Yields:
        sums (B,), falling; ranks (B, S), padded with -1.
    """
    C, sizes = len(odds_C), range(1, min(most_flips, len(odds_C)) + 1)
    if not C:
        return
    at, sums = np.empty(MOST_FLIPS + 1, np.int64), np.empty(MOST_FLIPS + 1, np.float64)
    lowest = min(float(odds_C[-size:].sum()) for size in sizes) - 1.0
    top = max(float(odds_C[:size].sum()) for size in sizes)
    wanted, step, high = _FIRST_BATCH, 1.0, math.inf
    below = top
    while high > lowest:
        low = below - step
        odds_B, ranks_BS = np.empty(4 * wanted, np.float64), np.empty((4 * wanted, most_flips), np.int32)
        count = 0
        for size in sizes:
            found = kernels.sets_between(odds_C, size, low, high, _NONE, True, at, sums, count, odds_B, ranks_BS)
            if found < 0:
                count = -1
                break
            count += found
        if count < 0 and below - step / 2 < below:
            step /= 2
            continue
        if count < 0:  # sums that cannot be told apart
            wanted *= 2
            continue
        high = below = low
        step = step * 2 if count < wanted // 2 else step / 1.5 if count > 2 * wanted else step
        if count:
            order = np.argsort(-odds_B[:count], kind="stable")
            yield odds_B[order], ranks_BS[order]
            wanted = min(2 * wanted, _LARGEST_BATCH)


def rank_of(changes: Changes, edits: Sequence[Edit], most_flips: int = MOST_FLIPS) -> float:
    """How many sets come before some edits in `best_first`, counted without listing them; infinity where an edit is not among the changes."""
    wanted = {bit for edit in edits if len(edit.flipped) for bit in edit.flipped}
    flat = 8 * len(changes.data)
    others = {flat + changes.edits.index(edit) for edit in edits if edit in changes.edits}
    wanted -= {bit for edit in edits if edit in changes.edits for bit in edit.flipped}
    ranks = np.flatnonzero(np.isin(changes.bits_C, sorted(wanted | others)))
    missing = len(ranks) < len(wanted | others) or any(not edit.flipped and edit not in changes.edits for edit in edits)
    if missing or not len(ranks) or len(ranks) > most_flips:
        return math.inf
    total = 0.0
    for rank in ranks:
        total += float(changes.odds_C[rank])
    return count_above(changes.odds_C, total, most_flips)


def count_above(odds_C: NDArray[np.float64], total: float, most_flips: int = MOST_FLIPS, most: int = 10**13) -> float:
    """How many sets of 1 to `most_flips` changes have odds that sum to more than a number; infinity where it is more than `most`."""
    at, sums = np.empty(MOST_FLIPS + 1, np.int64), np.empty(MOST_FLIPS + 1, np.float64)
    nothing, no_sets, count = np.empty(0, np.float64), np.empty((0, MOST_FLIPS), np.int32), 0
    for size in range(1, min(most_flips, len(odds_C)) + 1):
        low = math.nextafter(total, math.inf)
        count += kernels.sets_between(odds_C, size, low, math.inf, most, False, at, sums, 0, nothing, no_sets)
        if count >= most:
            return math.inf
    return float(count)


def guessable(
    check: Check,
    data: bytes,
    odds_N8: NDArray[np.float32],
    extra_edits: Iterable[tuple[Edit, float]] = (),
    *,
    widest: int = 1 << 22,
) -> Changes:
    """What may be changed in a check's range: bits and edits of any kind, the `widest` likeliest."""
    begin, end = check.begin, check.end
    odds = odds_N8[begin:end].ravel()
    bits = np.sort(likeliest(odds, widest))
    chosen = [(edit, value) for edit, value in extra_edits if begin <= edit.offset and edit.end <= end]
    edits, values = tuple(edit for edit, _ in chosen), np.array([value for _, value in chosen], np.float64)
    all_odds = told_apart(np.concatenate([odds[bits].astype(np.float64), values]))
    all_bits = np.concatenate([bits + 8 * begin, 8 * len(data) + np.arange(len(edits), dtype=np.int64)])
    order = likeliest(all_odds, widest)
    return Changes(all_bits[order], np.zeros(len(order), np.uint64), all_odds[order], 0, data, edits)


class Trials:
    """Tests many files that differ in few places from one: what comes before the first change is read once.

    Args:
        check: what is tested. `changes`: what sets of ranks mean.
    """

    def __init__(self, check: Check, changes: Changes) -> None:
        self.check, self.changes, self.data = check, changes, changes.data
        size = check.end - check.begin
        self.step = max(_STEP, -(-size // _STATES[isinstance(check, Inflated)]))
        self._states: list[Stream] = [check.stream(self.data)]

    def _state(self, block: int) -> Stream:
        """The check after the blocks before one, as received."""
        view = memoryview(self.data)
        while len(self._states) <= block:
            begin = self.check.begin + (len(self._states) - 1) * self.step
            state = self._states[-1].copy()
            state.update(view[begin : min(begin + self.step, self.check.end)])
            self._states.append(state)
        return self._states[block]

    def passing(self, ranks_BS: Ranks, pool: ThreadPoolExecutor | None = None, threads: int = 1) -> list[int]:
        """Which rows of a batch pass."""
        bits_BS = np.where(ranks_BS >= 0, self.changes.bits_C[np.maximum(ranks_BS, 0)], _NONE)
        flat = 8 * len(self.data)
        plain_B = (np.where(ranks_BS >= 0, bits_BS, 0) < flat).all(1)
        rows = np.flatnonzero(plain_B)
        sorted_BS = np.sort(bits_BS[rows], axis=1)
        # By first change, then by second: a row of one change comes before those that go on from it.
        keys = np.where(sorted_BS == _NONE, -1, sorted_BS)
        order = np.lexsort(keys.T[::-1])
        rows, sorted_BS = rows[order], sorted_BS[order]
        if len(rows):
            last = int(sorted_BS[-1, 0]) // 8 - self.check.begin
            self._state(last // self.step)
        found: list[int] = []
        if pool is None or threads == 1 or len(rows) < 64:
            found += self._plain(rows, sorted_BS)
        else:
            edges = np.linspace(0, len(rows), threads + 1).astype(int)
            parts = [slice(int(a), int(b)) for a, b in pairwise(edges)]
            for part in pool.map(lambda part: self._plain(rows[part], sorted_BS[part]), parts):
                found += part
        for row in np.flatnonzero(~plain_B):
            if self._passes([int(rank) for rank in ranks_BS[row] if rank >= 0]):
                found.append(int(row))
        return sorted(found)

    def _plain(self, rows: NDArray[np.int64], bits_BS: NDArray[np.int64]) -> list[int]:
        """Rows of flips, in order."""
        found, step = [], self.step
        work = bytearray(self.data[self.check.begin : self.check.end])
        view, shift = memoryview(work), 8 * self.check.begin
        group, read = -1, 0
        for row, bits in zip(rows.tolist(), (bits_BS - shift).tolist(), strict=True):
            first, *rest = [bit for bit in bits if bit < _NONE - shift]
            if first != group:
                if group >= 0:
                    work[group >> 3] ^= 0x80 >> (group & 7)
                group = first
                work[group >> 3] ^= 0x80 >> (group & 7)
                read = (first >> 3) // step * step
                going = self._states[read // step].copy()
            if rest:
                begins = (rest[0] >> 3) // step * step
                if begins > read:
                    going.update(view[read:begins])
                    read = begins
                for bit in rest:
                    work[bit >> 3] ^= 0x80 >> (bit & 7)
            if not going.failed:
                stream = going.copy()
                stream.update(view[read:])
                if stream.good():
                    found.append(row)
            for bit in rest:
                work[bit >> 3] ^= 0x80 >> (bit & 7)
        return found

    def _passes(self, ranks: list[int]) -> bool:
        """A set with edits that are more than flips."""
        edits = self.changes.edits_of(ranks)
        if edits is None:
            return False
        begin = self.check.begin
        end = min(len(self.data), self.check.received_end(sum(edit.growth for edit in edits)))
        block = min(edits[0].offset, end - 1) - begin
        stream = self._state(block // self.step).copy()
        at, view = begin + block // self.step * self.step, memoryview(self.data)
        for edit in edits:
            stream.update(view[at : edit.offset])
            stream.update(edit.new)
            at = edit.end
        stream.update(view[at:end])
        return stream.good()


@dataclass(frozen=True)
class Guess:
    """A guess that passes: the edits, the sum of their odds, and how many were tried until the end of its batch."""

    edits: tuple[Edit, ...]
    odds: float
    tried: int


def guesses(
    check: Check,
    changes: Changes,
    *,
    most_flips: int = MOST_FLIPS,
    seconds: float = 60.0,
    most: int | None = None,
    threads: int = 1,
    tell: Tell | None = None,
    stage: str = "",
) -> Iterator[Guess | Progress]:
    """Tries sets of changes, the likeliest first, against one check.

    It ends after some seconds, after `most` sets, or when `tell` returns False.

    Yields:
        what passes; after each batch how far it is.
    """
    if check.end <= check.begin:
        raise BitStreamError(
            f"proof: got a check of no bytes at {check.begin}; it must cover at least one", field="proofs"
        )
    trials, tried, began = Trials(check, changes), 0, time.monotonic()
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for odds_B, ranks_BS in best_first(changes.odds_C, most_flips):
            if most is not None and tried + len(odds_B) > most:
                odds_B, ranks_BS = odds_B[: most - tried], ranks_BS[: most - tried]
            # Batches are cut so that the time is looked at a few times in a second, however slow a check is.
            at, piece = 0, min(len(odds_B), 256)
            while at < len(odds_B):
                now = time.monotonic()
                part = slice(at, at + piece)
                rows = trials.passing(ranks_BS[part], pool, threads)
                tried += len(odds_B[part])
                spent = max(time.monotonic() - now, 1e-6)
                for row in rows:
                    edits = changes.edits_of(int(rank) for rank in ranks_BS[part][row] if rank >= 0)
                    if edits:
                        yield Guess(edits, float(odds_B[part][row]), tried)
                progress = Progress(
                    stage or check.name,
                    tried,
                    len(odds_B[part]) / spent,
                    float(odds_B[part][-1]),
                    time.monotonic() - began,
                )
                yield progress
                if (tell is not None and tell(progress) is False) or time.monotonic() - began > seconds:
                    return
                at += piece
                piece = int(min(_LARGEST_BATCH, max(64, piece * min(4.0, 0.25 / spent))))
            if most is not None and tried >= most:
                return
