"""The list of jobs: what runs, how far it is, and what it says. It is shown on the page of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nicegui import ui

from bit_transformer.dashboard import formats
from bit_transformer.dashboard.layout import Frame
from bit_transformer.dashboard.parts import Progress, Trouble, badge, box, button, card, empty, set_badge, text

SHOWN = 40


class JobList:
    """Jobs, the newest first."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.jobs: dict[int, dict[str, Any]] = {}
        self.lines: dict[int, JobLine] = {}
        self.changed: set[int] = set()
        frame.listen(self._hear)
        frame.on_back(self.read)

    def build(self) -> None:
        """The place for the list."""
        with card("Jobs", note="work in processes of its own, which outlives the server"):
            self.trouble = Trouble()
            self.nothing = empty(
                "task_alt",
                "No jobs yet",
                "Trainings, evaluations and the like appear here while they run and afterwards.",
            )
            self.place = ui.element("div")
        self.frame.every(0.4, self._flush)

    async def read(self) -> None:
        """Read the list again."""
        with self.trouble.guard():
            found = await self.frame.server.get("jobs")
            self.jobs = {job["id"]: job for job in found[:SHOWN]}
            self.lines.clear()
            self.place.clear()
            for job in reversed(list(self.jobs.values())):
                self._add(job)
            self.nothing.set_visibility(not self.jobs)

    def _hear(self, kind: str, found: dict[str, Any]) -> None:
        if kind == "job" and "id" in found:
            self.jobs[found["id"]] = {**self.jobs.get(found["id"], {}), **found}
            self.changed.add(found["id"])

    def _flush(self) -> None:
        changed, self.changed = self.changed, set()
        for number in sorted(changed):
            job = self.jobs[number]
            if job.get("removed"):
                self.jobs.pop(number)
                if line := self.lines.pop(number, None):
                    line.box.delete()
            elif number in self.lines:
                self.lines[number].show(job)
            elif "operation" in job:
                self._add(job)
        if changed:
            self.nothing.set_visibility(not self.jobs)

    def _add(self, job: dict[str, Any]) -> None:
        with self.place:
            line = JobLine(self.frame, job, self.trouble)
            line.box.move(target_index=0)
        self.lines[job["id"]] = line


class JobLine:
    """One job."""

    def __init__(self, frame: Frame, job: dict[str, Any], trouble: Trouble) -> None:
        self.frame, self.id, self.trouble = frame, job["id"], trouble
        with box("sample") as self.box:
            with box("bar"):
                text(f"{job['id']}", kinds="muted mono")
                text(str(job["operation"])).style("font-weight: 600")
                if job.get("run"):
                    ui.link(str(job["run"]), f"/runs/{job['run']}")
                self.badge = badge(str(job["state"]))
                text(formats.ago(job.get("created")), kinds="muted small")
                ui.element("div").classes("grow")
                self.stop = button("Stop", self._stop, icon="stop", kinds="bare")
                button("Log", self._log, icon="subject", kinds="bare")
                self.remove = button("Remove", self._remove, kinds="bare risk")
            self.progress = Progress()
            self.error = Trouble()
            self.result = text("", "div", "muted small")
            self.log = text("", "pre", "log")
            self.log.set_visibility(False)
        self.show(job)

    def show(self, job: Mapping[str, Any]) -> None:
        """Show where it stands."""
        state = str(job["state"])
        set_badge(self.badge, state)
        self.stop.set_visibility(state in ("queued", "running"))
        self.remove.set_visibility(state not in ("queued", "running"))
        if state == "running" and job.get("progress"):
            self.progress.show(job["progress"])
        elif state == "running":
            self.progress.show(None)
        else:
            self.progress.hide()
        if job.get("error"):
            self.error.show(str(job["error"].get("message", job["error"])))
        self.result.set_text(said_of_result(job.get("result")))
        self.result.set_visibility(bool(job.get("result")))

    async def _stop(self) -> None:
        with self.trouble.guard():
            await self.frame.server.post(f"jobs/{self.id}/stop")

    async def _remove(self) -> None:
        with self.trouble.guard():
            await self.frame.server.delete(f"jobs/{self.id}")
            self.box.delete()

    async def _log(self) -> None:
        if self.log.visible:
            self.log.set_visibility(False)
            return
        with self.trouble.guard():
            found = await self.frame.server.get(f"jobs/{self.id}/log")
            self.log.set_text(found.get("text") or "It has said nothing so far.")
            self.log.set_visibility(True)


def said_of_result(result: Any, most: int = 6) -> str:
    """The first figures of a result."""
    if not isinstance(result, Mapping):
        return "" if result is None else formats.plain(result)[:200]
    flat = {key: value for key, value in formats.flattened(result).items() if is_figure(value) and "/" not in key}
    return " · ".join(f"{key} {formats.plain(value)}" for key, value in list(flat.items())[:most])[:400]


def is_figure(value: Any) -> bool:
    """Whether a value is short enough for a line, and no path."""
    return isinstance(value, int | float) or (isinstance(value, str) and len(value) <= 40 and "/" not in value)
