"""Steering a run: pause and go on, settings that change while it runs, triggers, branches, deletion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nicegui import ui

from bit_transformer.dashboard import formats
from bit_transformer.dashboard.fields import field_named
from bit_transformer.dashboard.layout import Frame
from bit_transformer.dashboard.parts import Trouble, asking, box, button, card, say, text
from bit_transformer.dashboard.rows import ENDED
from bit_transformer.errors import BitTransformerError, ConfigError

SETTINGS = {
    "lr": ("Learning rate of AdamW, at its peak", "train.optim.lr"),
    "matrix_lr": ("Learning rate of Muon, at its peak", "train.optim.matrix_lr"),
    "table_lr": ("Learning rate of the tables, at its peak", "train.optim.table_lr"),
    "lambda_K": ("Weight of 1 - K in the loss", "model.lambda_K"),
    "lambda_C": ("Weight of repetitions in the loss", "model.lambda_C"),
    "lambda_S": ("Weight of the divergence from the experts", "model.lambda_S"),
}
METRICS = ("val_bpb", "train_bpb", "grad_norm", "K", "C", "S", "bytes_per_s")
ACTIONS = {"pause": "pause", "checkpoint": "keep a checkpoint", "notify": "only note it"}
MOVING = ("running", "paused")


class Steering:
    """The buttons of a run. Which are there depends on where it stands."""

    def __init__(self, frame: Frame, name: str, trouble: Callable[[], Trouble]) -> None:
        self.frame, self.name, self.trouble = frame, name, trouble

    def buttons(self) -> None:
        """Make all buttons."""
        self.made = {
            "pause": button("Pause", lambda: self.ask("pause"), icon="pause"),
            "continue": button("Continue", lambda: self.ask("continue"), icon="play_arrow", kinds="main"),
            "step": button(
                "Step once",
                lambda: self.ask("step", updates=1),
                icon="skip_next",
                tip="Make one update and pause again",
            ),
            "resume": button(
                "Resume",
                lambda: self.ask("resume"),
                icon="play_arrow",
                kinds="main",
                tip="Go on from the last checkpoint",
            ),
            "checkpoint": button(
                "Checkpoint", lambda: self.ask("checkpoint"), icon="save", tip="Save now, and keep it"
            ),
            "stop": button("Stop", lambda: self.ask("stop"), icon="stop", tip="Save and end normally"),
            "branch": button(
                "Branch", self._branch, icon="call_split", tip="A new run that goes on from here with other settings"
            ),
            "delete": button("Delete", self._delete, icon="delete", kinds="risk"),
        }

    def show(self, status: str) -> None:
        """Offer what can be done to a run of this status."""
        offered = {
            "pause": status == "running",
            "continue": status == "paused",
            "step": status == "paused",
            "resume": status in ENDED,
            "checkpoint": status in ("running", "paused"),
            "stop": status in MOVING,
            "branch": status not in ("queued", "starting"),
            "delete": status in ENDED,
        }
        for name, there in offered.items():
            if self.made[name].visible != there:
                self.made[name].set_visibility(there)

    async def ask(self, what: str, **body: Any) -> Any:
        """Ask the server for something; an error is shown at the head of the page."""
        made = self.made[what]
        made.props("loading")
        try:
            with self.trouble().guard():
                found = await self.frame.server.post(f"runs/{self.name}/{what}", body)
                say(SAID[what])
                return found
        finally:
            made.props(remove="loading")

    def _branch(self) -> None:
        with asking(f"Branch from {self.name}") as dialog:
            text(
                "A new run that begins with the state of this one. Settings that stay empty stay as they are.",
                "p",
                "muted",
            )
            name = (
                ui.input("Name of the new run", value=f"{self.name}-b")
                .props("outlined dense autofocus")
                .classes("w-full")
            )
            step = (
                ui.input("Update of a kept checkpoint")
                .props('outlined dense hint="Empty: the last checkpoint"')
                .classes("w-full")
            )
            rate = ui.input("Learning rate of AdamW").props("outlined dense").classes("w-full")
            budget = ui.input("Budget in updates, from the start").props("outlined dense").classes("w-full")
            trouble = Trouble()

            async def make() -> None:
                with trouble.guard():
                    train: dict[str, Any] = {}
                    if rate.value:
                        train["optim"] = {"lr": number("train.optim.lr", rate.value)}
                    if budget.value:
                        train["steps"] = int(number("train.steps", budget.value))
                    at = int(number("step", step.value)) if step.value else None
                    body = {"out": name.value, "step": at, "train": train}
                    made = await self.frame.server.post(f"runs/{self.name}/branch", body)
                    await self.frame.server.post(f"runs/{made['id']}/resume", {})
                    ui.navigate.to(f"/runs/{made['id']}")

            with box("bar end"):
                button("Cancel", dialog.close)
                button("Branch and train", make, kinds="main")

    def _delete(self) -> None:
        with asking(f"Delete {self.name}?") as dialog:
            text("Its records and files are removed, with all checkpoints. This cannot be undone.", "p", "muted")
            typed = ui.input(f"Type {self.name} to confirm").props("outlined dense autofocus").classes("w-full")
            trouble = Trouble()

            async def remove() -> None:
                if typed.value != self.name:
                    trouble.show(f"got {typed.value!r}; the run's name is needed. Try {self.name}")
                    return
                with trouble.guard():
                    await self.frame.server.delete(f"runs/{self.name}", files="true")
                    ui.navigate.to("/")

            with box("bar end"):
                button("Cancel", dialog.close)
                button("Delete", remove, icon="delete", kinds="risk")


SAID = {
    "pause": "It saves and pauses after this update",
    "continue": "It goes on",
    "step": "One update",
    "resume": "It resumes from its last checkpoint",
    "checkpoint": "It keeps a checkpoint after this update",
    "stop": "It saves and ends after this update",
}


class ControlPanel:
    """Settings and triggers of a run."""

    def __init__(self, steering: Steering, detail: Mapping[str, Any]) -> None:
        self.frame, self.name, self.detail = steering.frame, steering.name, detail

    def build(self) -> None:
        """Both forms."""
        with box("grid two"):
            self._settings()
            self._triggers()

    def _settings(self) -> None:
        now = formats.flattened(self.detail.get("config") or {})
        now |= {SETTINGS[key][1]: value for key, value in (self.detail.get("steered") or {}).items() if key in SETTINGS}
        with card("Change while it runs", note="recorded, and shown on the curve"):
            with box("fields"):
                inputs = {
                    key: ui.input(label, placeholder=f"now {formats.plain(now.get(path))}").props(
                        "outlined dense stack-label inputmode=decimal"
                    )
                    for key, (label, path) in SETTINGS.items()
                }
            trouble = Trouble()

            async def change() -> None:
                for one in inputs.values():
                    one.error = None
                try:
                    given = {key: number(key, one.value) for key, one in inputs.items() if one.value}
                    if not given:
                        raise ConfigError("got no value; at least one is needed. Try a learning rate of 0.001")
                    trouble.hide()
                    await self.frame.server.post(f"runs/{self.name}/change", {"settings": given})
                except BitTransformerError as error:
                    show_at(inputs, error, trouble)
                    return
                for key, value in given.items():
                    inputs[key].set_value("")
                    inputs[key].props(f'placeholder="now {formats.plain(value)}"')
                say("Changed from the next update on")

            with box("bar"):
                button("Change", change, icon="tune", kinds="main")

    def _triggers(self) -> None:
        with card("Triggers", note="once a metric crosses a line"):
            self.trouble = Trouble()
            with box("bar"):
                metric = (
                    ui.select(list(METRICS), label="Metric", value="val_bpb")
                    .props("outlined dense")
                    .style("min-width: 128px; flex: 1")
                )
                side = (
                    ui.select(["above", "below"], label="Is", value="above")
                    .props("outlined dense")
                    .style("min-width: 96px; flex: 1")
                )
                line = ui.input("Line").props("outlined dense inputmode=decimal").style("min-width: 88px; flex: 1")
                action = (
                    ui.select(ACTIONS, label="Then", value="pause")
                    .props("outlined dense")
                    .style("min-width: 140px; flex: 1")
                )

                async def add() -> None:
                    with self.trouble.guard():
                        body = {"metric": metric.value, side.value: number("line", line.value), "action": action.value}
                        await self.frame.server.post(f"runs/{self.name}/triggers", body)
                        line.set_value("")
                        await self._read()

                button("Add", add, icon="add", kinds="main")
            self.list = ui.element("div")
            self._show(list(self.detail.get("triggers") or []))

    async def _read(self) -> None:
        self._show((await self.frame.server.get(f"runs/{self.name}")).get("triggers") or [])

    def _show(self, triggers: list[dict[str, Any]]) -> None:
        self.list.clear()
        with self.list:
            if not triggers:
                text("No triggers. Add one to be told, or to pause, when a metric crosses a line.", "p", "muted")
            for one in triggers:
                with box("bar"):
                    side = "above" if one.get("above") is not None else "below"
                    text(
                        f"{one['metric']} {side} {formats.plain(one[side])}: {ACTIONS.get(one['action'], one['action'])}",
                        kinds="grow",
                    )
                    if one.get("fired_at") is not None:
                        text(f"fired at step {formats.count(one['fired_at'])}", kinds="badge paused")
                    button("Remove", lambda n=one["id"]: self._remove(n), kinds="bare risk")

    async def _remove(self, number: int) -> None:
        with self.trouble.guard():
            await self.frame.server.delete(f"runs/{self.name}/triggers/{number}")
            await self._read()


def number(name: str, typed: Any) -> float:
    """A number that somebody typed.

    Raises:
        ConfigError: it is none.
    """
    try:
        return float(str(typed).strip().replace(",", "."))
    except ValueError:
        raise ConfigError(f"got {name}={typed!r}; a number is needed. Try 0.001", field=name) from None


def show_at(inputs: Mapping[str, ui.input], error: BitTransformerError, trouble: Trouble) -> None:
    """Show an error at the input that it is about, else at the form."""
    field = field_named(error.field, inputs)
    if field is None:
        trouble.show(error)
    else:
        inputs[field].error = str(error)
