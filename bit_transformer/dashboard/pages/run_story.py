"""What a run says: samples of its text, and events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nicegui import ui

from bit_transformer.dashboard import formats
from bit_transformer.dashboard.bytecells import cells_html
from bit_transformer.dashboard.client import ServerError, decoded
from bit_transformer.dashboard.layout import Frame
from bit_transformer.dashboard.parts import box, card, empty, text

SHOWN = 60  # of each, the latest
QUIET = ("sample", "state")
TITLES = {
    "changed": "Settings changed",
    "paused": "Paused",
    "continued": "Continued",
    "stepped": "Single updates",
    "checkpoint": "Checkpoint kept",
    "trigger": "Trigger",
    "growth": "Grown",
    "drift": "Drift",
    "gate": "Gate",
    "notice": "Notice",
}
TONES = {
    "trigger": "paused",
    "drift": "failed",
    "gate": "failed",
    "paused": "paused",
    "growth": "finished",
    "changed": "running",
}


class Story:
    """Samples and events of a run.

    Attributes:
        rewound: whether they have to be read again.
    """

    def __init__(self, frame: Frame, name: str) -> None:
        self.frame, self.name = frame, name
        self.new: list[Mapping[str, Any]] = []
        self.rewound = False

    def build_samples(self) -> None:
        """The place for samples."""
        with card("Samples", note="what the model writes by itself during training; the newest first"):
            self.no_samples = empty(
                "notes",
                "No samples yet",
                "The training writes one now and then, as `sample_bytes` in its settings says.",
            )
            self.samples = ui.element("div")

    def build_events(self) -> None:
        """The place for events."""
        with card("Events", note="the newest first"):
            self.no_events = empty(
                "history", "Nothing happened yet", "Pauses, changed settings, growth, triggers and alerts appear here."
            )
            self.events = ui.element("div").classes("timeline").props("role=log aria-label=Events")

    def begin(self, happenings: Sequence[Mapping[str, Any]]) -> None:
        """Show everything so far."""
        self.samples.clear()
        self.events.clear()
        samples = [one for one in happenings if one.get("kind") == "sample"][-SHOWN:]
        events = [one for one in happenings if one.get("kind") not in QUIET][-SHOWN:]
        for one in [*samples, *events]:
            self._add(one)
        self._emptiness()

    def hear(self, happening: Mapping[str, Any]) -> None:
        """Something that just happened; it is shown at the next flush."""
        self.new.append(happening)

    async def flush(self) -> None:
        """Show what came since the last time."""
        if self.rewound:
            self.rewound = False
            try:
                found = await happenings_of(self.frame, self.name)
            except ServerError:
                return  # the banner says it
            self.new.clear()
            self.begin(found)
        new, self.new = self.new, []
        for one in new:
            self._add(one)
        if new:
            self._emptiness()

    def _emptiness(self) -> None:
        self.no_samples.set_visibility(not self.samples.default_slot.children)
        self.no_events.set_visibility(not self.events.default_slot.children)

    def _add(self, one: Mapping[str, Any]) -> None:
        kind = str(one.get("kind", ""))
        if kind == "sample":
            self._put(self.samples, lambda: _sample(one))
        elif kind not in QUIET:
            self._put(self.events, lambda: _event(one))

    @staticmethod
    def _put(place: ui.element, build: Any) -> None:
        with place:
            build().move(target_index=0)
        while len(place.default_slot.children) > SHOWN:
            place.default_slot.children[-1].delete()


async def happenings_of(frame: Frame, name: str, most: int = 20_000) -> list[dict[str, Any]]:
    """Everything that happened to a run, asked for page by page.

    Raises:
        ServerError: the server refuses.
        ServerDown: it does not answer.
    """
    found: list[dict[str, Any]] = []
    while len(found) < most:
        more = await frame.server.get(f"runs/{name}/happenings", after=found[-1]["id"] if found else 0)
        if not more:
            break
        found += more
    return found


def _sample(one: Mapping[str, Any]) -> ui.element:
    detail = one.get("detail") or {}
    prompt = decoded(detail.get("prompt"))
    data = prompt + decoded(detail.get("data"))
    with box("sample") as made:
        text(f"step {formats.count(one.get('step'))} · {formats.ago(one.get('at'))}", kinds="muted small")
        ui.html(cells_html(data, prompt=len(prompt)), sanitize=False).classes("bytes")
    return made


def _event(one: Mapping[str, Any]) -> ui.element:
    kind = str(one.get("kind", ""))
    with box("item") as made:
        text(
            f"step {formats.count(one.get('step'))}" if one.get("step") is not None else "", kinds="muted small nowrap"
        )
        text(formats.ago(one.get("at")), kinds="muted small nowrap")
        with box("bar"):
            text(TITLES.get(kind, kind), kinds=f"badge {TONES.get(kind, '')}")
            text(said(kind, one.get("detail") or {}))
    return made


def said(kind: str, detail: Mapping[str, Any]) -> str:
    """What an event says, in words."""
    if "text" in detail:
        return str(detail["text"])
    if kind == "trigger" and "metric" in detail:
        side = "above" if detail.get("above") is not None else "below"
        line = detail.get(side)
        return f"{detail['metric']} {side} {formats.plain(line)}: {detail.get('action', '')}"
    return ", ".join(
        f"{key} {formats.plain(value)}" for key, value in formats.flattened(detail).items() if value is not None
    )
