"""Diffusion, watched step by step: missing bytes that are filled in, flipped bits that are corrected."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nicegui import ui

from bit_transformer.dashboard import sources
from bit_transformer.dashboard.bytecells import cells_html, marked_ranges, parse_bytes, with_flips
from bit_transformer.dashboard.client import decoded
from bit_transformer.dashboard.desk import Desk
from bit_transformer.dashboard.layout import Frame, replace_query
from bit_transformer.dashboard.parts import (
    SEGMENTED,
    Progress,
    Trouble,
    box,
    button,
    card,
    empty,
    heading,
    icon_button,
    link_button,
    text,
)
from bit_transformer.errors import BitTransformerError, ConfigError

KEPT = 2000  # frames
EXAMPLE = "for i in ____(10):\n    print(i)\n"


@dataclass(frozen=True)
class Shown:
    """A frame: bytes, which of them are open, which the call was about, which are new, and how far it is."""

    data: bytes
    masked: tuple[tuple[int, int], ...]
    asked: tuple[tuple[int, int], ...]
    fresh: tuple[tuple[int, int], ...]
    calls: int
    total: int | None
    sample: int = 0


def register(desk: Desk) -> None:
    """Add the page."""

    @ui.page("/diffusion")
    async def page(task: str = "infill", run: str = "") -> None:
        frame = Frame(desk, "Diffusion", "/diffusion")
        view = DiffusionView(frame, task if task in ("infill", "repair") else "infill", run)
        await frame.show(view.build)


class DiffusionView:
    """The form, and the frames so far.

    Attributes:
        frames: all frames of the latest stream.
        follows: whether the newest frame is shown as it comes.
    """

    def __init__(self, frame: Frame, task: str, run: str) -> None:
        self.frame, self.task, self.name = frame, task, run
        self.frames: list[Shown] = []
        self.follows = True
        self.drawn = -1
        self.running: asyncio.Task[None] | None = None

    async def build(self) -> None:
        """Read which models there are, and show the form."""
        every = await sources.models(self.frame)
        two_way = await sources.models(self.frame, causal=False)
        with box("head"):
            heading("Diffusion", 1)
            text("Watch missing bytes being filled in, and flipped bits being corrected, call by call.", "p", "lead")
        if not every:
            with (
                card(),
                empty(
                    "blur_on",
                    "No model yet",
                    "Train a model with `causal` off: it reads both sides and fills in what is missing.",
                ),
            ):
                link_button("Start a run", "/new", icon="add", kinds="main")
            return
        with box("grid side-by"):
            with box("grid"):
                self._input()
                self._stage()
            self._settings(two_way or every, every)
        self._show_task()
        self.frame.every(0.12, self._draw)
        ui.context.client.on_delete(self._cancel)

    def _input(self) -> None:
        with card("Bytes"):
            self.kind = (
                ui.toggle({"text": "Text", "hex": "Hexadecimal"}, value="text").props(SEGMENTED).classes("segmented")
            )
            self.typed = ui.textarea("Text", value=EXAMPLE).props("outlined autogrow maxlength=6000").classes("w-full")
            self.typed.on_value_change(lambda: setattr(self.typed, "error", None))
            with box("bar"):
                self.go = button("Fill in", self._begin, icon="play_arrow", kinds="main")
                self.stop = button("Stop", self._cancel, icon="stop")
                self.stop.set_visibility(False)
            self.trouble = Trouble()

    def _settings(self, two_way: dict[str, str], every: dict[str, str]) -> None:
        self.options = {"infill": two_way, "repair": every}
        with card("Settings", "sticky"):
            self.tasks = (
                ui.toggle({"infill": "Fill in", "repair": "Repair"}, value=self.task)
                .props(SEGMENTED)
                .classes("segmented")
            )
            self.tasks.on_value_change(lambda event: self._switch(event.value))
            options = self.options[self.task]
            self.run = ui.select(
                options,
                label="Model",
                value=self.name if self.name in options else next(iter(options), None),
                with_input=True,
            )
            self.run.props("outlined dense").on_value_change(lambda event: replace_query(run=event.value))
            with box("grid") as self.for_infill:
                self.gap = ui.input("Mark of a gap", value="____").props("outlined dense")
                self.steps = ui.input("Most calls", placeholder="one per patch").props(
                    "outlined dense stack-label inputmode=numeric"
                )
                orders = {
                    "": "the model's",
                    "first-hitting": "first-hitting",
                    "ancestral": "ancestral",
                    "confidence": "confidence",
                }
                self.order = ui.select(orders, label="Order", value="").props("outlined dense")
                self.temperature = ui.number("Temperature", value=1.0, min=0, max=2, step=0.1).props("outlined dense")
            with box("grid") as self.for_repair:
                self.rate = ui.input("Probability of a flip", placeholder="estimated").props(
                    "outlined dense stack-label inputmode=decimal"
                )
                self.flips = ui.number("Bits to flip first", value=6, min=0, max=1000, precision=0).props(
                    "outlined dense"
                )
                text(
                    "So that there is something to repair, this many bits of what you typed are flipped before it is sent.",
                    kinds="muted small",
                )
            self.seed = ui.input("Seed", value="1").props("outlined dense inputmode=numeric")

    def _switch(self, task: str) -> None:
        self.task = task
        options = self.options[task]
        self.run.set_options(options, value=self.run.value if self.run.value in options else next(iter(options), None))
        replace_query(task="" if task == "infill" else task)
        self._show_task()

    def _show_task(self) -> None:
        infill = self.task == "infill"
        self.for_infill.set_visibility(infill)
        self.for_repair.set_visibility(not infill)
        self.go.set_text("Fill in" if infill else "Damage and repair")
        if self.typed.value == EXAMPLE and not infill:
            self.typed.set_value(EXAMPLE.replace("____", "range"))

    def _stage(self) -> None:
        with card("Steps"):
            self.nothing = empty(
                "blur_on", "Nothing yet", "Press the button above; every call of the network is a frame here."
            )
            with box("grid") as self.stage:
                self.progress = Progress()
                self.view = (
                    ui.html("", sanitize=False).classes("bytes").props('role=group aria-label="The bytes at this step"')
                )
                with box("bar line"):
                    icon_button("First frame", "first_page", lambda: self._go(0))
                    icon_button("Back", "chevron_left", lambda: self._go(self._at() - 1))
                    self.slider = (
                        ui.slider(min=0, max=1, step=1, value=0).props('aria-label="Frame" snap').classes("grow")
                    )
                    self.slider.on("update:model-value", lambda event: self._go(int(event.args)), throttle=0.05)
                    icon_button("Forward", "chevron_right", lambda: self._go(self._at() + 1))
                    icon_button("Last frame", "last_page", lambda: self._go(len(self.frames)))
                self.words = text("", kinds="muted small").props("role=status")
            self.stage.set_visibility(False)

    def _at(self) -> int:
        return int(self.slider.value)

    def _go(self, at: int) -> None:
        """Show a frame; the last one is followed as long as frames come."""
        last = len(self.frames) - 1
        at = max(0, min(last, at))
        self.follows = at == last
        self._show(at)

    def _draw(self) -> None:
        last = len(self.frames) - 1
        if last != self.drawn and last >= 0:
            self.drawn = last
            self.slider.props(f"max={max(1, last)}")
            if self.follows:
                self._show(last)
            else:
                self._say(self._at())

    def _show(self, at: int) -> None:
        if not 0 <= at < len(self.frames):
            return
        self.slider.set_value(at)
        self.view.set_content(frame_html(self.frames[at]))
        self._say(at)

    def _say(self, at: int) -> None:
        shown = self.frames[at]
        left = sum(end - begin for begin, end in shown.masked)
        words = [
            f"frame {at + 1} of {len(self.frames)}",
            f"call {shown.calls}" + (f" of {shown.total}" if shown.total else ""),
        ]
        words += (
            [f"{left} {'byte' if left == 1 else 'bytes'} open"]
            if self.task == "infill"
            else [f"{sum(e - b for b, e in shown.fresh)} bytes changed"]
        )
        self.words.set_text(" · ".join(words))

    async def _begin(self) -> None:
        self._cancel()
        self.trouble.hide()
        try:
            data = parse_bytes(str(self.typed.value or ""), str(self.kind.value))
            request = self._infill(data) if self.task == "infill" else self._repair(data)
        except ConfigError as error:
            if error.field == "prompt":
                self.typed.error = str(error)
            else:
                self.trouble.show(error)
            return
        self.frames, self.drawn, self.follows = [], -1, True
        self.slider.set_value(0)
        self.words.set_text("")
        self.nothing.set_visibility(False)
        self.stage.set_visibility(True)
        self.view.set_content(cells_html(request["data"], masked=request.get("holes", ())))
        self.stop.set_visibility(True)
        self.running = asyncio.create_task(self._watch(request))
        await asyncio.gather(self.running, return_exceptions=True)
        self.stop.set_visibility(False)

    def _infill(self, data: bytes) -> dict[str, Any]:
        mark = parse_bytes(str(self.gap.value or ""), str(self.kind.value))
        holes = marked_ranges(data, mark)
        if not holes:
            raise ConfigError(
                f"got no gap; the mark {str(self.gap.value)!r} must be in the text. Try: for i in ____(10):",
                field="gap",
            )
        order = {"order": self.order.value} if self.order.value else {}
        steps = {"steps": whole("steps", self.steps.value)} if self.steps.value else {}
        more = {
            "temperature": float(self.temperature.value or 1.0),
            "seed": whole("seed", self.seed.value) if self.seed.value else None,
        }
        return {"data": data, "holes": holes, **order, **steps, **more}

    def _repair(self, data: bytes) -> dict[str, Any]:
        damaged = with_flips(data, int(self.flips.value or 0), whole("seed", self.seed.value or "0"))
        try:
            rate = float(str(self.rate.value)) if self.rate.value else None
        except ValueError:
            raise ConfigError(
                f"got rate={self.rate.value!r}; a number in (0, 0.5) is needed. Try 0.01", field="rate"
            ) from None
        return {"data": damaged, "rate": rate}

    async def _watch(self, request: dict[str, Any]) -> None:
        operation = "infill" if self.task == "infill" else "repair_bytes"
        self.progress.show(None, "waiting for the first call")
        try:
            async for kind, piece in self.frame.server.pieces(operation, run=self.run.value, **request):
                if kind == "piece" and len(self.frames) < KEPT:
                    self.frames.append(frame_of(piece))
                    done = {"done": piece["calls"], "total": piece.get("total") or 0, "doing": "calls"}
                    self.progress.show(done)
            if not self.frames:
                self.trouble.show("the model had nothing to do")
        except BitTransformerError as error:
            self.trouble.show(error)
        finally:
            self.progress.hide()

    def _cancel(self) -> None:
        if self.running is not None:
            self.running.cancel()
            self.running = None


def frame_of(piece: dict[str, Any]) -> Shown:
    """A piece of a stream as a frame. Ranges of bits become ranges of bytes."""
    width = piece.get("byte_bits") or 8
    return Shown(
        data=decoded(piece["data"]),
        masked=in_bytes(piece.get("masked") or (), width),
        asked=in_bytes(piece.get("asked") or (), width),
        fresh=in_bytes(piece.get("changed") or (), width),
        calls=piece.get("calls") or 0,
        total=piece.get("total"),
        sample=piece.get("sample") or 0,
    )


def in_bytes(ranges: Sequence[Sequence[int]], width: int) -> tuple[tuple[int, int], ...]:
    """Ranges of bits as ranges of the bytes that they touch."""
    return tuple((begin // width, -(-end // width)) for begin, end in ranges)


def frame_html(shown: Shown) -> str:
    """A frame as HTML: open bytes as blocks, new ones and those that were asked about marked."""
    return cells_html(shown.data, masked=shown.masked, marked={"fresh": shown.fresh, "asked": shown.asked})


def whole(name: str, typed: Any) -> int:
    """A whole number that somebody typed.

    Raises:
        ConfigError: it is none.
    """
    try:
        return int(str(typed).strip())
    except ValueError:
        raise ConfigError(f"got {name}={typed!r}; a whole number is needed. Try 1", field=name) from None
