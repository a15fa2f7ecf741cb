"""The run store: an SQLite file that several processes can read and write at the same time. Its path is always an argument."""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from bit_transformer.errors import Ask, Give, RunNotFound, StoreError
from bit_transformer.runs.curves import Curve, copy_metric, cut, keys_of, read_curve, roll_up
from bit_transformer.runs.database import Database, now

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


@dataclass(frozen=True)
class Live:
    """Where a training stands.

    Attributes:
        share: fraction of the budget spent.
        eta: seconds left.
        paused: whether it waits.
    """

    step: int
    share: float
    eta: float | None = None
    bytes_per_s: float | None = None
    paused: bool = False


@dataclass(frozen=True)
class Overview:
    """A run in a list: its record, and its latest figures."""

    run: Run
    live: Live | None
    train: tuple[int, float] | None
    validation: tuple[int, float] | None


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        id: grows with every event; readers go on from it.
        job: the job it is of, if any.
        at: UTC, ISO 8601. Only for display: clocks can go back.
    """

    id: int
    run: str | None
    job: int | None
    step: int | None
    kind: str
    at: str
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Command:
    """What a training is told: `pause`, `continue`, `step`, `change` or `checkpoint`.

    Attributes:
        due: the step after which it is carried out; None: at once.
    """

    id: int
    kind: str
    detail: dict[str, Any]
    due: int | None


@dataclass(frozen=True)
class Trigger:
    """What to do once a metric crosses a line.

    Attributes:
        above, below: the line; one of them.
        action: pause, checkpoint or notify.
        fired_at: the step at which it did.
    """

    id: int
    metric: str
    above: float | None
    below: float | None
    action: str
    fired_at: int | None = None

    def crossed(self, value: float) -> bool:
        """Whether a value is beyond the line."""
        return (self.above is not None and value > self.above) or (self.below is not None and value < self.below)


class RunStore:
    """Runs and their metrics in one SQLite file, which the first write makes."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._open = Database(path).open
        self.in_use = Database(path).in_use

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
        self._clear(run)
        with self._open(write=True) as db:
            _forget(db, run)
            db.execute("DELETE FROM runs WHERE id = ?", (run,))
            _tell(db, "run", run, detail={"removed": True})

    def _clear(self, run: str) -> None:
        """Remove the metrics of a run, each by itself, so that other trainings can write in between."""
        if self.path.exists():
            for key in self.metric_keys(run):
                with self._open(write=True) as db:
                    for table in ("metrics", "rollups"):
                        db.execute(f"DELETE FROM {table} WHERE run = ? AND key = ?", (run, key))

    def begin(self, run: str, folder: Path, config: Mapping[str, Any], *, again: bool = False) -> None:
        """Record that a run starts. Records of an earlier run in the same folder are removed.

        Args:
            again: it is the same training, which was killed before its first checkpoint: it is told again what it was told then.

        Raises:
            StoreError: a run in another folder has this name.
        """
        self.check_name(run, folder)
        self._clear(run)
        with self._open(write=True) as db:
            _forget(db, run, but_what_it_was_told=again)
            if again:
                _tell_again(db, run, 0, 0)
            db.execute(
                "INSERT OR REPLACE INTO runs (id, folder, created, status, config) VALUES (?, ?, ?, 'running', ?)",
                (run, str(folder.resolve()), now(), json.dumps(config)),
            )
            _tell(db, "rewound", run, 0)
            _tell(db, "run", run)

    def go_on(self, run: str, step: int, commands: int = 0) -> None:
        """Record that a run continues from a step. What was recorded later is removed, because the run repeats these steps.

        Args:
            commands: id of the last change of settings that the state at this step includes; later ones are made again, after the same steps.

        Raises:
            RunNotFound: no run of that name.
        """
        self.get(run)
        with self._open(write=True) as db:
            db.execute("UPDATE runs SET status = 'running', note = '', result = '{}' WHERE id = ?", (run,))
            cut(db, run, step)
            db.execute("DELETE FROM alerts WHERE run = ? AND step > ?", (run, step))
            repeated = ", ".join(f"'{kind}'" for kind in REPEATED)
            db.execute(f"DELETE FROM feed WHERE run = ? AND step > ? AND kind IN ({repeated})", (run, step))
            _tell_again(db, run, step, commands)
            db.execute("UPDATE live SET paused = 0 WHERE run = ?", (run,))
            _tell(db, "rewound", run, step)
            _tell(db, "run", run)

    def add_metrics(self, run: str, rows: Sequence[tuple[int, str, float]], live: Live | None = None) -> None:
        """Record (step, key, value) rows, and where the training stands. An existing value of the same step and key is replaced; values that are
        not finite are left out."""
        rows = [row for row in rows if math.isfinite(row[2])]
        keys, first = sorted({key for _, key, _ in rows}), min((step for step, _, _ in rows), default=0)
        with self._open(write=True) as db:
            db.executemany(
                "INSERT OR REPLACE INTO metrics (run, step, key, value) VALUES (?, ?, ?, ?)",
                [(run, *row) for row in rows],
            )
            roll_up(db, run, keys, first)
            if live is not None:
                _set_live(db, run, live)
            if rows:
                _tell(db, "metrics", run, max(step for step, _, _ in rows), {"from": first})

    def set_live(self, run: str, live: Live) -> None:
        """Record where a training stands."""
        with self._open(write=True) as db:
            _set_live(db, run, live)
            _tell(db, "run", run)

    def curves(self, run: str, keys: Sequence[str], most: int, after: int = -1) -> dict[str, Curve]:
        """Metrics after a step, each in at most `most` points; metrics without a number are left out."""
        with self._open(write=False) as db:
            found = {key: read_curve(db, run, key, most, after) for key in keys}
        return {key: curve for key, curve in found.items() if curve.step}

    def add_alert(self, run: str, step: int, metric: str, detector: str, size: float) -> None:
        """Record that a detector found a drift of a metric."""
        with self._open(write=True) as db:
            db.execute("INSERT OR REPLACE INTO alerts VALUES (?, ?, ?, ?, ?)", (run, step, metric, detector, size))
            _tell(db, "drift", run, step, {"metric": metric, "detector": detector, "size": size})

    def alerts(self, run: str) -> list[tuple[int, str, str, float]]:
        """(step, metric, detector, size) of each drift, ordered by step."""
        with self._open(write=False) as db:
            query = "SELECT step, metric, detector, size FROM alerts WHERE run = ? ORDER BY step, metric, detector"
            return [tuple(row) for row in db.execute(query, (run,))]

    def end(self, run: str, status: Status, note: str, result: Mapping[str, Any] | None = None) -> None:
        """Record how a run ended."""
        with self._open(write=True) as db:
            db.execute("UPDATE runs SET status = ?, note = ? WHERE id = ?", (status, note, run))
            if result is not None:
                db.execute("UPDATE runs SET result = ? WHERE id = ?", (json.dumps(result), run))
            db.execute("UPDATE live SET paused = 0 WHERE run = ?", (run,))
            _tell(db, "run", run)

    def sparks(self, runs: Sequence[str], most: int) -> dict[str, list[float]]:
        """Training bits per byte of many runs, each in at most `most` means."""
        with self._open(write=False) as db:
            return {run: read_curve(db, run, "train_bpb", most).mean for run in runs}

    # ---- what happened ----

    def add_happening(self, run: str, step: int | None, kind: str, detail: Mapping[str, Any] | None = None) -> None:
        """Record that something happened to a run."""
        with self._open(write=True) as db:
            _tell(db, kind, run, step, detail)

    def events(
        self,
        after: int = 0,
        *,
        run: str | None = None,
        kinds: Sequence[str] = (),
        without: Sequence[str] = (),
        most: int = 1000,
        latest: bool = False,
    ) -> list[Event]:
        """What happened after an event, the oldest first.

        Args:
            after: id of the last event that is known.
            kinds: only these; `without`: all but these.
            latest: if there are more than `most`, the latest of them, in place of the first.
        """
        if not self.path.exists():
            return []
        where, values = ["id > ?"], [after, *kinds, *without, most]
        if kinds:
            where.append(f"kind IN ({', '.join('?' * len(kinds))})")
        if without:
            where.append(f"kind NOT IN ({', '.join('?' * len(without))})")
        if run is not None:
            where.insert(0, "run = ?")
            values.insert(0, run)
        query = f"SELECT id, run, job, step, kind, at, detail FROM feed WHERE {' AND '.join(where)} ORDER BY id {'DESC' if latest else ''} LIMIT ?"
        with self._open(write=False) as db:
            rows = db.execute(query, values).fetchall()
        rows = rows[::-1] if latest else rows
        return [Event(i, of, job, step, kind, at, json.loads(detail)) for i, of, job, step, kind, at, detail in rows]

    def prune_events(self, before: int) -> int:
        """Remove old events that only say that something changed, which the records themselves have; how many. What happened to runs is kept."""
        with self._open(write=True) as db:
            query = "DELETE FROM feed WHERE id < ? AND kind IN ('metrics', 'run', 'job', 'rewound')"
            return int(db.execute(query, (before,)).rowcount)

    def last_event(self) -> int:
        """Id of the latest event; 0 if there is none."""
        if not self.path.exists():
            return 0
        with self._open(write=False) as db:
            return int(db.execute("SELECT COALESCE(MAX(id), 0) FROM feed").fetchone()[0])

    # ---- what a training is told ----

    def add_command(self, run: str, kind: str, detail: Mapping[str, Any] | None = None) -> int:
        """Tell a training something; returns the command's id."""
        with self._open(write=True) as db:
            query = "INSERT INTO commands (run, kind, detail) VALUES (?, ?, ?)"
            return int(db.execute(query, (run, kind, json.dumps(detail or {}))).lastrowid or 0)

    def commands(self, run: str) -> list[Command]:
        """What a training was told and has not carried out, in order."""
        with self._open(write=False) as db:
            query = "SELECT id, kind, detail, due FROM commands WHERE run = ? AND taken IS NULL ORDER BY id"
            rows = db.execute(query, (run,)).fetchall()
        return [Command(number, kind, json.loads(detail), due) for number, kind, detail, due in rows]

    def take_command(self, command: Command, step: int) -> None:
        """Record that a command was carried out after a step."""
        with self._open(write=True) as db:
            db.execute("UPDATE commands SET taken = ? WHERE id = ?", (step, command.id))

    def drop_changes(self, run: str) -> None:
        """Forget changes of settings: a training that failed with them must not fail with them again."""
        with self._open(write=True) as db:
            if db.execute("DELETE FROM commands WHERE run = ? AND kind = 'change'", (run,)).rowcount:
                text = "settings that were changed after the last checkpoint will be as before, because the training failed with them"
                _tell(db, "notice", run, None, {"text": text})

    def amend_command(self, command: Command, detail: Mapping[str, Any]) -> None:
        """Change what a command says, or remove it where nothing is left of it."""
        with self._open(write=True) as db:
            if detail:
                db.execute("UPDATE commands SET detail = ? WHERE id = ?", (json.dumps(detail), command.id))
            else:
                db.execute("DELETE FROM commands WHERE id = ?", (command.id,))

    def add_trigger(self, run: str, metric: str, above: float | None, below: float | None, action: str) -> int:
        """Add a trigger; returns its id."""
        with self._open(write=True) as db:
            query = "INSERT INTO triggers (run, metric, above, below, action) VALUES (?, ?, ?, ?, ?)"
            return int(db.execute(query, (run, metric, above, below, action)).lastrowid or 0)

    def triggers(self, run: str) -> list[Trigger]:
        """Triggers of a run."""
        with self._open(write=False) as db:
            query = "SELECT id, metric, above, below, action, fired_at FROM triggers WHERE run = ? ORDER BY id"
            return [Trigger(*row) for row in db.execute(query, (run,))]

    def remove_trigger(self, run: str, trigger: int) -> bool:
        """Remove a trigger; whether there was one."""
        with self._open(write=True) as db:
            return db.execute("DELETE FROM triggers WHERE run = ? AND id = ?", (run, trigger)).rowcount > 0

    def fire(self, run: str, trigger: Trigger, step: int, value: float) -> None:
        """Record that a trigger fired."""
        with self._open(write=True) as db:
            db.execute("UPDATE triggers SET fired_at = ? WHERE id = ?", (step, trigger.id))
            line = {"above": trigger.above} if trigger.above is not None else {"below": trigger.below}
            _tell(
                db, "trigger", run, step, {"metric": trigger.metric, "value": value, "action": trigger.action, **line}
            )

    def copy(self, run: str, other: str, folder: Path, config: Mapping[str, Any], step: int, note: str) -> None:
        """Record a new run that shares the history of another up to a step.

        Raises:
            StoreError: the name is taken.
        """
        self.check_name(other, folder)
        self._clear(other)
        for key in self.metric_keys(run):  # each by itself, so that other trainings can write in between
            with self._open(write=True) as db:
                copy_metric(db, run, other, key, step)
            if step > LONG_HISTORY:
                time.sleep(LOOK_AGAIN)
        with self._open(write=True) as db:
            db.execute(
                "INSERT OR REPLACE INTO runs (id, folder, created, status, note, config) VALUES (?, ?, ?, 'stopped', ?, ?)",
                (other, str(folder.resolve()), now(), note, json.dumps(config)),
            )
            db.execute(
                "INSERT INTO alerts SELECT ?, step, metric, detector, size FROM alerts WHERE run = ? AND step <= ?",
                (other, run, step),
            )
            _tell(db, "branched", other, step, {"from": run})
            _tell(db, "run", other)

    def list_runs(self) -> list[Run]:
        """All runs, newest first; none if there is no store yet."""
        if not self.path.exists():
            return []
        with self._open(write=False) as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM runs ORDER BY rowid DESC").fetchall()
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
            return keys_of(db, run)

    def overview(self, run: str | None = None) -> list[Overview]:
        """All runs with their latest figures, newest first; or one."""
        if not self.path.exists():
            return []
        latest = "(SELECT {} FROM metrics WHERE run = runs.id AND key = '{}' ORDER BY step DESC LIMIT 1)"
        figures = [latest.format(column, key) for key in ("train_bpb", "val_bpb") for column in ("step", "value")]
        query = f"""SELECT {_COLUMNS}, {", ".join(figures)}, live.step, share, eta, bytes_per_s, paused
            FROM runs LEFT JOIN live ON live.run = runs.id {"" if run is None else "WHERE runs.id = ?"}
            ORDER BY runs.rowid DESC"""
        with self._open(write=False) as db:
            rows = db.execute(query, () if run is None else (run,)).fetchall()
        return [
            Overview(
                _run(row[:7]),
                None if row[11] is None else Live(row[11], row[12], row[13], row[14], bool(row[15])),
                None if row[7] is None else (row[7], row[8]),
                None if row[9] is None else (row[9], row[10]),
            )
            for row in rows
        ]


