"""Several runs side by side: curves overlaid, results, and the settings in which they differ."""

from __future__ import annotations

import asyncio
from typing import Any

from nicegui import ui

from bit_transformer.dashboard import formats
from bit_transformer.dashboard.charts import TONES, Chart, curve, joined, send
from bit_transformer.dashboard.client import ServerError
from bit_transformer.dashboard.desk import Desk
from bit_transformer.dashboard.layout import Frame, replace_query
from bit_transformer.dashboard.parts import Trouble, box, card, empty, heading, link_button, table, text

METRICS = {
    "train_bpb": "Training, bits per byte",
    "val_bpb": "Validation, bits per byte",
    "K": "K, order",
    "C": "C, complexity",
    "S": "S, symbiosis",
    "grad_norm": "Gradient norm",
    "rate": "Learning rate, as a fraction of its peak",
    "bytes_per_s": "Speed",
}
MOST = 8
POINTS = 600


def register(desk: Desk) -> None:
    """Add the page."""

    @ui.page("/compare")
    async def page(runs: str = "", metric: str = "train_bpb") -> None:
        frame = Frame(desk, "Compare", "/")
        names = [name for name in dict.fromkeys(runs.split(",")) if name][:MOST]
        view = CompareView(frame, names, metric if metric in METRICS else "train_bpb")
        await frame.show(view.build)


class CompareView:
    """The comparison of some runs."""

    def __init__(self, frame: Frame, names: list[str], metric: str) -> None:
        self.frame, self.names, self.metric = frame, names, metric
        self.waiting: dict[str, dict[str, list[float]]] = {}
        frame.listen(self._hear)
        frame.on_back(self._curves)

    async def build(self) -> None:
        """Read the runs and show them."""
        rows = (await self.frame.desk.rows()).rows
        self._head(list(rows))
        if len(self.names) < 2:
            with card():
                empty(
                    "stacked_line_chart",
                    "Choose at least two runs",
                    "Pick them above, or select them on the page Runs.",
                )
            return
        with card("Curves") as section, section:
            self.trouble = Trouble()
            choice = ui.select(METRICS, label="Metric", value=self.metric, on_change=self._choose)
            choice.props("outlined dense").style("max-width: 360px; width: 100%")
            self.place = ui.element("div")
        await self._chart()
        with box("grid"):
            self._results()
            await self._differences()
        self.frame.every(0.3, self._flush)

    def _head(self, known: list[str]) -> None:
        with box("head"):
            heading("Compare", 1)
            ui.element("div").classes("grow")
            link_button("All runs", "/", icon="arrow_back")
        options = list(dict.fromkeys([*self.names, *known]))[:1000]
        pick = ui.select(options, label="Runs", multiple=True, value=self.names, with_input=True)
        pick.props("outlined dense use-chips").style("width: 100%")
        pick.on("popup-hide", lambda: self._again(list(pick.value or [])))
        pick.on("remove", lambda: self._again(list(pick.value or [])))

    def _again(self, names: list[str]) -> None:
        if names != self.names:
            ui.navigate.to(f"/compare?runs={','.join(names[:MOST])}&metric={self.metric}")

    async def _choose(self, event: Any) -> None:
        self.metric = event.value
        replace_query(metric=self.metric)
        await self._chart()

    async def _chart(self) -> None:
        self.place.clear()
        unit = "speed" if self.metric == "bytes_per_s" else "number"
        with self.place:
            shown = [
                curve(f"{n}:{self.metric}", n, TONES[i], dots=self.metric == "val_bpb")
                for i, n in enumerate(self.names)
            ]
            Chart(f"{METRICS[self.metric]} of {', '.join(self.names)}", shown, kinds="tall", unit=unit)
        await self._curves()

    async def _curves(self) -> None:
        asked = [self.frame.server.get(f"runs/{name}/metrics", keys=self.metric, points=POINTS) for name in self.names]
        found = await asyncio.gather(*asked, return_exceptions=True)
        self.waiting.clear()
        for name, answer in zip(self.names, found, strict=True):
            if isinstance(answer, ServerError):
                self.trouble.show(answer)
            elif isinstance(answer, dict):
                send({f"{name}:{key}": points for key, points in answer.items()}, whole=True)

    def _hear(self, kind: str, found: dict[str, Any]) -> None:
        if kind == "metrics" and found.get("run") in self.names:
            new = {key: points for key, points in found.get("series", {}).items() if key == self.metric}
            joined(self.waiting, new, f"{found['run']}:")

    def _flush(self) -> None:
        if self.waiting:
            found, self.waiting = self.waiting, {}
            send(found)

    def _results(self) -> None:
        rows = self.frame.desk.runs.rows
        columns = [
            ("Run", ""),
            ("Status", ""),
            *((title, "num") for title in ("Step", "Train", "Validation", "Held-out", "Parameters")),
        ]
        cells = []
        for name in self.names:
            row = rows.get(name, {})
            bpbs = [formats.figure(row.get(key)) for key in ("train_bpb", "val_bpb", "held_out_bpb")]
            cells.append(
                [
                    name,
                    row.get("status", "not found"),
                    formats.count(row.get("step")),
                    *bpbs,
                    formats.count(row.get("parameters")),
                ]
            )
        with card("Results", note="bits per byte, lower is better"):
            table(columns, cells, "Results")

    async def _differences(self) -> None:
        with card("Settings that differ"):
            trouble = Trouble()
            with trouble.guard():
                found = (await self.frame.server.call("runs.compare", names=self.names))["settings"]
                if not found:
                    text("All settings are the same.", "p", "muted")
                    return
                cells = [[one["key"], *map(formats.plain, one["values"])] for one in found]
                table([("Setting", ""), *((name, "") for name in self.names)], cells, "Settings that differ")
