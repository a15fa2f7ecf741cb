"""The list of all runs, kept up to date from the feed, for every page that shows runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bit_transformer.dashboard.client import Server
from bit_transformer.dashboard.sparks import Point, extended, spread

Row = dict[str, Any]
STATUSES = ("running", "paused", "starting", "queued", "finished", "stopped", "failed", "killed")
ENDED = ("finished", "stopped", "failed", "killed")
TRAININGS = ("train", "train_further", "distill", "resume")  # operations whose job makes or moves a run


class RunList:
    """All runs, newest first, and the trainings that have no record yet: they wait, or read their data.

    Attributes:
        rows: runs by name.
        jobs: open jobs that train, by number.
        version: goes up whenever something changed.
        loaded: whether it was read since the last interruption.
    """

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.jobs: dict[int, dict[str, Any]] = {}
        self.version = 0
        self.loaded = False
        self._ending: set[int] = set()  # jobs whose run has ended

    async def load(self, server: Server) -> None:
        """Read the whole list again.

        Raises:
            ServerError: the server refuses.
            ServerDown: it does not answer.
        """
        found = await server.get("runs")
        self.rows = {row["id"]: row for row in found}
        self.jobs = {job["id"]: job for job in await server.get("jobs") if is_open(job)}
        self._ending = {number for number, job in self.jobs.items() if job.get("begun")}
        self.loaded = True
        self.version += 1

    def take(self, kind: str, found: Mapping[str, Any]) -> None:
        """Take in an event of the feed."""
        if kind in ("down", "reset"):
            self.loaded = False
        elif kind == "run":
            self._take_row(dict(found))
        elif kind == "metrics":
            self._take_points(found)
        elif kind == "job":
            self._take_job(dict(found))
        elif kind == "rewound" and found.get("run") in self.rows:
            self.version += 1
        else:
            return
        self.version += 1

    def every(self) -> list[Row]:
        """All rows, as they are to be shown."""
        jobs = [job for job in self.jobs.values() if job.get("run")]
        new = [row_of_job(job) for job in reversed(jobs) if job["run"] not in self.rows]
        return [
            *new,
            *({**row, "status": self.status(name, str(row.get("status")))} for name, row in self.rows.items()),
        ]

    def status(self, name: str, status: str) -> str:
        """Where a run stands: one that has ended, and whose job waits or gets ready again, is queued or starting."""
        job = next(
            (job for job in self.jobs.values() if job.get("run") == name and job["id"] not in self._ending), None
        )
        return str(row_of_job(job)["status"]) if job is not None and status in ENDED else status

    def _take_job(self, job: dict[str, Any]) -> None:
        if is_open({**self.jobs.get(job.get("id", 0), {}), **job}):
            self.jobs[job["id"]] = {**self.jobs.get(job["id"], {}), **job}
        else:
            self.jobs.pop(job.get("id", 0), None)

    def _take_row(self, row: Row) -> None:
        name = row.get("id", "")
        if row.get("removed"):
            self.rows.pop(name, None)
        elif name in self.rows:
            if row.get("status") in ENDED and self.rows[name].get("status") not in ENDED:
                self._ending |= {job["id"] for job in self.jobs.values() if job.get("run") == name}
            self.rows[name] = {**self.rows[name], **row}
        else:
            self.rows = {name: {"spark": [], **row}, **self.rows}

    def _take_points(self, found: Mapping[str, Any]) -> None:
        row = self.rows.get(found.get("run", ""))
        series = found.get("series", {})
        if row is None or not series:
            return
        row |= found.get("live") or {}
        if points := series.get("train_bpb"):
            new = [(x, y) for x, y in zip(points["step"], points["mean"], strict=True) if y is not None]
            row["curve"] = extended(curve_of(row), new)
            row["train_bpb"] = points["mean"][-1]
        if points := series.get("val_bpb"):
            row["val_bpb"] = points["mean"][-1]
        steps = [points["step"][-1] for points in series.values() if points.get("step")]
        row["step"] = max([row.get("step") or 0, *steps])


def curve_of(row: Row) -> list[Point]:
    """The points of a run's small curve: as the server gave it, or as it was continued since."""
    return row["curve"] if "curve" in row else spread(row.get("spark") or [], row.get("step") or 0)


def is_open(job: Mapping[str, Any]) -> bool:
    """Whether a job trains, and waits or runs."""
    return job.get("operation") in TRAININGS and job.get("state") in ("queued", "running")


def row_of_job(job: Mapping[str, Any]) -> Row:
    """A training that has not reported yet, as a run."""
    status = "queued" if job["state"] == "queued" else "starting"
    return {"id": job["run"], "status": status, "created": job.get("created"), "job": job["id"], "step": 0, "spark": []}


def chosen(rows: Iterable[Row], text: str = "", statuses: Sequence[str] = ()) -> list[Row]:
    """The runs whose name, note or status has all words of a text, and whose status is one of some."""
    words = text.lower().split()
    return [
        row
        for row in rows
        if (not statuses or row.get("status") in statuses)
        and all(word in f"{row.get('id')} {row.get('note') or ''} {row.get('status')}".lower() for word in words)
    ]


def ordered(rows: Sequence[Row], key: str, descending: bool) -> list[Row]:
    """Runs by a column; those without a value are last either way."""
    known = [row for row in rows if row.get(key) is not None]
    unknown = [row for row in rows if row.get(key) is None]
    return [*sorted(known, key=lambda row: row[key], reverse=descending), *unknown]
