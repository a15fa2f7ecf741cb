"""The parts of a server, which its routes and its tools share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from bit_transformer.errors import RunBusy
from bit_transformer.server.inference import InferenceProcess
from bit_transformer.server.scheduler import Scheduler
from bit_transformer.service.home import Home
from bit_transformer.service.jobs import OPEN
from bit_transformer.service.operations import call
from bit_transformer.service.workspace import Workspace

if TYPE_CHECKING:
    from bit_transformer.server.events import Feed


@dataclass
class State:
    """A server's parts.

    Attributes:
        inference: answers questions to models. `hands`: does quick work on files that needs torch, so that no question holds it up.
        feed: None: nobody reads events.
        started: UTC, ISO 8601.
        notes: what the owner should know, such as a damaged database that was moved aside.
    """

    home: Home
    workspace: Workspace
    scheduler: Scheduler
    inference: InferenceProcess
    hands: InferenceProcess
    feed: Feed | None
    started: str
    notes: list[str]

    @classmethod
    def of(
        cls, home: Home, *, limit: int = 1, device: str = "auto", feed: Feed | None = None, yields: bool = False
    ) -> State:
        """The parts of a server of a home, with `limit` jobs at a time (`yields`: as long as no server uses it). The store is made, or brought up to date."""
        notes = home.open_store()
        return cls(
            home=home,
            workspace=home.workspace(device),
            scheduler=Scheduler(home, limit=limit, device=device, yields=yields),
            inference=InferenceProcess(home, device),
            hands=InferenceProcess(home, "cpu"),
            feed=feed,
            started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            notes=notes,
        )

    def call(self, operation: str, **fields: Any) -> Any:
        """Carry out an operation that is quick and needs no torch, in this process."""
        return call(operation, fields, self.workspace)

    def about_to_begin(self, run: str) -> RunBusy | None:
        """Where a run is not there because its job has not come to that yet: the error that says so."""
        for job in self.home.jobs.list_jobs(run=run, most=1):
            if job.state in OPEN:
                text = f"run {run!r} has not begun yet; job {job.id} is {job.state}"
                return RunBusy(text, field="run", tries=("again in a few seconds",))
        return None

    def note_gate(self, operation: str, fields: Mapping[str, Any], windows: list[Any]) -> None:
        """Record that a run's gate blocked something that it was asked for."""
        for window in windows if operation == "generate_gated" else []:
            if isinstance(window, dict) and not window.get("allow", True):
                run = str(fields.get("run", "")).partition("@")[0]
                detail = {"why": window.get("why", ""), "margin": window.get("margin")}
                self.home.store.add_happening(run, None, "gate", detail)
