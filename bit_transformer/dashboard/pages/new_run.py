"""A new run: a form made from the server's schema, with what it will cost before it begins."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from nicegui import ui

from bit_transformer.dashboard import formats
from bit_transformer.dashboard.command import RATE_WIDTH, train_command
from bit_transformer.dashboard.desk import Desk
from bit_transformer.dashboard.fields import BUDGETS, nested
from bit_transformer.dashboard.form import Form
from bit_transformer.dashboard.layout import Frame, replace_query
from bit_transformer.dashboard.parts import Progress, Trouble, box, button, card, command, heading, stat, text
from bit_transformer.dashboard.sources import source_label
from bit_transformer.errors import BitTransformerError, ConfigError

COMMON = {
    "model": ("d_model", "num_layers", "nhead", "max_seq_len", "patch_bits", "causal"),
    "train": ("batch_size", "seed", "telemetry"),
    "data": ("split", "holdout", "validation"),
}
TITLES = {
    "model": "Model",
    "train": "Training",
    "data": "Data",
    "model.experts": "Experts",
    "train.optim": "Optimizer",
    "train.progressive": "Growth",
}
BUDGET_WORDS = {
    "seconds": "Seconds",
    "steps": "Updates",
    "epochs": "Epochs",
    "bytes": "Bytes of data",
    "flops": "Operations",
}


def register(desk: Desk) -> None:
    """Add the page."""

    @ui.page("/new")
    async def page(start: str = "preset:tiny") -> None:
        frame = Frame(desk, "New run", "/new")
        view = NewRun(frame, start)
        await frame.show(view.build)


class NewRun:
    """The form, the estimates and the command.

    Attributes:
        base: fields of the preset that it starts from, which the command line does not need to repeat.
    """

    def __init__(self, frame: Frame, start: str) -> None:
        self.frame, self.start = frame, start
        self.base: dict[str, Any] = {}
        self.settled = False
        self.asked = 0

    async def build(self) -> None:
        """Read the schema and make the form."""
        server = self.frame.server
        self.schema, self.presets = await server.get("schema"), await server.get("presets")
        self.recipes, self.corpora = await server.get("recipes"), await server.get("corpora")
        with box("head"):
            heading("New run", 1)
            text(
                "Start from a preset or a recipe and change what you need. Only what differs from the defaults is sent.",
                "p",
                "lead",
            )
        with box("grid side-by"):
            with box("grid"):
                self._basics()
                self._sections()
            with box("sticky grid"):
                self._costs()
        self._take_start(self.start)
        self.timer = ui.timer(0.7, self._changed, once=True)
        self.timer.deactivate()
        self.settled = True
        await self._estimate()

    # ---- the form ----

    def _basics(self) -> None:
        starts = {f"preset:{name}": f"Preset {name}" for name in self.presets} | {
            f"recipe:{name}": f"Recipe {name}" for name in self.recipes
        }
        with card("Start"):
            with box("fields"):
                self.pick = ui.select(
                    {"": "Defaults", **starts}, label="Start from", value=self.start if self.start in starts else ""
                )
                self.pick.props("outlined dense").on_value_change(lambda e: self._restart(e.value))
                self.name = ui.input("Name of the run", value=proposed_name(self.frame.desk.runs.rows)).props(
                    "outlined dense"
                )
                self.name.on_value_change(self._touched)
            with box("fields"):
                known = {one["id"]: source_label(one) for one in self.corpora}
                self.data = ui.select(
                    known, label="Data to train on", multiple=True, value=["stdlib"] if "stdlib" in known else []
                )
                self.data.props('outlined dense use-chips hint="Add your own on the page Data"').on_value_change(
                    self._touched
                )
                self.budget = (
                    ui.select(BUDGET_WORDS, label="Budget in", value="seconds")
                    .props("outlined dense")
                    .on_value_change(self._touched)
                )
                self.amount = (
                    ui.input("Budget", value="60")
                    .props("outlined dense inputmode=decimal")
                    .on_value_change(self._touched)
                )

    def _sections(self) -> None:
        self.form = Form(self._touched)
        for section, common in COMMON.items():
            self.form.add_section(section, self.schema[section], common, TITLES, leave_out=(*BUDGETS, "corpora"))

    def _touched(self, _: object = None) -> None:
        if self.settled:
            self.timer.cancel()
            with self.frame.content:
                self.timer = ui.timer(0.7, self._changed, once=True)

    def _restart(self, start: str) -> None:
        replace_query(start=start)
        self._take_start(start)
        self._touched()

    def _take_start(self, start: str) -> None:
        """Fill the form in from a preset or a recipe."""
        kind, _, name = start.partition(":")
        found: Mapping[str, Any] = {}
        self.base = {}
        if kind == "preset" and name in self.presets:
            self.base = dict(self.presets[name])
            found = {"model": self.base, "train": rate_for(self.base)}
        elif kind == "recipe":
            found = self.recipes.get(name, {})
        self.form.fill(found)
        train = found.get("train", {})
        for one in BUDGETS:
            if train.get(one) is not None:
                self.budget.set_value(one)
                self.amount.set_value(f"{train[one]:g}")
        wanted = [one for one in found.get("data", {}).get("corpora", ()) if one in self.data.options]
        if wanted:
            self.data.set_value(wanted)

    # ---- what it costs ----

    def _costs(self) -> None:
        with card("Before it begins"):
            with box("stats"):
                self.parameters, self.peak = stat("Parameters"), stat("Memory, peak")
                self.free, self.fits = stat("Memory free"), stat("Largest batch")
            self.saving = text("", "p", "muted small")
            with box("stats"):
                self.takes, self.updates = stat("Takes"), stat("Updates")
            self.how = text("", "p", "muted small")
            self.estimating = Progress()
            self.estimate_trouble = Trouble()
            self.measure = button(
                "Measure the time here", self._measure, icon="timer", tip="Makes updates for a few seconds"
            )
        with card("Command", note="does the same"):
            self.line = command("")
        with card():
            self.trouble = Trouble()
            self.go = button("Start training", self._start, icon="play_arrow", kinds="main")

    def request(self) -> dict[str, Any]:
        """What is sent to the server: only what differs from the defaults.

        Raises:
            ConfigError: something typed is no value of its field.
        """
        made = nested(self.form.changed())
        made = {section: made.get(section, {}) for section in ("model", "train", "data")}
        made["train"][self.budget.value] = budget_value(str(self.budget.value), str(self.amount.value or ""))
        made["data"]["corpora"] = list(self.data.value or [])
        return {"out": str(self.name.value or "").strip(), **made}

    async def _changed(self) -> None:
        await self._estimate()

    async def _estimate(self) -> None:
        self.form.clear_errors()
        self.estimate_trouble.hide()
        try:
            request = self.request()
            preset = str(self.pick.value).partition(":")[2] if self.base else ""
            self.line.set_text(train_command(request, self.schema, self.presets, preset))
            self.asked += 1
            now = self.asked
            self.estimating.show(None, "estimating")
            found = await self.frame.server.call("estimate", model=request["model"], train=request["train"])
        except BitTransformerError as error:
            self.estimating.hide()
            self._show(error, self.estimate_trouble)
            return
        if now != self.asked:  # something was changed meanwhile
            return
        self.estimating.hide()
        estimate = found["estimate"]
        self.parameters.set_text(formats.count(found["model_parameters"]))
        self.peak.set_text(formats.size(estimate["peak"]))
        self.peak.style(
            f"color: {'var(--bad)' if found['budget'] and estimate['peak'] > found['budget'] else 'inherit'}"
        )
        self.free.set_text(formats.size(found["budget"]))
        self.fits.set_text(formats.count(found["largest_batch"]))
        self.saving.set_text(said_of_memory(found))
        if request["train"].get("seconds"):
            self.takes.set_text(formats.duration(request["train"]["seconds"]))
        elif self.settled:
            self.takes.set_text(formats.UNKNOWN)
        self.updates.set_text(formats.count(request["train"].get("steps")))
        self.how.set_text("")

    async def _measure(self) -> None:
        self.measure.props("loading")
        try:
            request = self.request()
            sizes = [one.get("bytes") for one in self.corpora if one["id"] in request["data"]["corpora"]]
            known = sum(filter(None, sizes)) if sizes and all(sizes) else None
            found = await self.frame.server.call(
                "estimate_time", model=request["model"], train=request["train"], data_bytes=known, seconds=3.0
            )
        except BitTransformerError as error:
            self._show(error, self.estimate_trouble)
            return
        finally:
            self.measure.props(remove="loading")
        self.estimate_trouble.hide()
        self.takes.set_text(formats.duration(found["seconds"]))
        self.updates.set_text(formats.count(found["updates"]))
        self.how.set_text(found.get("how", ""))

    def _show(self, error: BitTransformerError, trouble: Trouble, *, focus: bool = False) -> None:
        """Show an error at the field it is about, or in its card."""
        last = (error.field or "").rpartition(".")[2]
        own = {"out": self.name, "corpora": self.data, **dict.fromkeys(BUDGETS, self.amount)}
        if last in own:
            own[last].error = str(error)
        elif not self.form.show(error, focus=focus):
            trouble.show(error)

    async def _start(self) -> None:
        for one in (self.name, self.data, self.amount):
            one.error = None
        self.form.clear_errors()
        self.trouble.hide()
        self.go.props("loading")
        try:
            request = self.request()
            check_name(request["out"])
            if not request["data"]["corpora"]:
                raise ConfigError("got no data; at least one corpus is needed. Try stdlib", field="corpora")
            await self.frame.server.start("train", **request)
        except BitTransformerError as error:
            self._show(error, self.trouble, focus=True)
            if error.field:
                self.trouble.show(f"One field needs another value: {error.field}")
            return
        finally:
            self.go.props(remove="loading")
        ui.navigate.to(f"/runs/{request['out']}")


def rate_for(model: Mapping[str, Any], rate: float = 0.003) -> dict[str, Any]:
    """The learning rate that goes with a preset: it falls with the square root of the width, as on the command line."""
    width = model.get("d_model", RATE_WIDTH)
    return {} if width == RATE_WIDTH else {"optim": {"lr": float(f"{rate * (RATE_WIDTH / width) ** 0.5:.3g}")}}


def proposed_name(taken: Mapping[str, Any]) -> str:
    """A name that no run has: the day and a number."""
    day = datetime.now().strftime("%m%d")
    return next(name for number in range(1, 10_000) if (name := f"run-{day}-{number}") not in taken)


def check_name(name: str) -> None:
    """Refuse what cannot be the name of a run.

    Raises:
        ConfigError: it is empty, too long, or has other characters.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ConfigError(
            f"got the name {name!r}; 1 to 64 letters, digits, dots, - and _ are needed. Try first-run", field="out"
        )


def budget_value(kind: str, typed: str) -> float | int:
    """The size of a budget.

    Raises:
        ConfigError: it is no number, or not above 0.
    """
    try:
        value = float(typed.replace(",", "").replace("_", "").strip())
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"got a budget of {typed!r}; a number above 0 is needed. Try 60", field=f"train.{kind}")
    return int(value) if kind in ("steps", "bytes") else value


def said_of_memory(found: Mapping[str, Any]) -> str:
    """Whether a training fits, and what would need less."""
    estimate, budget = found["estimate"], found["budget"]
    words = f"The peak is at: {estimate['when']}." if estimate.get("when") else ""
    if budget and estimate["peak"] > budget and found.get("savings"):
        best = found["savings"][0]
        words += f" It does not fit. {best['settings']} needs {formats.size(best['peak'])}; {best['price']}."
    return words.strip()
