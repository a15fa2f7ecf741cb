"""What is normal: how clean documents of each length measure, and how odd another one is beside them.

A document can be odd in five ways: dear (more bits per byte than clean text), cheap (fewer), repeating itself (C is low), in a loop (it copies its
own copy), or unlike the reference (S is low). Each has a table of clean documents by length, and a surprise: minus the logarithm of the fraction of them
that are at least as far out. Within the table that is counted. Beyond the last tenth of it, the tail is taken to be exponential with the mean excess of
that tenth (Balkema and de Haan 1974; Pickands 1975: excesses over a high threshold), so that what is odder than everything clean is still in order.

A document's oddness is the largest of its surprises. Its percentile is the percentage of clean documents of about that length whose oddness is lower, so it is
even in [0, 100] for clean documents, whatever their distribution. Between two lengths of the table, the percentile is in between.
"""

# Shapes: L lengths, R rows, F = 5 ways to be odd.
from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bit_transformer.errors import CheckpointError
from bit_transformer.quality.measuring import Measures

Way = Literal["dear", "cheap", "repeats", "loops", "unlike"]
WAYS: tuple[Way, ...] = ("dear", "cheap", "repeats", "loops", "unlike")
COLUMNS = ("bpb", "C", "S", "copied")  # of the rows that are kept
LENGTHS = tuple(round(16 * 2 ** (half / 2)) for half in range(25))  # 16 bytes to 64 KiB
LEAST_ROWS = 60  # clean documents of a length; with fewer its table is left out
_TAIL = 0.9
_CLEAR = math.log(200)  # surprise of one clean document in so many
_LEAST_EXCESS = (0.02, 0.02, 0.005, 0.3, 0.005)  # of the ways: bits per byte, C, the logarithm of copied bytes, S


class Side:
    """One side of a distribution: how surprising high values are.

    Args:
        values: of clean documents.
        least: smallest mean excess, in the unit of the values.
    """

    def __init__(self, values: Sequence[float], least: float) -> None:
        self.values = sorted(values)
        n = len(self.values)
        self.edge = self.values[min(n - 1, int(_TAIL * n))]
        above = [value - self.edge for value in self.values[bisect_right(self.values, self.edge) :]]
        self.share = max(len(above), 0.5) / n
        self.excess = max(least, sum(above) / len(above) if above else 0.0)

    def surprise(self, value: float) -> float:
        """Minus the natural logarithm of the fraction of clean values that are at least as high."""
        if value <= self.edge:
            return -math.log1p(-bisect_left(self.values, value) / len(self.values))
        return (value - self.edge) / self.excess - math.log(self.share)


class Odd(NamedTuple):
    """How odd a document is.

    Attributes:
        percentile: percentage of clean documents of about its length that are less odd.
        oddness: minus the logarithm, to base 2, of the fraction that are at least as odd; it goes on where the percentile is 100.
        way: in what it is most surprising.
    """

    percentile: float
    oddness: float
    way: Way


class Table:
    """Clean documents of one length.

    Args:
        rows_RC: see `COLUMNS`.
    """

    def __init__(self, rows_RC: NDArray[np.float32]) -> None:
        self.rows = rows_RC
        ways = [_ways(*row) for row in rows_RC.astype(np.float64).tolist()]
        self.sides = [Side(column, least) for column, least in zip(zip(*ways, strict=True), _LEAST_EXCESS, strict=True)]
        self.oddness = Side([max(self._surprises(row)) for row in ways], 0.5)

    def _surprises(self, ways: tuple[float, ...]) -> list[float]:
        return [side.surprise(value) for side, value in zip(self.sides, ways, strict=True)]

    def judge(self, ways: tuple[float, ...]) -> tuple[float, Way, float]:
        """Minus the logarithm of the fraction of clean documents that are at least as odd; in what, and how surprising that is."""
        surprises = self._surprises(ways)
        most = max(surprises)
        way = WAYS[surprises.index(most)]
        if way == "unlike" and surprises[0] > _CLEAR:  # the same in bits per byte, which says more to people
            way = "dear"
        return self.oddness.surprise(most), way, most

    def span(self, column: str) -> tuple[float, float]:
        """Where 95 % of clean documents are."""
        return self._spans[column]

    @cached_property
    def _spans(self) -> dict[str, tuple[float, float]]:
        low, high = np.quantile(self.rows, (0.025, 0.975), axis=0).tolist()
        return dict(zip(COLUMNS, zip(low, high, strict=True), strict=True))


