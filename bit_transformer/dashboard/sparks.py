"""Sparklines: a few numbers as a small SVG, drawn here so that a table of runs needs no chart library."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]
WIDTH, HEIGHT, EDGE = 96, 24, 2


def sparkline(points: Sequence[Point], label: str = "training curve") -> str:
    """An SVG of a curve, in the colour of the text around it; empty if there is nothing to draw."""
    known = [(x, y) for x, y in points if math.isfinite(y)]
    if len(known) < 2 or known[-1][0] <= known[0][0]:
        return ""
    low, high = min(y for _, y in known), max(y for _, y in known)
    across = (WIDTH - 2 * EDGE) / (known[-1][0] - known[0][0])
    tall = (HEIGHT - 2 * EDGE) / (high - low) if high > low else 0.0
    path = [(EDGE + (x - known[0][0]) * across, HEIGHT - EDGE - (y - low) * tall) for x, y in known]
    line, (end_x, end_y) = " ".join(f"{x:.1f},{y:.1f}" for x, y in path), path[-1]
    return (
        f'<svg class="spark" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{label}"><polyline points="{line}"/><circle cx="{end_x:.1f}" cy="{end_y:.1f}" r="2"/></svg>'
    )


def spread(values: Sequence[float | None], until: float) -> list[Point]:
    """Values that are evenly spaced up to a step, as points."""
    return [(until * (at + 1) / len(values), y) for at, y in enumerate(values) if y is not None]


def extended(points: Sequence[Point], more: Sequence[Point], most: int = 80) -> list[Point]:
    """A curve with new points at its end; where there are too many, every second one goes, but not the last."""
    joined = [*points, *more]
    while len(joined) > most:
        joined = [*joined[:-1:2], joined[-1]]
    return joined
