"""Bit histories: what was seen in a context, in one byte.

A history is (zeros, ones, latest bit), with counts bounded so that all fit into a byte. When a bit contradicts many of the other kind, half
of those are forgotten, because data changes and recent bits tell more. The probability that belongs to a history is not defined here;
every expert learns it (`Tables.chance`).

Source: Mahoney 2005 (bit history states of PAQ6 and later); the bounds below are our own.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Bound of the larger count, by the smaller count: long runs are kept, mixed histories are short.
BOUNDS = (40, 24, 12, 8, 6, 5)


class Histories(NamedTuple):
    """The state machine of histories.

    Attributes:
        after: (256, 2): the next history, after a 0 and after a 1.
        counts: (256, 2): zeros and ones of each history; 0 is the empty history, longer ones have larger numbers.
    """

    after: NDArray[np.uint8]
    counts: NDArray[np.int64]


def _fits(zeros: int, ones: int) -> bool:
    few, many = sorted((zeros, ones))
    return few < len(BOUNDS) and many <= BOUNDS[few]


def step(zeros: int, ones: int, bit: int) -> tuple[int, int]:
    """The counts after one more bit."""
    count = [zeros, ones]
    count[bit] += 1
    if count[1 - bit] > 2:
        count[1 - bit] = count[1 - bit] // 2 + 1
    while not _fits(*count):
        if count[bit] >= count[1 - bit]:
            count[int(count[1] >= count[0])] -= 1
        else:
            count[1 - bit] -= 1
    return count[0], count[1]


@lru_cache(maxsize=1)
def _numbers() -> dict[tuple[int, int, int], int]:
    """Of every (zeros, ones, latest bit), by length. A run says its latest bit itself; a mixed history has two forms."""
    pairs = [(a, b) for a in range(BOUNDS[0] + 1) for b in range(BOUNDS[0] + 1) if _fits(a, b)]
    number: dict[tuple[int, int, int], int] = {}
    for zeros, ones in sorted(pairs, key=lambda pair: (sum(pair), pair)):
        for latest in (0, 1) if zeros and ones else (int(ones > 0),):
            number[zeros, ones, latest] = len(number)
    assert len(number) <= 256
    return number


@lru_cache(maxsize=1)
def histories() -> Histories:
    """All histories, numbered by length."""
    number = _numbers()
    after, counts = np.zeros((256, 2), dtype=np.uint8), np.zeros((256, 2), dtype=np.int64)
    for (zeros, ones, _), index in number.items():
        counts[index] = zeros, ones
        for bit in (0, 1):
            a, b = step(zeros, ones, bit)
            after[index, bit] = number[a, b, bit if a and b else int(b > 0)]
    return Histories(after, counts)


NO_WAY = 2


@lru_cache(maxsize=1)
def toward() -> NDArray[np.uint8]:
    """(256, 256): the first bit of the shortest way from one history to another, or NO_WAY. Of several ways, the one with a zero first."""
    after, count = histories().after, len(_numbers())
    table = np.full((256, 256), NO_WAY, dtype=np.uint8)
    for begin in range(count):
        first: dict[int, int] = {}
        reached = [(int(after[begin, bit]), bit) for bit in (0, 1)]
        while reached:
            more = []
            for history, bit in reached:
                if history not in first:
                    first[history] = bit
                    more += [(int(following), bit) for following in after[history]]
            reached = more
        table[begin, list(first)] = list(first.values())
    return table


@lru_cache(maxsize=1)
def sums() -> NDArray[np.uint8]:
    """(256, 256): the history of two streams together: the first, and then the bits that lead to the second.

    A few histories no bits lead to; older banks that were merged have them. Their counts are added, and scaled down to the bounds.
    """
    number, after, way = _numbers(), histories().after, toward()
    table = np.zeros((256, 256), dtype=np.uint8)
    for (b0, b1, b_latest), j in number.items():
        bits, history = [], 0
        while history != j and way[history, j] != NO_WAY:
            bits.append(way[history, j])
            history = int(after[history, bits[-1]])
        ended = np.arange(256)
        for bit in bits:
            ended = after[ended, bit].astype(np.int64)
        table[:, j] = ended
        for (a0, a1, a_latest), i in () if history == j else number.items():
            zeros, ones = a0 + b0, a1 + b1
            while not _fits(zeros, ones):
                zeros, ones = (zeros - 1, ones) if zeros >= ones else (zeros, ones - 1)
            latest = b_latest if j else a_latest
            table[i, j] = number[zeros, ones, latest if zeros and ones else int(ones > 0)]
    return table
