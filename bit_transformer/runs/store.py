"""The run store: an SQLite file that several processes can read and write at the same time. Its path is always an argument."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeAlias

from bit_transformer.errors import Ask, Give, RunNotFound, StoreError

Status: TypeAlias = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Run:
    """The record of a training.

    Attributes:
        id: its name, unique in the store.
        folder: the folder of its files.
        created: UTC, ISO 8601.
        note: why it ended.
        config: model, train, data and provenance.
        result: of the last evaluation.
    """

    id: str
    folder: str
    created: str
    status: Status
    note: str
    config: dict[str, Any]
    result: dict[str, Any]


class RunStore:
    """Runs and their metrics in one SQLite file, which the first write makes."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @contextmanager
    def _open(self, *, write: bool) -> Iterator[sqlite3.Connection]:
        try:
            if write:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            mode = "rwc" if write else "ro"
            db = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode={mode}", uri=True, timeout=30)
            try:
                if write:
                    db.executescript(files(__package__).joinpath("schema.sql").read_text())
                with db:
                    yield db
            finally:
                db.close()
        except (sqlite3.Error, OSError) as failed:
            raise StoreError(
                f"{self.path}: the run store cannot be used ({failed})", field="store", tries=(Give("store"),)
            ) from failed

    def check_name(self, run: str, folder: Path) -> None:
        """Refuse a name that is in use.

        Raises:
            StoreError: a run in another folder has this name, or the file is not a store.
        """
        taken = next((r.folder for r in self.list_runs() if r.id == run), None)
        if taken not in (None, str(folder.resolve())):
            raise StoreError(
                f"got run name {run!r}; {taken} has it in {self.path}",
                field="out",
                tries=(Give("out"), Give("store")),
            )

    def remove(self, run: str) -> None:
        """Remove the record of a run.

        Raises:
            RunNotFound: no run of that name.
        """
        self.get(run)
        with self._open(write=True) as db:
            for table in ("metrics", "alerts"):
                db.execute(f"DELETE FROM {table} WHERE run = ?", (run,))
            db.execute("DELETE FROM runs WHERE id = ?", (run,))

    def begin(self, run: str, folder: Path, config: Mapping[str, Any]) -> None:
        """Record that a run starts. Records of an earlier run in the same folder are removed.

        Raises:
            StoreError: a run in another folder has this name.
        """
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.check_name(run, folder)
        with self._open(write=True) as db:
            for table in ("metrics", "alerts"):
                db.execute(f"DELETE FROM {table} WHERE run = ?", (run,))
            db.execute(
                "INSERT OR REPLACE INTO runs (id, folder, created, status, config) VALUES (?, ?, ?, 'running', ?)",
                (run, str(folder.resolve()), now, json.dumps(config)),
            )

    def go_on(self, run: str, step: int) -> None:
        """Record that a run continues from a step. Later metrics and alerts are removed, because the run repeats these steps.

        Raises:
            RunNotFound: no run of that name.
        """
        self.get(run)
        with self._open(write=True) as db:
            db.execute("UPDATE runs SET status = 'running', note = '' WHERE id = ?", (run,))
            for table in ("metrics", "alerts"):
                db.execute(f"DELETE FROM {table} WHERE run = ? AND step > ?", (run, step))

    def add_metrics(self, run: str, rows: list[tuple[int, str, float]]) -> None:
        """Record (step, key, value) rows. An existing value of the same step and key is replaced."""
        with self._open(write=True) as db:
            db.executemany("INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?)", [(run, *row) for row in rows])

    def add_alert(self, run: str, step: int, metric: str, detector: str, size: float) -> None:
        """Record that a detector found a drift of a metric."""
        with self._open(write=True) as db:
            db.execute("INSERT OR REPLACE INTO alerts VALUES (?, ?, ?, ?, ?)", (run, step, metric, detector, size))

    def alerts(self, run: str) -> list[tuple[int, str, str, float]]:
        """(step, metric, detector, size) of each drift, ordered by step."""
        with self._open(write=False) as db:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'alerts'").fetchone():
                return []  # an older store
            query = "SELECT step, metric, detector, size FROM alerts WHERE run = ? ORDER BY step, metric, detector"
            return [tuple(row) for row in db.execute(query, (run,))]

    def end(self, run: str, status: Status, note: str, result: Mapping[str, Any] | None = None) -> None:
        """Record how a run ended."""
        with self._open(write=True) as db:
            db.execute("UPDATE runs SET status = ?, note = ? WHERE id = ?", (status, note, run))
            if result is not None:
                db.execute("UPDATE runs SET result = ? WHERE id = ?", (json.dumps(result), run))

    def list_runs(self) -> list[Run]:
        """All runs, newest first; none if there is no store yet."""
        if not self.path.exists():
            return []
        with self._open(write=False) as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM runs ORDER BY created DESC, id").fetchall()
        return [_run(row) for row in rows]

    def get(self, run: str) -> Run:
        """The record of one run.

        Raises:
            RunNotFound: no run of that name.
        """
        if self.path.exists():
            with self._open(write=False) as db:
                row = db.execute(f"SELECT {_COLUMNS} FROM runs WHERE id = ?", (run,)).fetchone()
            if row:
                return _run(row)
        known = ", ".join(r.id for r in self.list_runs()[:5]) or "none yet"
        raise RunNotFound(
            f"got run {run!r}; a run in {self.path} is needed ({known})", field="run", tries=(Ask("runs.list"),)
        )

    def last(self, run: str, key: str) -> tuple[int, float] | None:
        """(step, value) of the last row of a metric, if any."""
        with self._open(write=False) as db:
            query = "SELECT step, value FROM metrics WHERE run = ? AND key = ? ORDER BY step DESC LIMIT 1"
            row: tuple[int, float] | None = db.execute(query, (run, key)).fetchone()
        return row

    def series(self, run: str, key: str) -> list[tuple[int, float]]:
        """(step, value) of a metric, ordered by step."""
        with self._open(write=False) as db:
            query = "SELECT step, value FROM metrics WHERE run = ? AND key = ? ORDER BY step"
            return [(int(step), float(value)) for step, value in db.execute(query, (run, key))]

    def metric_keys(self, run: str) -> list[str]:
        """Names of a run's metrics."""
        with self._open(write=False) as db:
            return [key for (key,) in db.execute("SELECT DISTINCT key FROM metrics WHERE run = ? ORDER BY key", (run,))]


_COLUMNS = "id, folder, created, status, note, config, result"


def _run(row: tuple[Any, ...]) -> Run:
    run, folder, created, status, note, config, result = row
    return Run(run, folder, created, status, note, json.loads(config), json.loads(result))
