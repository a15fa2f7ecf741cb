"""A run that has no record yet: its job waits in the queue, or reads the data first."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from bit_transformer.dashboard.client import ServerError
from bit_transformer.dashboard.layout import Frame
from bit_transformer.dashboard.parts import (
    Progress,
    Trouble,
    badge,
    box,
    button,
    card,
    empty,
    heading,
    link_button,
    set_badge,
    text,
)
from bit_transformer.dashboard.rows import TRAININGS


class Waiting:
    """What is shown in place of a run until it has made its first update."""

    def __init__(self, frame: Frame, name: str) -> None:
        self.frame, self.name = frame, name
        self.job: dict[str, Any] = {}
        self.changed = self.there = False
        frame.listen(self._hear)

    async def build(self, refused: ServerError) -> None:
        """Show the job, or that there is no such run."""
        found = [job for job in await self.frame.server.get("jobs") if job.get("run") == self.name]
        found = [job for job in found if job["operation"] in TRAININGS]
        if not found:
            with card(), empty("search_off", f"No run {self.name}", str(refused)):
                link_button("All runs", "/", icon="arrow_back")
            return
        self.job = dict(found[0])
        with box("head"):
            heading(self.name, 1)
            self.badge = badge("starting")
            ui.element("div").classes("grow")
            self.stop = button("Stop", self._stop, icon="stop")
        with card("Before the first update"):
            self.words = text("", "p", "muted")
            self.progress = Progress()
            self.trouble = Trouble()
            self.log = text("", "pre", "log")
        self._show()
        await self._read_log()
        self.frame.every(0.3, self._flush)
        self.frame.every(3.0, self._read_log)

    def _hear(self, kind: str, found: dict[str, Any]) -> None:
        if kind == "run" and found.get("id") == self.name and not found.get("removed"):
            self.there = True
        elif kind == "job" and found.get("id") == self.job.get("id"):
            self.job |= found
            self.changed = True

    def _flush(self) -> None:
        if self.there:
            self.there = False
            self.frame.again()
        elif self.changed:
            self.changed = False
            self._show()

    def _show(self) -> None:
        state = str(self.job.get("state"))
        open_ = state in ("queued", "running")
        set_badge(self.badge, {"running": "starting"}.get(state, state))
        self.stop.set_visibility(open_)
        if state == "queued":
            self.words.set_text("It waits until another job has ended.")
            self.progress.hide()
        elif open_:
            self.words.set_text("It reads the data and gets ready. The curves appear here with the first update.")
            self.progress.show(self.job.get("progress"))
        else:
            self.words.set_text(
                f"The job has {'ended' if state == 'finished' else f'{state}'} before its first update."
            )
            self.progress.hide()
        if error := self.job.get("error"):
            self.trouble.show(str(error.get("message", error)))

    async def _stop(self) -> None:
        with self.trouble.guard():
            await self.frame.server.post(f"jobs/{self.job['id']}/stop")

    async def _read_log(self) -> None:
        if not self.frame.desk.feed.up and self.log.text:
            return
        try:
            found = await self.frame.server.get(f"jobs/{self.job['id']}/log")
        except ServerError:
            return  # there is none yet
        self.log.set_text(found.get("text") or "It has said nothing so far.")
