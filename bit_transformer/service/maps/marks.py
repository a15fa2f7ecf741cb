"""Ranges of a file that stand out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bit_transformer.surprisal.records import SurpriseMap

PIECE = 1 << 20  # bytes looked at at once


@dataclass(frozen=True)
class Mark:
    """A range that somebody should look at, such as damage.

    Attributes:
        begin, end: offsets in the file; the end is not included.
        label: what it is, in a few words.
        bits: how many bits speak for it.
    """

    begin: int
    end: int
    label: str
    bits: float


def ranges_above(surprise: SurpriseMap, threshold: float, *, gap: int = 0) -> Iterator[tuple[int, int]]:
    """Ranges whose bytes cost `threshold` bits or more each, in order of offset.

    Args:
        gap: ranges that are at most so many bytes apart are one.
    """
    begin = end = -1
    for at in range(0, len(surprise.costs), PIECE):
        above = np.flatnonzero(surprise.costs[at : at + PIECE] >= np.float16(threshold)) + at
        if not len(above):
            continue
        breaks = np.flatnonzero(np.diff(above) > gap + 1)
        firsts = above[np.concatenate(([0], breaks + 1))].tolist()
        lasts = above[np.concatenate((breaks, [len(above) - 1]))].tolist()
        for first, last in zip(firsts, lasts, strict=True):
            if begin >= 0 and first - end > gap:
                yield begin, end
                begin = first
            elif begin < 0:
                begin = first
            end = last + 1
    if begin >= 0:
        yield begin, end
