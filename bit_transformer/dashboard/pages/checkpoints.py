"""Checkpoints of all runs: looked at, downloaded, made smaller, calibrated, evaluated, shared; and the jobs that do it."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

from nicegui import ui

from bit_transformer.dashboard import formats, sources
from bit_transformer.dashboard.client import ServerError
from bit_transformer.dashboard.desk import Desk
from bit_transformer.dashboard.layout import Frame, replace_query
from bit_transformer.dashboard.pages.jobs import JobList
from bit_transformer.dashboard.parts import (
    Trouble,
    asking,
    badge,
    box,
    button,
    card,
    empty,
    heading,
    link_button,
    say,
    table,
    text,
)
from bit_transformer.dashboard.rows import chosen

PAGE = 10  # runs at a time
TABS = {"checkpoints": "Checkpoints", "jobs": "Jobs", "hub": "Hub"}


def register(desk: Desk) -> None:
    """Add the page."""

    @ui.page("/checkpoints")
    async def page(tab: str = "checkpoints", q: str = "") -> None:
        frame = Frame(desk, "Checkpoints", "/checkpoints")
        view = CheckpointsView(frame, tab if tab in TABS else "checkpoints", q)
        await frame.show(view.build)


class CheckpointsView:
    """Checkpoints by run, jobs, and the hub."""

    def __init__(self, frame: Frame, tab: str, words: str) -> None:
        self.frame, self.tab, self.words = frame, tab, words
        self.page = 0
        self.jobs = JobList(frame)

    async def build(self) -> None:
        """Read the runs and their checkpoints."""
        with box("head"):
            heading("Checkpoints", 1)
            text("Models as they were saved. Work on them goes on in jobs.", "p", "lead")
        with ui.tabs(on_change=lambda e: self._switch(e.value)).props("align=left") as self.tabs:
            for name, label in TABS.items():
                ui.tab(name, label)
        with ui.tab_panels(self.tabs, value=self.tab, animated=False, keep_alive=True).classes("w-full"):
            with ui.tab_panel("checkpoints"):
                search = ui.input("Filter by run", value=self.words, on_change=self._search).props(
                    "outlined dense clearable debounce=250"
                )
                search.style("max-width: 360px; width: 100%")
                self.list = ui.element("div").classes("grid")
            with ui.tab_panel("jobs"):
                self.jobs.build()
            with ui.tab_panel("hub"):
                await self._hub()
        await self._read()
        await self.jobs.read()

    def _switch(self, tab: str) -> None:
        replace_query(tab="" if tab == "checkpoints" else tab)

    async def _search(self, event: Any) -> None:
        self.words, self.page = str(event.value or ""), 0
        replace_query(q=self.words)
        await self._read()

    async def _read(self) -> None:
        rows = (await self.frame.desk.rows()).rows
        there = [row for row in chosen(rows.values(), self.words) if sources.usable(row)]
        shown = there[self.page * PAGE : (self.page + 1) * PAGE]
        asked = [self.frame.server.get(f"runs/{row['id']}/checkpoints") for row in shown]
        found = await asyncio.gather(*asked, return_exceptions=True)
        self.list.clear()
        with self.list:
            if not shown:
                with card():
                    empty(
                        "inventory_2",
                        "No checkpoints",
                        "A training saves one every minute, and at its end. Remove words from the filter, or start a run.",
                    )
            for row, made in zip(shown, found, strict=True):
                self._run(row, made)
            if len(there) > PAGE:
                pages = -(-len(there) // PAGE)
                with box("bar"):
                    button("Newer", lambda: self._turn(-1), icon="chevron_left").set_enabled(self.page > 0)
                    text(f"{self.page + 1} of {pages}", kinds="muted")
                    button("Older", lambda: self._turn(1), icon="chevron_right").set_enabled(self.page + 1 < pages)

    async def _turn(self, by: int) -> None:
        self.page += by
        await self._read()

    def _run(self, row: dict[str, Any], made: Any) -> None:
        with card():
            with box("card-head"):
                ui.link(row["id"], f"/runs/{row['id']}").style("font-weight: 600; overflow-wrap: anywhere")
                badge(row["status"])
            if isinstance(made, ServerError):
                Trouble().show(made)
                return
            if not made:
                text("No checkpoint yet.", "p", "muted")
            for one in made if isinstance(made, list) else ():
                with box("bar").style("border-top: 1px solid var(--grid); padding-top: 8px"):
                    with box("grow"):
                        text(str(one["name"])).style("font-weight: 550; overflow-wrap: anywhere")
                        text(said_of_checkpoint(one), "div", "muted small")
                    self._actions(row["id"], one)

    def _actions(self, run: str, one: dict[str, Any]) -> None:
        name = one["name"]
        button("Inspect", lambda: self._inspect(run, one), kinds="bare")
        link_button("Try", f"/playground?a={quote(name)}", kinds="bare")
        with (
            ui.button("Work", color=None).classes("btn bare").props("no-caps unelevated icon-right=expand_more"),
            ui.menu(),
        ):
            ui.menu_item("Evaluate on data", lambda: self._evaluate(name))
            ui.menu_item("Calibrate its gate", lambda: self._calibrate(name))
            ui.menu_item("Quantize", lambda: self._quantize(name))
            ui.menu_item("Push to the hub", lambda: self._to_hub(run))

    async def _inspect(self, run: str, one: dict[str, Any]) -> None:
        with asking(str(one["name"])) as dialog:
            rows = [
                [key, formats.size(v) if key == "bytes" else formats.plain(v)]
                for key, v in one.items()
                if key != "model"
            ]
            table([("", ""), ("", "")], rows, "Checkpoint")
            if one.get("model"):
                with ui.expansion("Settings of the model").classes("w-full"):
                    shape = [[key, formats.plain(value)] for key, value in formats.flattened(one["model"]).items()]
                    table([("", ""), ("", "")], shape, "Settings of the model")
            trouble = Trouble()
            files = ui.element("div")
            button("Close", dialog.close)
        with dialog, trouble.guard():
            found = await self.frame.server.get(f"runs/{run}/files")
            with files:
                text("Files of the run", "h3")
                for file in found:
                    with box("bar").style("padding: 4px 0"):
                        ui.link(file["name"], f"/download/{quote(run)}/{quote(file['name'])}").props(
                            "download"
                        ).classes("grow")
                        text(formats.size(file.get("bytes")), kinds="muted small")

    async def _begin(self, trouble: Trouble, dialog: ui.dialog, operation: str, **request: Any) -> None:
        with trouble.guard():
            job = await self.frame.server.start(operation, **request)
            dialog.close()
            say(f"Job {job['id']} started")
            self.tabs.set_value("jobs")

    async def _evaluate(self, name: str) -> None:
        known = await sources.data(self.frame)
        with asking(f"Evaluate {name}") as dialog:
            text("Bits per byte on data, next to zlib, bz2 and xz.", "p", "muted")
            chosen_data = (
                ui.select(known, label="Data", multiple=True, value=[])
                .props("outlined dense use-chips")
                .classes("w-full")
            )
            trouble = Trouble()
            with box("bar end"):
                button("Cancel", dialog.close)
                button(
                    "Evaluate",
                    lambda: self._begin(trouble, dialog, "evaluate", run=name, names=list(chosen_data.value or [])),
                    kinds="main",
                )

    async def _calibrate(self, name: str) -> None:
        known = await sources.data(self.frame)
        with asking(f"Calibrate the gate of {name}") as dialog:
            text("Measures what is normal, on data that the model was not trained on.", "p", "muted")
            chosen_data = (
                ui.select(known, label="Data (empty: the run's held-out part)", multiple=True, value=[])
                .props("outlined dense use-chips")
                .classes("w-full")
            )
            alpha = (
                ui.number("False-alarm rate", value=0.01, min=0.0001, max=0.49, step=0.005, format="%.4g")
                .props("outlined dense")
                .classes("w-full")
            )
            trouble = Trouble()
            with box("bar end"):
                button("Cancel", dialog.close)
                button(
                    "Calibrate",
                    lambda: self._begin(
                        trouble,
                        dialog,
                        "calibrate",
                        run=name,
                        names=list(chosen_data.value or []),
                        alpha=alpha.value or 0.01,
                    ),
                    kinds="main",
                )

    def _quantize(self, name: str) -> None:
        with asking(f"Quantize {name}") as dialog:
            text("A smaller copy with weights of 8 or 4 bits, compared with this one.", "p", "muted")
            bits = (
                ui.select({8: "8 bits", 4: "4 bits"}, label="Weights", value=8)
                .props("outlined dense")
                .classes("w-full")
            )
            out = (
                ui.input("Name of the copy", value=f"{name.replace('@', '-')}-int8")
                .props("outlined dense")
                .classes("w-full")
            )
            bits.on_value_change(lambda e: out.set_value(f"{name.replace('@', '-')}-int{e.value}"))
            trouble = Trouble()
            with box("bar end"):
                button("Cancel", dialog.close)
                button(
                    "Quantize",
                    lambda: self._begin(trouble, dialog, "quantize", run=name, bits=bits.value, out=out.value),
                    kinds="main",
                )

    def _to_hub(self, run: str) -> None:
        self.push_run.set_value(run)
        self.tabs.set_value("hub")

    async def _hub(self) -> None:
        models = await sources.models(self.frame)
        with box("grid two"):
            with card("Push a run", note="to the Hugging Face hub"):
                self.push_run = (
                    ui.select(models, label="Run", value=next(iter(models), None))
                    .props("outlined dense")
                    .classes("w-full")
                )
                repo = (
                    ui.input("Repository", placeholder="name/model")
                    .props("outlined dense stack-label")
                    .classes("w-full")
                )
                private = ui.switch("Private", value=True)
                trouble = Trouble()
                button(
                    "Push",
                    lambda: self._share(
                        trouble, "hub.push", run=self.push_run.value, repo=repo.value, private=private.value
                    ),
                    icon="upload",
                    kinds="main",
                )
            with card("Pull a model", note="as a new run"):
                source = (
                    ui.input("Repository", placeholder="name/model")
                    .props("outlined dense stack-label")
                    .classes("w-full")
                )
                out = ui.input("Name of the new run").props("outlined dense").classes("w-full")
                other = Trouble()
                button(
                    "Pull",
                    lambda: self._share(other, "hub.pull", repo=source.value, out=out.value),
                    icon="download",
                    kinds="main",
                )
        text("The server uses the hub's own token on its machine (HF_TOKEN, or `hf auth login`).", "p", "muted small")

    async def _share(self, trouble: Trouble, operation: str, **request: Any) -> None:
        with trouble.guard():
            job = await self.frame.server.start(operation, **request)
            say(f"Job {job['id']} started")
            self.tabs.set_value("jobs")


def said_of_checkpoint(one: dict[str, Any]) -> str:
    """A checkpoint in one line."""
    parts = [
        f"weights of step {formats.count(one.get('step'))}",
        formats.size(one.get("bytes")),
        formats.ago(one.get("written")),
    ]
    parts += [f"val {formats.figure(one['val_bpb'])}"] if one.get("val_bpb") is not None else []
    parts += [f"{formats.count(one['parameters'])} parameters"] if one.get("parameters") else []
    parts += [str(one["precision"])] if one.get("precision") else []
    return " · ".join(parts)
