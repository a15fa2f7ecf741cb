"""The playground: prompts continued by one model or two side by side, each byte with what it cost, and the gate's verdict."""

from __future__ import annotations

import asyncio
from typing import Any

from nicegui import ui

from bit_transformer.dashboard import formats, sources
from bit_transformer.dashboard.bytecells import as_hex, parse_bytes
from bit_transformer.dashboard.bytesview import BytesView
from bit_transformer.dashboard.client import decoded
from bit_transformer.dashboard.desk import Desk
from bit_transformer.dashboard.layout import Frame, replace_query
from bit_transformer.dashboard.parts import (
    SEGMENTED,
    Progress,
    Trouble,
    badge,
    box,
    button,
    card,
    empty,
    heading,
    link_button,
    stat,
    text,
)
from bit_transformer.errors import BitTransformerError

MOST = 4096  # bytes that are generated
LONGEST = 60_000  # characters of a prompt
REDRAW = 0.12  # seconds between looks at a stream


def register(desk: Desk) -> None:
    """Add the page."""

    @ui.page("/playground")
    async def page(a: str = "", b: str = "", prompt: str = "") -> None:
        frame = Frame(desk, "Playground", "/playground")
        view = Playground(frame, a, b, prompt)
        await frame.show(view.build)


class Playground:
    """The prompt and its settings, and one or two continuations."""

    def __init__(self, frame: Frame, first: str, second: str, prompt: str) -> None:
        self.frame, self.first, self.second, self.typed = frame, first, second, prompt
        self.tasks: list[asyncio.Task[None]] = []

    async def build(self) -> None:
        """Read which models there are, and show the form."""
        models = await sources.models(self.frame, causal=True)
        for name in (self.first, self.second):
            if name and name not in models and name.partition("@")[0] in models:
                models[name] = name
        with box("head"):
            heading("Playground", 1)
            text("Continue a prompt, and see what the model expected of every bit.", "p", "lead")
        if not models:
            with (
                card(),
                empty(
                    "edit_note",
                    "No model to try yet",
                    "A model can be tried as soon as its training has saved a checkpoint.",
                ),
            ):
                link_button("Start a run", "/new", icon="add", kinds="main")
            return
        with box("grid side-by"):
            with box("grid"):
                self._prompt()
                self.places = ui.element("div").classes("grid two")
            self._settings(models)
        self._layout()
        ui.context.client.on_delete(self._cancel)

    def _prompt(self) -> None:
        with card("Prompt"):
            self.kind = (
                ui.toggle({"text": "Text", "hex": "Hexadecimal"}, value="text").props(SEGMENTED).classes("segmented")
            )
            self.kind.props('aria-label="How the prompt is written"').on_value_change(self._convert)
            self.prompt = (
                ui.textarea("Prompt", value=self.typed, placeholder="def ")
                .props(f"outlined autogrow stack-label maxlength={LONGEST}")
                .classes("w-full")
            )
            self.prompt.on_value_change(lambda: setattr(self.prompt, "error", None))
            with box("bar"):
                self.go = button("Generate", self._generate, icon="play_arrow", kinds="main")
                self.stop = button("Stop", self._cancel, icon="stop")
                self.stop.set_visibility(False)
            self.trouble = Trouble()

    def _settings(self, models: dict[str, str]) -> None:
        with card("Settings", "sticky"):
            names = list(models)
            first = self.first if self.first in models else names[0]
            self.a = ui.select(models, label="Model", value=first, with_input=True, on_change=self._chosen).props(
                "outlined dense"
            )
            self.b = ui.select(
                {"": "none", **models},
                label="Beside it",
                value=self.second if self.second in models else "",
                on_change=self._chosen,
            )
            self.b.props("outlined dense")
            self.temperature = labelled_slider("Temperature", 0.0, 2.0, 0.05, 0.8)
            self.top_p = labelled_slider("Top p", 0.05, 1.0, 0.05, 1.0)
            self.length = ui.number("Bytes", value=200, min=1, max=MOST, precision=0).props("outlined dense")
            self.seed = ui.input("Seed", placeholder="another each time").props("outlined dense stack-label")
            self.gate = ui.switch("Behind the gate", value=False)
            self.retries = ui.number("Retries of a blocked window", value=3, min=0, max=20, precision=0).props(
                "outlined dense"
            )
            self.retries.bind_visibility_from(self.gate, "value")
            with box("bar") as hint:
                text(
                    "The gate judges what is written, window by window. It needs a calibrated run.", kinds="muted small"
                )
                ui.link("Calibrate one", "/settings").classes("small")
            hint.bind_visibility_from(self.gate, "value")

    def _chosen(self, _: object) -> None:
        replace_query(a=self.a.value, b=self.b.value)
        self._layout()

    def _convert(self, event: Any) -> None:
        """Write the same bytes the other way."""
        before = "hex" if event.value == "text" else "text"
        try:
            data = parse_bytes(str(self.prompt.value or ""), before)
        except BitTransformerError as error:
            self.prompt.error = str(error)
            return
        self.prompt.set_value(as_hex(data) if event.value == "hex" else data.decode("utf-8", "replace"))

    def _layout(self) -> None:
        self._cancel()
        names = [name for name in (self.a.value, self.b.value) if name]
        self.places.clear()
        self.places.classes(replace="grid two" if len(names) > 1 else "grid")
        with self.places:
            self.panels = [Continuation(self.frame, name) for name in names]

    async def _generate(self) -> None:
        self._cancel()
        try:
            prompt = parse_bytes(str(self.prompt.value or ""), str(self.kind.value))
            seed = int(self.seed.value) if self.seed.value else None
        except BitTransformerError as error:
            self.prompt.error = str(error)
            return
        except ValueError:
            self.seed.error = f"got seed={self.seed.value!r}; a whole number is needed. Try 1"
            return
        self.seed.error = None
        replace_query(prompt=self.prompt.value if self.kind.value == "text" and len(prompt) < 500 else "")
        sampling = {"temperature": self.temperature.value, "top_p": self.top_p.value, "seed": seed}
        request = {"max_bytes": int(self.length.value or 200), "sampling": sampling}
        if self.gate.value:
            request["retries"] = int(self.retries.value or 0)
        self.stop.set_visibility(True)
        self.go.props("loading")
        self.tasks = [asyncio.create_task(panel.run(prompt, bool(self.gate.value), request)) for panel in self.panels]
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.stop.set_visibility(False)
        self.go.props(remove="loading")

    def _cancel(self) -> None:
        for task in self.tasks:
            task.cancel()
        self.tasks = []


