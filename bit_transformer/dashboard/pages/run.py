"""One run: its figures as they come, its curves, what it says, and everything that can be done to it."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from bit_transformer.dashboard import formats
from bit_transformer.dashboard.client import ServerError
from bit_transformer.dashboard.desk import Desk
from bit_transformer.dashboard.layout import Frame, replace_query
from bit_transformer.dashboard.pages.run_control import ControlPanel, Steering
from bit_transformer.dashboard.pages.run_curves import Curves
from bit_transformer.dashboard.pages.run_details import show_config, show_log
from bit_transformer.dashboard.pages.run_story import Story, happenings_of
from bit_transformer.dashboard.pages.run_waiting import Waiting
from bit_transformer.dashboard.parts import Trouble, badge, box, empty, heading, link_button, set_badge, stat, text
from bit_transformer.dashboard.rows import TRAININGS

LIVE = ("share", "eta", "bytes_per_s", "status", "parameters", "held_out_bpb", "note", "job")
TABS = {
    "curves": "Curves",
    "samples": "Samples",
    "events": "Events",
    "control": "Control",
    "config": "Config",
    "log": "Log",
}


def register(desk: Desk) -> None:
    """Add the page."""

    @ui.page("/runs/{name}")
    async def page(name: str, tab: str = "curves") -> None:
        frame = Frame(desk, name, "/")
        view = RunView(frame, name, tab if tab in TABS else "curves")
        await frame.show(view.build)


class RunView:
    """A run on the page.

    Attributes:
        row: where it stands, as in the list of runs.
        detail: its config, triggers, gate.
    """

    def __init__(self, frame: Frame, name: str, tab: str) -> None:
        self.frame, self.name, self.tab = frame, name, tab
        self.row: dict[str, Any] = {}
        self.detail: dict[str, Any] = {}
        self.changed = False
        self.curves = Curves(frame, name)
        self.story = Story(frame, name)
        frame.listen(self._hear)
        frame.on_back(self._again)

    async def build(self) -> None:
        """Read the run and show it."""
        try:
            self.detail = await self.frame.server.get(f"runs/{self.name}")
        except ServerError as refused:
            if refused.status not in (404, 409):
                raise
            await Waiting(self.frame, self.name).build(refused)
            return
        happenings = await happenings_of(self.frame, self.name)
        self.row = dict(self.detail)
        self._head()
        self._figures()
        self._show_row()
        with ui.tabs(on_change=self._tab).props("align=left outside-arrows mobile-arrows") as tabs:
            for name, label in TABS.items():
                ui.tab(name, label)
        with ui.tab_panels(tabs, value=self.tab, animated=False, keep_alive=True).classes("w-full"):
            with ui.tab_panel("curves"):
                self.curves.build(self.detail)
            with ui.tab_panel("samples"):
                self.story.build_samples()
            with ui.tab_panel("events"):
                self.story.build_events()
            with ui.tab_panel("control"):
                ControlPanel(self.steering, self.detail).build()
            with ui.tab_panel("config"):
                await show_config(self.frame, self.detail)
            with ui.tab_panel("log"):
                show_log(self.frame, lambda: self.row)
        self.story.begin(happenings)
        self.curves.mark(happenings)
        await self.curves.load()
        self.frame.every(0.15, self._flush)
        self.frame.every(2.0, self._poll)

    def _head(self) -> None:
        with box("head"):
            heading(self.name, 1)
            self.badge = badge(self.row["status"])
            ui.element("div").classes("grow")
            self.trouble_place = ui.element("div").style("flex-basis: 100%; order: 9").classes("hidden")
            self.steering = Steering(self.frame, self.name, self._trouble)
            self.steering.buttons()
        self.trouble = Trouble()
        self.note = text("", "p", "muted")

    def _trouble(self) -> Trouble:
        return self.trouble

    def _figures(self) -> None:
        with box("stats"):
            self.figures = {
                "train_bpb": stat("Train bpb", tip="Bits per byte of the latest updates"),
                "val_bpb": stat("Validation bpb"),
                "held_out_bpb": stat("Held-out bpb", tip="Of the last evaluation, on data that selected nothing"),
                "step": stat("Step"),
                "share": stat("Budget spent"),
                "eta": stat("Time left"),
                "bytes_per_s": stat("Speed"),
                "parameters": stat("Parameters"),
            }
        with box("meter") as self.meter:
            self.fill = ui.element("div")

    def _tab(self, event: Any) -> None:
        self.tab = str(event.value)
        replace_query(tab="" if self.tab == "curves" else self.tab)

    def _hear(self, kind: str, found: dict[str, Any]) -> None:
        """Take in an event; the page is changed at the next flush."""
        if kind == "reset":
            self.curves.rewound = self.story.rewound = True
        name = found.get("id") if kind == "run" else found.get("run")
        if name != self.name:
            return
        if kind == "run":
            self.row |= found
            self.changed = True
        elif kind == "metrics":
            series = found.get("series", {})
            self.row |= found.get("live") or {}
            self.curves.hear(series)
            for key in ("train_bpb", "val_bpb"):
                if points := series.get(key):
                    self.row |= {key: points["mean"][-1], "step": points["step"][-1]}
                    self.changed = True
        elif kind == "rewound":
            self.curves.rewound = True
            self.story.rewound = True
        elif kind == "happening":
            self.story.hear(found)
            self.curves.hear_mark(found)
        elif kind == "job" and found.get("operation") in TRAININGS:
            self._hear_job(found)

    def _hear_job(self, found: dict[str, Any]) -> None:
        if found.get("state") in ("failed", "killed") and found.get("error"):
            self.row |= {"job_error": found["error"]}
        self.changed = True

    async def _flush(self) -> None:
        if self.changed:
            self.changed = False
            self._show_row()
        await self.curves.flush()
        await self.story.flush()

    async def _poll(self) -> None:
        """What no event tells: how far a running training is."""
        if self.frame.desk.feed.up and self.row.get("status") == "running":
            try:
                found = await self.frame.server.get(f"runs/{self.name}")
            except ServerError:
                return  # the banner says it
            found.pop("spark", None)
            self.row |= {key: value for key, value in found.items() if key in LIVE}
            self._show_row()

    def _show_row(self) -> None:
        row, f = self.row, self.figures
        if row.get("removed"):
            self.frame.content.clear()
            with self.frame.content, box("card"), empty("delete", f"{self.name} was deleted", "Its records are gone."):
                link_button("All runs", "/", icon="arrow_back")
            return
        status = self.frame.desk.runs.status(self.name, str(row["status"]))
        running = status == "running"
        set_badge(self.badge, status)
        share = row.get("share")
        shown = {
            **{key: formats.figure(row.get(key)) for key in ("train_bpb", "val_bpb", "held_out_bpb")},
            "step": formats.count(row.get("step") or 0),
            "share": formats.percent(share),
            "eta": formats.duration(row.get("eta")) if running else formats.UNKNOWN,
            "bytes_per_s": formats.speed(row.get("bytes_per_s")) if running else formats.UNKNOWN,
            "parameters": formats.count(row.get("parameters")),
        }
        for key, value in shown.items():
            if f[key].text != value:
                f[key].set_text(value)
        self.fill.style(f"width: {100 * (share or 0):.1f}%")
        self.meter.classes(add="" if share is not None else "hidden", remove="hidden" if share is not None else "")
        self.note.set_text(row.get("note") or "")
        self.note.set_visibility(bool(row.get("note")))
        self.steering.show(status)
        if error := row.pop("job_error", None):
            self.trouble.show(str(error.get("message", error)))

    async def _again(self) -> None:
        """After an interruption: whatever happened meanwhile is read again."""
        if not self.detail:
            return
        self.row |= await self.frame.server.get(f"runs/{self.name}")
        self._show_row()
        self.curves.rewound = True
        self.story.rewound = True
