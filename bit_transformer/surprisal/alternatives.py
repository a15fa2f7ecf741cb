"""What else could have stood there: how much likelier a file gets if a bit of it is flipped back, or some bytes are replaced.

Each alternative is read by the banks as they are at its place, forwards and backwards, together with some bytes beyond it, because a wrong byte
also spoils what is predicted after it. The two differences of log-likelihood are two estimates of one number; their mean is taken.
"""

# Shapes: N bytes, V alternatives, P places, R bytes of all alternatives.
from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bit_transformer.experts.bank import ExpertBank, Tell, ignore
from bit_transformer.surprisal.reading import Bytes, bit_costs_of

BEYOND = 8  # bytes after an alternative that are read with it
AT_ONCE = 1 << 21  # bytes of alternatives that are read in one pass
Ints = NDArray[np.int64]
_FLIPS = (128 >> np.arange(8)).astype(np.uint8)


class Alternatives(NamedTuple):
    """Other bytes in the place of some of a file.

    Attributes:
        begin, length: (V,) what is replaced.
        start: (V + 1,) the new bytes are `new[start[v] : start[v + 1]]`.
    """

    begin: Ints
    length: Ints
    start: Ints
    new: Bytes

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, bytes]]) -> Alternatives:
        """From rows of begin, length and new bytes."""
        start = np.concatenate(([0], np.cumsum([len(new) for _, _, new in rows], dtype=np.int64)))
        begin, length = (np.array([row[i] for row in rows], dtype=np.int64) for i in (0, 1))
        return cls(begin, length, start, np.frombuffer(b"".join(new for _, _, new in rows), dtype=np.uint8))

    @classmethod
    def flips(cls, data: Bytes, place_P: Ints) -> Alternatives:
        """The eight flips of each of some bytes: V = 8 P, the most significant bit first."""
        begin = np.repeat(place_P, 8)
        new = (data[place_P][:, None] ^ _FLIPS).ravel()
        return cls(begin, np.ones(len(begin), dtype=np.int64), np.arange(len(begin) + 1, dtype=np.int64), new)

    def turned(self, size: int) -> Alternatives:
        """The same of the file from back to front."""
        count = np.diff(self.start)
        new = self.new[
            np.repeat(self.start[1:] - 1, count) - (np.arange(len(self.new)) - np.repeat(self.start[:-1], count))
        ]
        return Alternatives(size - self.begin - self.length, self.length, self.start, new)


def gains(
    data: Bytes,
    banks: tuple[ExpertBank, ExpertBank],
    alternatives: Alternatives,
    tell: Tell = ignore,
) -> NDArray[np.float64]:
    """How much likelier each alternative makes the file, in nats: (V,).

    Args:
        banks: about to read the data from front to back and from back to front; they learn it.
        tell: called with the bytes of the file that were passed since its last call; each way counts.
    """
    if not len(alternatives.begin):
        return np.empty(0)
    ahead, back = banks
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(_gains, data, ahead, alternatives, tell)
        two = pool.submit(_gains, data[::-1], back, alternatives.turned(len(data)), tell)
        return (one.result() + two.result()) * (math.log(2) / 2)


def _gains(data: Bytes, bank: ExpertBank, alternatives: Alternatives, tell: Tell) -> NDArray[np.float64]:
    """The same one way, in bits: piece by piece of the file."""
    order = np.argsort(alternatives.begin, kind="stable")
    begin_V = alternatives.begin[order]
    made = np.empty(len(order))
    stream = bank.stream()
    room = np.cumsum(np.diff(alternatives.start)[order] + BEYOND)
    first, passed = 0, 0
    while first < len(order) or passed < len(data):
        last = first
        if first < len(order):
            last = max(first + 1, int(np.searchsorted(room, (room[first - 1] if first else 0) + AT_ONCE)))
        while first < last < len(order) and begin_V[last] == begin_V[last - 1]:
            last += 1
        end = int(begin_V[last]) if last < len(order) else len(data)
        made[order[first:last]] = _gains_in(data, bank, stream, alternatives, order[first:last], passed, end)
        tell(end - passed)
        first, passed = last, end
    return made


def _gains_in(
    data: Bytes,
    bank: ExpertBank,
    stream: object,
    alternatives: Alternatives,
    which: Ints,
    passed: int,
    end: int,
) -> NDArray[np.float64]:
    """Gains of the alternatives that begin in [passed, end], while the bank reads these bytes."""
    begin, length = alternatives.begin[which], alternatives.length[which]
    places, place_of = np.unique(np.stack((begin, length)), axis=1, return_inverse=True)
    place_of = place_of.reshape(-1)
    # What stands there now is one more alternative for each place.
    all_begin = np.concatenate((begin, places[0]))
    all_length = np.concatenate((length, places[1]))
    size = np.concatenate((np.diff(alternatives.start)[which], places[1]))
    after = np.minimum(BEYOND, len(data) - all_begin - all_length)
    order = np.argsort(all_begin, kind="stable")
    total = (size + after)[order]
    start = np.concatenate(([0], np.cumsum(total)))
    v = np.repeat(order, total)
    j = np.arange(start[-1]) - np.repeat(start[:-1], total)
    is_new, is_old = (v < len(which)) & (j < size[v]), (v >= len(which)) & (j < size[v])
    replaced = np.empty(len(v), dtype=np.uint8)
    first_new = np.concatenate((alternatives.start[which], np.zeros(len(places[0]), dtype=np.int64)))
    replaced[is_new] = alternatives.new[(first_new[v] + j)[is_new]]
    at = np.where(is_old, all_begin[v] + j, all_begin[v] + all_length[v] + j - size[v])
    replaced[~is_new] = data[at[~is_new]]
    piece = np.ascontiguousarray(data[passed:end])
    one = bank.variants(piece, stream, all_begin[order] - passed, start, replaced, learn=True)  # type: ignore[arg-type]
    sums = np.concatenate(([0.0], np.cumsum(bit_costs_of(replaced, one).sum(1, dtype=np.float64))))
    cost = np.empty(len(order))
    cost[order] = sums[start[1:]] - sums[start[:-1]]
    made: NDArray[np.float64] = cost[len(which) :][place_of] - cost[: len(which)]
    return made