class Continuation:
    """What one model makes of the prompt."""

    def __init__(self, frame: Frame, name: str) -> None:
        self.frame, self.name = frame, name
        with card(name) as self.card:
            self.progress = Progress()
            self.trouble = Trouble()
            with box("stats") as self.stats:
                self.bpb, self.count = stat("Bits per byte"), stat("Bytes")
            self.stats.set_visibility(False)
            self.view = BytesView(f"What {name} writes")
            self.verdicts = ui.element("div").classes("grid")

    async def run(self, prompt: bytes, gated: bool, request: dict[str, Any]) -> None:
        """Generate, showing bytes as they come; then look at what each cost."""
        with self.card:
            self.verdicts.clear()
            self.stats.set_visibility(False)
            self.view.show(prompt, len(prompt))
            with self.trouble.guard():
                try:
                    self.progress.show(None, "generating")
                    data = await (self._gated if gated else self._plain)(prompt, request)
                    self.progress.show(None, "looking at what each byte cost")
                    if data:
                        await self._look(data, len(prompt))
                finally:
                    self.progress.hide()

    async def _plain(self, prompt: bytes, request: dict[str, Any]) -> bytes:
        data, drawn = prompt, 0.0
        clock = asyncio.get_running_loop().time
        async for kind, piece in self.frame.server.pieces("generate", run=self.name, prompts=[prompt], **request):
            if kind == "piece":
                data += decoded(piece.get("data"))
                if clock() - drawn > REDRAW:
                    drawn = clock()
                    self.view.show(data, len(prompt))
        self.view.show(data, len(prompt))
        return data

    async def _gated(self, prompt: bytes, request: dict[str, Any]) -> bytes:
        data = prompt
        async for kind, piece in self.frame.server.pieces("generate_gated", run=self.name, prompt=prompt, **request):
            if kind == "piece":
                data += decoded(piece.get("data"))
                self.view.show(data, len(prompt))
                with self.verdicts:
                    show_verdict(piece)
        return data

    async def _look(self, data: bytes, prompt: int) -> None:
        found = await self.frame.server.call("predictions", run=self.name, data=data)
        self.view.colour(found)
        written = found["costs"][prompt:]
        self.stats.set_visibility(True)
        self.bpb.set_text(formats.figure(sum(written) / len(written) if written else None, 2))
        self.count.set_text(formats.count(len(written)))


def show_verdict(piece: dict[str, Any]) -> None:
    """What the gate says of a window."""
    with box("card"):
        with box("bar"):
            badge("allowed" if piece["allow"] else "blocked")
            text(f"margin {formats.figure(piece.get('margin'), 2)}", kinds="muted small")
            if piece.get("retries"):
                text(f"sampled again {piece['retries']} times", kinds="muted small")
        text(str(piece.get("why") or ""), "p").style("white-space: pre-wrap")
        if vitals := piece.get("vitals"):
            text(
                " · ".join(
                    f"{key} {formats.short(vitals[key])}" for key in ("K", "C", "S") if vitals.get(key) is not None
                ),
                kinds="muted small",
            )


def labelled_slider(label: str, low: float, high: float, step: float, value: float) -> ui.slider:
    """A slider with its name and its value above it."""
    with box("labelled"):
        with box("key"):
            text(label)
            shown = ui.label(f"{value:.2f}")
        made = ui.slider(min=low, max=high, step=step, value=value).props(f'aria-label="{label}"')
        made.on_value_change(lambda event: shown.set_text(f"{event.value:.2f}"))
    return made
