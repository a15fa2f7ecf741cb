"""Charts: which curves they draw. The drawing, and all points, are in the browser (`static/dashboard.js`), which is sent only new points."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nicegui import ui

from bit_transformer.dashboard.parts import attribute

Series = dict[str, Any]
Points = Mapping[str, Mapping[str, Sequence[float]]]
TONES = tuple(f"c{i}" for i in range(1, 9))

MARKS = {
    "growth": ("grown", "c3"),
    "changed": ("changed", "c6"),
    "trigger": ("trigger", "c2"),
    "drift": ("drift", "bad"),
    "paused": ("paused", "c7"),
    "gate": ("gate", "bad"),
}


def curve(
    name: str, label: str, tone: str = "c1", *, band: bool = False, dots: bool = False, dash: bool = False
) -> Series:
    """A curve of a chart; `band` draws the least and largest values too."""
    return {"name": name, "label": label, "tone": tone, "band": band, "dots": dots, "dash": dash}


class Chart:
    """A chart on the page.

    Args:
        label: what it shows, for screen readers.
        series: its curves; or `values` with `categories`, for bars.
        unit: of values: number, bytes, speed, percent.
    """

    def __init__(self, label: str, series: Sequence[Series] = (), *, kinds: str = "", **more: Any) -> None:
        self.spec = {"kind": "line" if series else "bar", "series": list(series), **more}
        self.element = ui.echart({"series": [], "xAxis": {}, "yAxis": {}}).classes(f"chart {kinds}")
        self.element.props(f'role=img aria-label="{attribute(label)}"')
        self.element.client.run_javascript(f"btlm.adopt({self.element.id}, {_json(self.spec)})")

    def change(self, **more: Any) -> None:
        """Other marks, areas, values or categories."""
        self.element.client.run_javascript(f"btlm.change({self.element.id}, {_json(more)})")


def send(found: Points, *, whole: bool = False) -> None:
    """Send points to all charts of this page: new ones, or whole curves in place of what was there."""
    if found:
        ui.run_javascript(f"btlm.{'set' if whole else 'add'}({_json(rounded(found))})")


def rounded(found: Points) -> dict[str, dict[str, list[float | None]]]:
    """Points with as many digits as can be seen; what is not a number becomes a gap."""
    return {
        name: {part: [_digits(v) for v in values] for part, values in points.items()} for name, points in found.items()
    }


def _digits(value: Any) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.6g}")


def joined(waiting: dict[str, dict[str, list[float]]], found: Points, prefix: str = "") -> None:
    """Add points to those that wait to be sent."""
    for name, points in found.items():
        place = waiting.setdefault(prefix + name, {"step": [], "mean": [], "min": [], "max": []})
        for part in place:
            place[part] += points.get(part, points["mean"])


def mark_of(happening: Mapping[str, Any]) -> dict[str, Any] | None:
    """An event as a line on the curve, if it is one that belongs there."""
    kind = str(happening.get("kind", ""))
    if kind not in MARKS or happening.get("step") is None:
        return None
    label, tone = MARKS[kind]
    return {"x": happening["step"], "label": label, "tone": tone}


def latest_marks(marks: Sequence[Mapping[str, Any]], most: int = 60) -> list[Mapping[str, Any]]:
    """The latest marks, in the order of their places."""
    return sorted(marks, key=lambda mark: mark["x"])[-most:]


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
