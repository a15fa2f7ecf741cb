"""The queue of jobs: operations that run in processes of their own. In the same file as the run records; does not import torch."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from bit_transformer.errors import Ask, JobNotFound, QueueFull, RunBusy
from bit_transformer.runs.database import Database, now

State: TypeAlias = Literal["queued", "running", "finished", "stopped", "failed", "killed"]
STATES = get_args(State)
OPEN = ("queued", "running")
AUDITED = 100_000  # entries of the audit log that are kept
TRAININGS = ("train", "train_further", "resume", "distill")


@dataclass(frozen=True)
class JobRecord:
    """A job.

    Attributes:
        request: fields of the operation's request.
        run: the run that it trains or works on, if there is one.
        state: killed, if its process ended without a word.
        begun: whether its process has started to work; `stopping`: whether it was asked to stop; `told`: whether its process knows.
        restarts: how often it is started again after it was killed; `restarts_left`: how often it still is.
        progress: what it last said about how far it is.
        error: what went wrong: error, message, field, tries.
        result: of the operation.
        allowance: seconds that it may run, over all its processes; then it is stopped. None: no limit.
        spent: seconds that its earlier processes ran.
    """

    id: int
    operation: str
    request: dict[str, Any]
    run: str | None
    state: State
    created: str
    started: str | None
    ended: str | None
    begun: bool
    stopping: bool
    told: bool
    restarts: int
    restarts_left: int
    progress: dict[str, Any] | None
    error: dict[str, Any] | None
    result: Any
    allowance: float | None
    spent: float

    def seconds(self) -> float:
        """Seconds that it has run, over all its processes."""
        if self.started is None:
            return self.spent
        ended = datetime.fromisoformat(self.ended) if self.ended else datetime.now(timezone.utc)
        waits = self.state == "queued"  # it runs again later; its earlier processes are in `spent`
        return self.spent + (0.0 if waits else max(0.0, (ended - datetime.fromisoformat(self.started)).total_seconds()))


_COLUMNS = "id, operation, request, run, state, created, started, ended, begun, stopping, restarts, restarts_left, allowance, spent, progress, error, result"


class JobStore:
    """Jobs in an SQLite file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._open = Database(path).open

    def add(
        self,
        operation: str,
        request: Mapping[str, Any],
        run: str | None,
        restarts: int = 0,
        limit: int = 100,
        *,
        trains: bool = False,
        allowance: float | None = None,
    ) -> JobRecord:
        """Put a job at the end of the queue.

        Args:
            limit: most jobs that may wait.
            trains: it trains the run, which only one job at a time may.
            allowance: seconds that it may run.

        Raises:
            QueueFull: as many wait already.
            RunBusy: another job that has not ended trains this run.
        """
        with self._open(write=True) as db:
            db.execute("BEGIN IMMEDIATE")
            waiting = db.execute("SELECT COUNT(*) FROM jobs WHERE state = 'queued'").fetchone()[0]
            if waiting >= limit:
                raise QueueFull(f"{waiting} jobs wait already, of {limit} at most", tries=("again later",))
            if trains:
                query = f"SELECT id FROM jobs WHERE run = ? AND state IN {OPEN} AND operation IN {TRAININGS}"
                if found := db.execute(query, (run,)).fetchone():
                    raise RunBusy(
                        f"got run {run!r}; job {found[0]} trains it, or is about to",
                        field="run",
                        tries=("another name",),
                    )
            query = """INSERT INTO jobs (operation, request, run, state, created, restarts, restarts_left, allowance)
                VALUES (?, ?, ?, 'queued', ?, ?, ?, ?)"""
            values = (operation, json.dumps(request), run, now(), restarts, restarts, allowance)
            job = db.execute(query, values).lastrowid
            _tell(db, job or 0)
        return self.get(job or 0)

    def begin_after(self, number: int) -> None:
        """Give new jobs numbers after this one: processes of older jobs may still be at work."""
        with self._open(write=True) as db:
            db.execute("DELETE FROM sqlite_sequence WHERE name = 'jobs'")
            db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('jobs', ?)", (number,))

    def get(self, job: int) -> JobRecord:
        """One job.

        Raises:
            JobNotFound: no such job.
        """
        if self.path.exists():
            with self._open(write=False) as db:
                row = db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", (job,)).fetchone()
            if row:
                return _job(row)
        raise JobNotFound(f"got job {job}; there is none of that number", field="job", tries=(Ask("jobs.list"),))

    def list_jobs(self, state: str | None = None, *, run: str | None = None, most: int = 500) -> list[JobRecord]:
        """Jobs, newest first."""
        if not self.path.exists():
            return []
        where = [(column, value) for column, value in (("state", state), ("run", run)) if value is not None]
        condition = " AND ".join(f"{column} = ?" for column, _ in where) or "1"
        query = f"SELECT {_COLUMNS} FROM jobs WHERE {condition} ORDER BY id DESC LIMIT ?"
        with self._open(write=False) as db:
            return [_job(row) for row in db.execute(query, (*(value for _, value in where), most))]

    def latest_by_run(self) -> dict[str, int]:
        """The latest job of each run."""
        if not self.path.exists():
            return {}
        with self._open(write=False) as db:
            return dict(db.execute("SELECT run, MAX(id) FROM jobs WHERE run IS NOT NULL GROUP BY run"))

    def start_next(self) -> JobRecord | None:
        """Mark the first job of the queue as running, and return it. Of several callers one gets it."""
        if not self.path.exists():
            return None
        with self._open(write=False) as db:  # without a lock, as long as nothing waits
            if not db.execute("SELECT 1 FROM jobs WHERE state = 'queued' LIMIT 1").fetchone():
                return None
        with self._open(write=True) as db:
            db.execute("BEGIN IMMEDIATE")
            row = db.execute("SELECT MIN(id) FROM jobs WHERE state = 'queued'").fetchone()
            if row[0] is None:
                return None
            db.execute(
                "UPDATE jobs SET state = 'running', begun = 0, stopping = 0, started = ?, ended = NULL WHERE id = ?",
                (now(), row[0]),
            )
            _tell(db, row[0])
        return self.get(row[0])

    def begin(self, job: int) -> None:
        """Record that a job's process works."""
        with self._open(write=True) as db:
            db.execute("UPDATE jobs SET begun = 1 WHERE id = ?", (job,))

    def ask_to_stop(self, job: int) -> None:
        """Record that a job was asked to stop; one that waits ends at once."""
        with self._open(write=True) as db:
            db.execute("UPDATE jobs SET stopping = MAX(stopping, 1) WHERE id = ?", (job,))
            db.execute("UPDATE jobs SET state = 'stopped', ended = ? WHERE id = ? AND state = 'queued'", (now(), job))
            _tell(db, job)

    def told(self, job: int) -> None:
        """Record that a job's process was told to stop; a second signal would end it at once."""
        with self._open(write=True) as db:
            db.execute("UPDATE jobs SET stopping = 2 WHERE id = ?", (job,))

    def set_progress(self, job: int, progress: Mapping[str, Any]) -> None:
        """Record how far a job is."""
        with self._open(write=True) as db:
            db.execute("UPDATE jobs SET progress = ? WHERE id = ?", (json.dumps(progress), job))
            _tell(db, job)

    def add_notice(self, job: int, run: str | None, text: str) -> None:
        """Record what a job says."""
        with self._open(write=True) as db:
            query = "INSERT INTO feed (run, job, kind, at, detail) VALUES (?, ?, 'notice', ?, ?)"
            db.execute(query, (run, job, now(), json.dumps({"text": text})))

    def end(self, job: int, state: State, *, result: Any = None, error: Mapping[str, Any] | None = None) -> None:
        """Record how a job ended, unless that was recorded before."""
        with self._open(write=True) as db:
            query = "UPDATE jobs SET state = ?, ended = ?, result = ?, error = ? WHERE id = ? AND state IN ('queued', 'running')"
            kept = None if result is None else json.dumps(result)
            db.execute(query, (state, now(), kept, None if error is None else json.dumps(error), job))
            _tell(db, job)

    def again(self, job: int, *, counts: bool) -> None:
        """Put a job back into the queue, in its old place.

        Args:
            counts: whether that uses up one of its restarts.
        """
        spent = self.get(job).seconds()
        with self._open(write=True) as db:
            query = """UPDATE jobs SET state = 'queued', begun = 0, ended = NULL, error = NULL, restarts_left = restarts_left - ?,
                spent = ? WHERE id = ?"""
            db.execute(query, (int(counts), spent, job))
            _tell(db, job)

    def remove(self, job: int) -> None:
        """Remove the record of a job that has ended."""
        with self._open(write=True) as db:
            db.execute(f"DELETE FROM jobs WHERE id = ? AND state NOT IN {OPEN}", (job,))
            _tell(db, job, {"removed": True})

    # ---- the audit log ----

    def add_audit(self, client: str, method: str, path: str, status: int) -> None:
        """Record a request that writes."""
        with self._open(write=True) as db:
            query = "INSERT INTO audit (at, client, method, path, status) VALUES (?, ?, ?, ?, ?)"
            last = db.execute(query, (now(), client, method, path, status)).lastrowid or 0
            db.execute("DELETE FROM audit WHERE id <= ?", (last - AUDITED,))

    def audit(self, most: int = 200) -> list[dict[str, Any]]:
        """The latest requests that wrote, newest first."""
        if not self.path.exists():
            return []
        with self._open(write=False) as db:
            rows = db.execute("SELECT at, client, method, path, status FROM audit ORDER BY id DESC LIMIT ?", (most,))
            return [dict(zip(("at", "client", "method", "path", "status"), row, strict=True)) for row in rows]


def _tell(db: sqlite3.Connection, job: int, detail: Mapping[str, Any] | None = None) -> None:
    query = "INSERT INTO feed (run, job, kind, at, detail) VALUES ((SELECT run FROM jobs WHERE id = ?), ?, 'job', ?, ?)"
    db.execute(query, (job, job, now(), json.dumps(detail or {})))


def _job(row: tuple[Any, ...]) -> JobRecord:
    (
        number,
        operation,
        request,
        run,
        state,
        created,
        started,
        ended,
        begun,
        stopping,
        restarts,
        left,
        allowance,
        spent,
        *said,
    ) = row
    progress, error, result = (None if text is None else json.loads(text) for text in said)
    return JobRecord(
        number,
        operation,
        json.loads(request),
        run,
        state,
        created,
        started,
        ended,
        bool(begun),
        bool(stopping),
        stopping == 2,
        restarts,
        left,
        progress,
        error,
        result,
        allowance,
        spent,
    )
