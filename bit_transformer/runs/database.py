"""The SQLite file of the stores: opening, and bringing files of earlier versions up to date.

Readers do not wait for writers (write-ahead logging). A transaction that was committed survives the death of its process.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path

from bit_transformer.errors import Give, StoreError

VERSION = 2  # of the schema, in `PRAGMA user_version`; 0: metrics were ordered by step; 1: jobs had no allowance
BUSY = 30.0  # seconds to wait for another writer


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class Database:
    """A file that several processes read and write. The first write makes it.

    Args:
        path: of the file. Not on a network file system, which lacks the locks.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @contextmanager
    def open(self, *, write: bool) -> Iterator[sqlite3.Connection]:
        """Within: a connection, as one transaction.

        Raises:
            StoreError: the file cannot be used, or is of a newer version.
        """
        try:
            if write:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            else:
                self._bring_up_to_date()
            mode = "rwc" if write else "ro"
            db = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode={mode}", uri=True, timeout=BUSY)
            try:
                if write:
                    db.execute("PRAGMA synchronous = NORMAL")
                    if _version(db) < VERSION:
                        _bring_up_to_date(db)
                if _version(db) > VERSION:
                    raise StoreError(
                        f"{self.path}: the run store is of a newer version of this program",
                        field="store",
                        tries=(Give("store"),),
                    )
                with db:
                    yield db
            finally:
                db.close()
        except (sqlite3.Error, OSError) as failed:
            raise StoreError(
                f"{self.path}: the run store cannot be used ({failed})", field="store", tries=(Give("store"),)
            ) from failed

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within: a connection stays open. Without one, each that is closed is the last, which copies the log into the file and waits for the disk:
        ten times as long as a small write."""
        with self.open(write=True):
            pass
        kept = sqlite3.connect(self.path, check_same_thread=False)
        try:
            kept.execute("PRAGMA user_version").fetchone()
            yield
        finally:
            kept.close()

    def _bring_up_to_date(self) -> None:
        db = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY)
        try:
            if _version(db) < VERSION:
                _bring_up_to_date(db)
        finally:
            db.close()

    def move_damaged_aside(self) -> Path | None:
        """Where the file is damaged: rename it, so that a new one can be begun. Nothing is deleted.

        Returns:
            its new name; None if it is sound, or does not exist.
        """
        if not self.path.exists():
            return None
        try:
            with self.open(write=True) as db:
                if [row[0] for row in db.execute("PRAGMA quick_check(1)")] == ["ok"]:
                    return None
        except StoreError as error:
            cause = error.__cause__
            if not isinstance(cause, sqlite3.DatabaseError) or isinstance(cause, sqlite3.OperationalError):
                raise  # locked, or not to be written: that is no damage
        aside = next(
            place
            for number in range(1, 1 << 20)
            for place in [self.path.with_name(f"{self.path.name}.damaged-{number}")]
            if not place.exists()
        )
        for ending in ("", "-wal", "-shm"):
            part = self.path.with_name(self.path.name + ending)
            if part.exists():
                part.rename(aside.with_name(aside.name + ending))
        return aside


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _bring_up_to_date(db: sqlite3.Connection) -> None:
    """Make the tables, or change those of an earlier version; another process may be at it too."""
    _write_ahead(db)
    db.execute("BEGIN IMMEDIATE")
    try:
        if _version(db) < VERSION:
            first = _version(db) == 0
            old = first and db.execute("SELECT 1 FROM sqlite_master WHERE name = 'metrics'").fetchone()
            if not first:
                db.execute("ALTER TABLE jobs ADD COLUMN allowance REAL")
                db.execute("ALTER TABLE jobs ADD COLUMN spent REAL NOT NULL DEFAULT 0")
            if old:
                db.execute("ALTER TABLE metrics RENAME TO metrics_0")
            for statement in files(__package__).joinpath("schema.sql").read_text().split(";\n"):
                db.execute(statement)
            if old:
                db.execute("INSERT INTO metrics SELECT run, key, step, value FROM metrics_0")
                db.execute("DROP TABLE metrics_0")
                _roll_up_all(db)
            db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def _write_ahead(db: sqlite3.Connection) -> None:
    """Choose write-ahead logging. SQLite does not wait here when another process does the same."""
    until = time.monotonic() + BUSY
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def _roll_up_all(db: sqlite3.Connection) -> None:
    from bit_transformer.runs.curves import roll_up

    for run, key in db.execute("SELECT DISTINCT run, key FROM metrics").fetchall():
        roll_up(db, run, [key], 0)
