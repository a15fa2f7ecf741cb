"""What is known of a whole map at a glance: means and peaks of cells, how much is above each threshold, where edges are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bit_transformer.service.maps.scale import finite, in_steps
from bit_transformer.surprisal.records import SurpriseMap

BLOCK = 1 << 16  # bytes that the page unpacks at once
CELLS = 1 << 16  # at most: a Hilbert curve of 256 by 256
PIECE = 16 * BLOCK  # bytes in memory at once
GAPS = (0, 16, 256)  # ranges so far apart may count as one
REACH = 64  # bytes before and after, of which an edge is the difference
MILLI = 1000  # means are kept in thousandths of bits


@dataclass(frozen=True)
class Overview:
    """A map at a glance. Costs are in tenths of bits.

    Attributes:
        bits: of the whole file.
        means: (cells,) thousandths of bits, on average. Cell k of K begins at byte k N // K.
        peaks: (cells,) the highest cost.
        edges: (cells,) the strongest edge, 0 where there is none.
        counts: (256,) how many bytes have each cost.
        edge_counts: (256,) how many edges have each strength.
        starts: for each of `GAPS`, (256,) how many ranges there are at or above each threshold.
        highest: (blocks,) the highest cost in each block.
        highest_edge: (blocks,) the strongest edge.
        lowest: for each of `GAPS`, (blocks,): no range starts in the block for a threshold at or under this.
    """

    bits: float
    means: NDArray[np.uint16]
    peaks: NDArray[np.uint8]
    edges: NDArray[np.uint8]
    counts: NDArray[np.int64]
    edge_counts: NDArray[np.int64]
    starts: tuple[NDArray[np.int64], ...]
    highest: NDArray[np.uint8]
    highest_edge: NDArray[np.uint8]
    lowest: tuple[NDArray[np.uint8], ...]


def bounds(size: int, cells: int) -> NDArray[np.int64]:
    """Where each cell begins, and where the last ends."""
    return np.arange(cells + 1, dtype=np.int64) * size // max(cells, 1)


def look(surprise: SurpriseMap) -> Iterator[int | Overview]:
    """Read all costs once. Yields how many bytes were read, from time to time, and at the end the overview."""
    costs, size = surprise.costs, len(surprise.costs)
    cells, blocks = min(size, CELLS), -(-size // BLOCK)
    begins = bounds(size, cells)
    sums, peaks, edges = np.zeros(cells), np.zeros(cells, np.uint8), np.zeros(cells, np.uint8)
    counts, edge_counts = np.zeros(256, np.int64), np.zeros(256, np.int64)
    rises = [np.zeros(257, np.int64) for _ in GAPS]
    highest, highest_edge = np.zeros(blocks, np.uint8), np.zeros(blocks, np.uint8)
    lowest = tuple(np.zeros(blocks, np.uint8) for _ in GAPS)
    for begin in range(0, size, PIECE):
        end = min(begin + PIECE, size)
        steps, before = _around(costs, begin, end, max(GAPS) + 1)
        piece = steps[before : before + end - begin]
        edge = edges_of(costs, begin, end)
        first, last = np.searchsorted(begins, [begin, end - 1], side="right") - 1
        parts = np.maximum(begins[first : last + 1], begin) - begin
        here = slice(first, last + 1)
        sums[here] += np.add.reduceat(finite(costs[begin:end]), parts, dtype=np.float64)
        peaks[here] = np.maximum(peaks[here], np.maximum.reduceat(piece, parts))
        edges[here] = np.maximum(edges[here], np.maximum.reduceat(edge, parts))
        counts += np.bincount(piece, minlength=256)
        edge_counts += np.bincount(edge, minlength=256)
        starts = np.arange(0, end - begin, BLOCK)
        which = slice(begin // BLOCK, begin // BLOCK + len(starts))
        highest[which] = np.maximum.reduceat(piece, starts)
        highest_edge[which] = np.maximum.reduceat(edge, starts)
        for gap, rise, low in zip(GAPS, rises, lowest, strict=True):
            # A range starts where a byte is at or above the threshold, and none of the gap + 1 bytes before is.
            most = highest_before(steps, gap + 1)[before : before + end - begin]
            up = piece > most
            rise += np.bincount(most[up] + np.int64(1), minlength=257) - np.bincount(
                piece[up] + np.int64(1), minlength=257
            )
            low[which] = np.minimum.reduceat(most, starts)
        yield end
    sizes = np.maximum(np.diff(begins), 1)
    found = [np.cumsum(rise)[:256] for rise in rises]
    for each in found:
        each[0] = min(size, 1)  # all bytes cost 0 or more
    edge_counts[0] = 0
    yield Overview(
        float(sums.sum()),
        np.rint(sums * MILLI / sizes).astype(np.uint16),
        peaks,
        edges,
        counts,
        edge_counts,
        tuple(found),
        highest,
        highest_edge,
        lowest,
    )


def edges_of(costs: NDArray[np.float16], begin: int, end: int) -> NDArray[np.uint8]:
    """The edges among bytes: by how many tenths of bits the means of 64 bytes before and after differ, where no edge within 64 bytes is
    stronger; 0 elsewhere. Of two that are as strong, the first counts. The page computes the same.
    """
    size = len(costs)
    steps, before = _around(costs, begin, end, 2 * REACH)
    sums = np.concatenate(([0], np.cumsum(steps, dtype=np.int64)))
    at = np.arange(begin - REACH, end + REACH)  # edges are needed a little farther than they are asked for
    inside = np.flatnonzero((at >= REACH) & (at <= size - REACH))
    strengths = np.zeros(len(at), np.uint8)
    where = at[inside] - begin + before
    difference = np.abs(sums[where + REACH] - 2 * sums[where] + sums[where - REACH])
    strengths[inside] = (difference + REACH // 2) // REACH
    earlier = highest_before(strengths, REACH)
    later = highest_before(strengths[::-1], REACH)[::-1]
    return np.where((strengths > earlier) & (strengths >= later), strengths, 0)[REACH : REACH + end - begin]


def highest_before(values: NDArray[np.uint8], reach: int) -> NDArray[np.uint8]:
    """The highest of the `reach` values before each, which does not count itself."""
    span, highest = 1, values
    while 2 * span <= reach:
        highest = np.maximum(highest, _later(highest, span))
        span *= 2
    return _later(np.maximum(highest, _later(highest, reach - span)), 1)


def _later(values: NDArray[np.uint8], by: int) -> NDArray[np.uint8]:
    moved = np.zeros_like(values)
    moved[by:] = values[: max(0, len(values) - by)]
    return moved


def _around(costs: NDArray[np.float16], begin: int, end: int, reach: int) -> tuple[NDArray[np.uint8], int]:
    """Costs in steps, with those around, and how many are before."""
    first = max(0, begin - reach)
    return in_steps(costs[first : end + reach]), begin - first


def hilbert(order: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Columns and rows of the 4**order cells along a Hilbert curve, from the upper left corner to the upper right."""
    x = y = np.zeros(1, np.int64)
    for level in range(order):
        side = 1 << level
        x, y = (
            np.concatenate((y, x, x + side, 2 * side - 1 - y)),
            np.concatenate((x, y + side, y + side, side - 1 - x)),
        )
    return x, y