class Normal:
    """Tables of clean documents by length.

    Args:
        tables: by length in bytes, ascending; at least one.
    """

    def __init__(self, tables: dict[int, NDArray[np.float32]]) -> None:
        self.lengths = list(tables)
        self.tables = [Table(rows_RC) for rows_RC in tables.values()]
        self._logs = [math.log(length) for length in self.lengths]

    def __repr__(self) -> str:
        counts = [len(table.rows) for table in self.tables]
        return (
            f"Normal({min(counts)} to {max(counts)} documents of each of {len(counts)} lengths, {self.lengths[0]} to "
            f"{self.lengths[-1]:,} bytes)"
        )

    @property
    def shortest(self) -> int:
        """Bytes of the shortest document that can be judged."""
        return self.lengths[0]

    def near(self, size: int) -> int:
        """Index of the table whose length is nearest."""
        at = bisect_left(self._logs, math.log(max(1, size)))
        if at in (0, len(self._logs)):
            return min(at, len(self._logs) - 1)
        return at if self._logs[at] + self._logs[at - 1] <= 2 * math.log(size) else at - 1

    def judge(self, found: Measures) -> Odd:
        """How odd a document is; of at least `shortest` bytes. Those longer than all tables are compared with the longest."""
        kept = (float(np.float32(getattr(found, name))) for name in COLUMNS)  # rounded as the rows are: C has ties
        ways = _ways(*kept)
        place = math.log(found.size)
        at = min(len(self._logs) - 1, bisect_left(self._logs, place))
        odd, way, most = self.tables[at].judge(ways)
        if at and place < self._logs[at]:
            share = (self._logs[at] - place) / (self._logs[at] - self._logs[at - 1])
            below, other, more = self.tables[at - 1].judge(ways)
            least = min(odd, below)
            odd = least - math.log(share * math.exp(least - below) + (1 - share) * math.exp(least - odd))
            way = other if more * share > most * (1 - share) else way
        return Odd(100.0 * (1.0 - min(1.0, math.exp(-odd))), max(0.0, odd) / math.log(2), way)

    def words(self, found: Measures, way: Way) -> str:
        """In what a document is odd, with the values."""
        table = self.tables[self.near(found.size)]
        if way in ("dear", "cheap"):
            low, high = table.span("bpb")
            return f"{found.bpb:.2f} bits per byte, where 95 % of clean texts have {low:.2f} to {high:.2f}"
        if way == "loops":
            rounds = 1 + found.copied / found.period if found.period else 1
            return f"{found.copied + found.period:,.0f} bytes are {rounds:.1f} times the same {found.period:,.0f}"
        name, value = ("C", found.C) if way == "repeats" else ("S", found.S)
        low, high = table.span(name)
        return f"{name} {value:.3f}, where 95 % of clean texts have {low:.3f} to {high:.3f}"

    def state(self) -> dict[str, NDArray[np.float32]]:
        """As arrays, by name."""
        return {str(length): table.rows for length, table in zip(self.lengths, self.tables, strict=True)}

    @classmethod
    def of(cls, state: dict[str, NDArray[np.float32]], source: object) -> Normal:
        """The inverse of `state`.

        Raises:
            CheckpointError: tables of other shapes, or with impossible values.
        """
        try:
            tables = {int(name): np.array(rows, dtype=np.float32) for name, rows in state.items()}
        except ValueError:
            tables = {}
        sound = all(rows.ndim == 2 and rows.shape[1] == len(COLUMNS) and len(rows) for rows in tables.values())
        if (
            not tables
            or not sound
            or not all(np.isfinite(rows).all() and (rows >= 0).all() for rows in tables.values())
        ):
            raise CheckpointError(f"{source}: has no tables of clean texts. Try `btlm fit` again")
        return cls(dict(sorted(tables.items())))


def rows_of(found: Sequence[Measures]) -> NDArray[np.float32]:
    """Measures of documents of one length, as they are kept: (R, len(COLUMNS))."""
    return np.array([[getattr(each, name) for name in COLUMNS] for each in found], dtype=np.float32)


def _ways(bpb: float, C: float, S: float, copied: float) -> tuple[float, ...]:
    """The values by way, so that high is odd. Loops have heavy tails; their logarithm has not."""
    return bpb, -bpb, -C, math.log1p(copied), -S
