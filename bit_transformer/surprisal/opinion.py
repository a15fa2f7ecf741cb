"""What a reader thinks of changes to a file: how likely each bit was flipped, and how likely the file is after several changes at once."""

# Shapes: N bytes.
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bit_transformer.experts.bank import Tell, ignore
from bit_transformer.surprisal.alternatives import BEYOND, Alternatives, gains
from bit_transformer.surprisal.reading import Bytes, Reader

LEAST_TRIED, TRIED = (
    1 << 14,
    1 / 50,
)  # bytes whose flips are read: so many, or a fraction of the file, whichever is more
EXPECTED = 2.0  # flips in a damaged file, beforehand
_UNTRIED = -9.0  # nats: of a flip in a byte that was not worth trying, less for cheaper bytes


class Change(Protocol):
    """`new` bytes in the place of `old` ones."""

    @property
    def offset(self) -> int:
        """Of the first byte."""

    @property
    def old(self) -> bytes:
        """What is there."""

    @property
    def new(self) -> bytes:
        """What may have been there."""


class Opinion:
    """A reader's opinion of a file, by reading it once and again with changes.

    Args:
        wanted: ranges of bytes in which damage is looked for; None: all.
        tell: called with the bytes that were passed, three times the file's; each way counts.

    Attributes:
        surprise_N: cost of each byte in bits, the mean of both ways.
        prior: of one flip, in nats.
        odds_N8: float32, of each flip in nats, with the prior, most significant bit first; -inf outside of what is wanted.
    """

    def __init__(
        self, data: Bytes, reader: Reader, wanted: Sequence[tuple[int, int]] | None = None, tell: Tell = ignore
    ) -> None:
        self.data, self.reader = data, reader
        self.surprise_N = reader.costs(data, tell=tell).mean
        inside_N = np.ones(len(data), dtype=bool) if wanted is None else np.zeros(len(data), dtype=bool)
        for begin, end in wanted or ():
            inside_N[begin:end] = True
        size = int(inside_N.sum())
        self.prior = math.log(EXPECTED / (8 * size))
        cost_N = np.where(inside_N, self.surprise_N, -1.0)
        count = min(size, max(LEAST_TRIED, int(size * TRIED)))
        place_P = np.sort(np.argpartition(-cost_N, count - 1)[:count]).astype(np.int64)
        guess_N = np.minimum(_UNTRIED, _UNTRIED - 4 + 0.25 * self.surprise_N)
        odds_N = np.where(inside_N, guess_N + self.prior, -np.inf).astype(np.float32)
        self.odds_N8 = np.repeat(odds_N[:, None], 8, axis=1)
        gain = gains(data, reader.banks(data), Alternatives.flips(data, place_P), tell=tell)
        self.odds_N8[place_P] = gain.reshape(-1, 8) + self.prior

    def judge(self, solutions: Sequence[Sequence[Change]]) -> NDArray[np.float64]:
        """How much likelier each set of changes makes the file, in nats, without any prior. Changes that are near each other are read together."""
        rows, owner = list[tuple[int, int, bytes]](), list[int]()
        for index, changes in enumerate(solutions):
            for row in _together(self.data, changes):
                rows.append(row)
                owner.append(index)
        made = np.zeros(len(solutions))
        if not rows:
            return made
        different = sorted(set(rows))
        gain = gains(self.data, self.reader.banks(self.data), Alternatives.of(different))
        value = dict(zip(different, gain.tolist(), strict=True))
        np.add.at(made, owner, [value[row] for row in rows])
        return made


def _together(data: Bytes, changes: Iterable[Change]) -> list[tuple[int, int, bytes]]:
    """Changes as rows of begin, length and new bytes; those whose surroundings overlap are one."""
    made = list[tuple[int, int, bytes]]()
    for change in sorted(changes, key=lambda c: c.offset):
        begin, length, new = change.offset, len(change.old), change.new
        if made:
            first, size, before = made[-1]
            gap = begin - (first + size)
            if gap < BEYOND:
                between = data[first + size : begin].tobytes()
                made[-1] = (first, begin + length - first, before + between + new)
                continue
        made.append((begin, length, new))
    return made
