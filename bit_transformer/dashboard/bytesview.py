"""Bytes on the page that can be looked at: coloured by surprise, and each down to its bits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nicegui import ui
from nicegui.events import GenericEventArguments

from bit_transformer.dashboard import formats
from bit_transformer.dashboard.bytecells import STEPS, as_hex, byte_name, cells_html, plain_html
from bit_transformer.dashboard.parts import attribute, box, text

SHOWN = 6000  # bytes at the end, of longer ones; each is an element of the page


class BytesView:
    """Bytes, and what is known of the one that was picked."""

    def __init__(self, label: str) -> None:
        self.data, self.prompt = b"", 0
        self.found: Mapping[str, Any] | None = None
        self.hidden = text("", kinds="muted small")
        self.hidden.set_visibility(False)
        self.box = (
            ui.html("", sanitize=False)
            .classes("bytes")
            .props(f'tabindex=0 role=group aria-label="{attribute(label)}" data-empty="Press Generate."')
        )
        pick = "(e) => { const at = btlm.pick(e); if (at !== null) emit(at); }"
        self.box.on("click", self._pick, js_handler=pick)
        self.box.on("keydown", self._pick, js_handler=pick)
        self.scale = box_of_scale()
        self.detail = ui.element("div").classes("place").props("aria-live=polite")

    def show(self, data: bytes, prompt: int = 0) -> None:
        """Show bytes without colours; those of the prompt are paler."""
        self.data, self.prompt, self.found = data, prompt, None
        first = max(0, len(data) - SHOWN)
        self.box.set_content(plain_html(data[first:], max(0, prompt - first)))
        self._say_first(first)
        self.box.props(remove="data-pick")
        self.scale.set_visibility(False)
        self.detail.clear()

    def colour(self, found: Mapping[str, Any]) -> None:
        """Colour each byte by what it cost: the result of the operation `predictions`."""
        self.found = found
        first = max(0, len(self.data) - SHOWN)
        self.box.set_content(cells_html(self.data, found["costs"], prompt=self.prompt, first=first))
        self.box.props("data-pick")
        self.scale.set_visibility(True)
        with self.detail:
            text("Click a byte, or walk with the arrow keys, to see its bits.", "p", "muted small")

    def _say_first(self, first: int) -> None:
        self.hidden.set_text(f"The first {first:,} bytes are not shown.")
        self.hidden.set_visibility(first > 0)

    def _pick(self, event: GenericEventArguments) -> None:
        at = int(event.args)
        if self.found is None or not 0 <= at < len(self.data):
            return
        self.detail.clear()
        with self.detail, box("byte"):
            show_byte(self.data, at, self.found)


def box_of_scale() -> ui.element:
    """What the colours mean."""
    with box("scale bytes") as made:
        text("bits per byte")
        for at, step in enumerate((0, *STEPS)):
            with ui.element("span").classes("bar").style("gap: 4px"):
                ui.element("span").classes(f"b s{at}")
                text(f"{step:g}+" if step else "0")
    made.set_visibility(False)
    return made


def show_byte(data: bytes, at: int, found: Mapping[str, Any]) -> None:
    """A byte and its bits: what the model expected of each, and what came."""
    text(f"{byte_name(data[at])} · byte {at:,} · {formats.figure(found['costs'][at], 2)} bits", "h3")
    bits, ones = found["bits"][at], found["ones"][at]
    with box("bits").props("role=table aria-label=Bits"):
        for place, (bit, one) in enumerate(zip(bits, ones, strict=True)):
            name = "parity" if place == 8 else f"bit {place}"
            text(name, kinds="muted small nowrap")
            text(str(bit), kinds="mono")
            with box("one").props(f'role=img aria-label="probability of a 1: {one:.3f}"'):
                ui.element("div").style(f"width: {100 * one:.2f}%")
            text(f"P(1) {one:.3f}", kinds="mono small nowrap")
            text(f"{cost_of_bit(bit, one):.2f} bits", kinds="muted small nowrap num")
    text(as_hex(data[max(0, at - 8) : at + 1]), kinds="mono muted small")


def cost_of_bit(bit: int, one: float) -> float:
    """What a bit costs, given the probability of a 1."""
    probability = one if bit else 1 - one
    return max(0.0, -math.log2(max(probability, 2.0**-40)))
