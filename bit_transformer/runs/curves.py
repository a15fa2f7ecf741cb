"""Metrics of runs of any length: means and extremes over buckets of 8, 64, 512 ... steps, kept up to date as numbers are written.

So a curve of a million steps is read from a few thousand rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BASE, LEVELS = 8, 7  # 8^7: two million steps in the largest bucket
_LEVEL_1 = """INSERT OR REPLACE INTO rollups SELECT run, key, 1, step / 8, COUNT(*), SUM(value), MIN(value), MAX(value)
    FROM metrics WHERE run = ? AND key IN ({keys}) AND step >= ? GROUP BY key, step / 8"""
_LEVEL_ABOVE = """INSERT OR REPLACE INTO rollups
    SELECT run, key, level + 1, bucket / 8, SUM(count), SUM(total), MIN(low), MAX(high)
    FROM rollups WHERE run = ? AND key IN ({keys}) AND level = ? AND bucket >= ? GROUP BY key, bucket / 8"""
# Names of a run's metrics, by jumping from one to the next; DISTINCT would read all rows.
_KEYS = """WITH RECURSIVE found (key) AS (
    SELECT MIN(key) FROM metrics WHERE run = :run UNION ALL
    SELECT (SELECT MIN(key) FROM metrics WHERE run = :run AND key > found.key) FROM found WHERE found.key IS NOT NULL)
    SELECT key FROM found WHERE key IS NOT NULL"""


@dataclass(frozen=True)
class Curve:
    """A metric by step, thinned out.

    Attributes:
        step: the last step of each point's range.
        mean, low, high: over that range.
    """

    step: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def roll_up(db: sqlite3.Connection, run: str, keys: Sequence[str], first: int) -> None:
    """Bring the buckets of some metrics up to date with numbers from step `first` on."""
    places, size = ", ".join("?" * len(keys)), 1
    for level in range(1, LEVELS + 1):
        below, size = size, size * BASE
        begin = max(0, first) // size * size
        if level == 1:
            db.execute(_LEVEL_1.format(keys=places), (run, *keys, begin))
        else:
            db.execute(_LEVEL_ABOVE.format(keys=places), (run, *keys, level - 1, begin // below))


def cut(db: sqlite3.Connection, run: str, step: int) -> None:
    """Remove the numbers of a run after a step, and what was made of them."""
    for key in keys_of(db, run):
        gone = db.execute("DELETE FROM metrics WHERE run = ? AND key = ? AND step > ?", (run, key, step))
        if gone.rowcount:
            for level in range(1, LEVELS + 1):
                query = "DELETE FROM rollups WHERE run = ? AND key = ? AND level = ? AND bucket >= ?"
                db.execute(query, (run, key, level, (step + 1) // BASE**level))
            roll_up(db, run, [key], step + 1)


def copy_metric(db: sqlite3.Connection, run: str, other: str, key: str, step: int) -> None:
    """Copy a metric up to a step to another run."""
    query = "INSERT INTO metrics SELECT ?, key, step, value FROM metrics WHERE run = ? AND key = ? AND step <= ?"
    db.execute(query, (other, run, key, step))
    for level in range(1, LEVELS + 1):  # whole buckets; the last ones are made anew
        query = """INSERT INTO rollups SELECT ?, key, level, bucket, count, total, low, high FROM rollups
            WHERE run = ? AND key = ? AND level = ? AND bucket < ?"""
        db.execute(query, (other, run, key, level, (step + 1) // BASE**level))
    roll_up(db, other, [key], step + 1)


def keys_of(db: sqlite3.Connection, run: str) -> list[str]:
    """Names of a run's metrics."""
    return [key for (key,) in db.execute(_KEYS, {"run": run})]


def read_curve(db: sqlite3.Connection, run: str, key: str, most: int, after: int = -1) -> Curve:
    """A metric after a step, in at most `most` points of equal ranges of steps."""
    first, last = (_end_of(db, run, key, after, order) for order in ("ASC", "DESC"))
    if first is None or last is None:
        return Curve([], [], [], [])
    count = _count(db, run, key, first, most)
    if count <= most:
        rows = db.execute(
            "SELECT step, value FROM metrics WHERE run = ? AND key = ? AND step > ? ORDER BY step", (run, key, after)
        ).fetchall()
        steps, values = [int(step) for step, _ in rows], [float(value) for _, value in rows]
        return Curve(steps, values, values, values)
    # The coarsest buckets of which several make a point.
    level, size = 0, 1
    while level < LEVELS and (last - first) / (size * BASE) >= 2 * most:
        level, size = level + 1, size * BASE
    if level == 0:
        query = "SELECT step, 1, value, value, value FROM metrics WHERE run = ? AND key = ? AND step > ? ORDER BY step"
        rows = db.execute(query, (run, key, after)).fetchall()
    else:
        query = """SELECT bucket, count, total, low, high FROM rollups
            WHERE run = ? AND key = ? AND level = ? AND bucket >= ? ORDER BY bucket"""
        part, whole = -(-first // size) * size, -(-first // size)
        rows = db.execute(query, (run, key, level, whole)).fetchall()
        if first < part:  # the first bucket has earlier steps too
            begun = "SELECT ?, COUNT(*), SUM(value), MIN(value), MAX(value) FROM metrics WHERE run = ? AND key = ? AND step >= ? AND step < ?"
            rows = [*db.execute(begun, (whole - 1, run, key, first, part)).fetchall(), *rows]
    return _merged(np.array(rows, dtype=np.float64), size, most, first, last)


def _end_of(db: sqlite3.Connection, run: str, key: str, after: int, order: str) -> int | None:
    """The first or last step after a step. MIN and MAX in one query would read all rows."""
    query = f"SELECT step FROM metrics WHERE run = ? AND key = ? AND step > ? ORDER BY step {order} LIMIT 1"
    row = db.execute(query, (run, key, after)).fetchone()
    return None if row is None else int(row[0])


def _count(db: sqlite3.Connection, run: str, key: str, first: int, most: int) -> int:
    """How many numbers there are from a step on, or more than `most`."""
    query = "SELECT COUNT(*) FROM (SELECT 1 FROM metrics WHERE run = ? AND key = ? AND step >= ? LIMIT ?)"
    return int(db.execute(query, (run, key, first, most + 1)).fetchone()[0])


def _merged(rows: NDArray[np.float64], size: int, most: int, first: int, last: int) -> Curve:
    """Buckets of `size` steps, in groups that each become a point."""
    step = np.minimum((rows[:, 0] + 1) * size - 1, last)
    group = np.minimum(((step - first) * most / (last - first + 1)).astype(np.int64), most - 1)
    begins = np.flatnonzero(np.diff(group, prepend=-1))
    ends = np.append(begins[1:], len(rows)) - 1
    mean = np.add.reduceat(rows[:, 2], begins) / np.add.reduceat(rows[:, 1], begins)
    low, high = np.minimum.reduceat(rows[:, 3], begins), np.maximum.reduceat(rows[:, 4], begins)
    return Curve(step[ends].astype(int).tolist(), mean.tolist(), low.tolist(), high.tolist())