LONG_HISTORY = 20_000  # updates whose metrics take long to copy
LOOK_AGAIN = 0.11  # seconds after which every writer that waits for SQLite's lock has looked again
_COLUMNS = "id, folder, created, status, note, config, result"
REPEATED = (
    "metrics",
    "changed",
    "checkpoint",
    "drift",
    "growth",
    "sample",
    "trigger",
)  # what a resumed training records again


def _forget(db: sqlite3.Connection, run: str, *, but_what_it_was_told: bool = False) -> None:
    """Remove all that was recorded of a run but the run itself."""
    told = () if but_what_it_was_told else ("commands", "triggers")
    for table in ("metrics", "rollups", "alerts", "live", "feed", *told):
        db.execute(f"DELETE FROM {table} WHERE run = ?", (run,))


def _tell_again(db: sqlite3.Connection, run: str, step: int, commands: int) -> None:
    """What a training was told after a step is due again: changes of settings, and triggers that fired."""
    db.execute("DELETE FROM commands WHERE run = ? AND taken IS NULL AND kind != 'change'", (run,))
    repeated = "run = ? AND kind = 'change' AND (taken > ? OR (taken = ? AND id > ?))"
    db.execute(f"UPDATE commands SET due = taken, taken = NULL WHERE {repeated}", (run, step, step, commands))
    db.execute("UPDATE triggers SET fired_at = NULL WHERE run = ? AND fired_at > ?", (run, step))


def _tell(
    db: sqlite3.Connection, kind: str, run: str, step: int | None = None, detail: Mapping[str, Any] | None = None
) -> None:
    query = "INSERT INTO feed (run, step, kind, at, detail) VALUES (?, ?, ?, ?, ?)"
    db.execute(query, (run, step, kind, now(), json.dumps(detail or {})))


def _set_live(db: sqlite3.Connection, run: str, live: Live) -> None:
    query = "INSERT OR REPLACE INTO live VALUES (?, ?, ?, ?, ?, ?)"
    db.execute(query, (run, live.step, live.share, live.eta, live.bytes_per_s, int(live.paused)))


def _run(row: tuple[Any, ...]) -> Run:
    run, folder, created, status, note, config, result = row
    return Run(run, folder, created, status, note, json.loads(config), json.loads(result))
