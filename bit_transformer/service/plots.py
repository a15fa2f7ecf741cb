"""Plots of runs, as PNG files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bit_transformer.errors import ConfigError, MissingExtra
from bit_transformer.service.files import check_out, write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONG_NAMES = {"K": "0 noise, 1 order", "C": "0 constant, 1 coins", "S": "1 like the reference"}
INK, TRAIN, VALIDATION = "#333333", "#9db8d2", "#c2410c"


def plot_loss(
    train: Mapping[int, float],
    validation: Mapping[int, float],
    path: Path,
    *,
    title: str,
    marks: Sequence[tuple[int, str]] = (),
) -> None:
    """Training and validation bits per byte by step; marks show when the model grew, and to what."""
    figure = _figure((8, 4.5))
    axes = figure.subplots()
    axes.plot(list(train), list(train.values()), color=TRAIN, linewidth=0.8, label="training, each update")
    if validation:
        last = list(validation.values())[-1]
        axes.plot(
            list(validation),
            list(validation.values()),
            "o-",
            color=VALIDATION,
            markersize=4,
            label=f"validation, last {last:.3f}",
        )
    values = sorted([*train.values(), *validation.values()])
    axes.set_ylim(max(0.0, values[0] - 0.2), min(8.2, values[int(0.98 * (len(values) - 1))] + 0.3))
    for step, text in marks:
        axes.axvline(step, color=INK, linewidth=0.8, linestyle=":")
        axes.annotate(
            text, (step, 0.98), xycoords=("data", "axes fraction"), rotation=90, va="top", ha="right", fontsize=7
        )
    _finish(axes, "update", "bits per byte", title)
    axes.legend(frameon=False)
    _save(figure, path)


def plot_windows(starts: Sequence[int], bpb: Sequence[float], path: Path, *, title: str) -> None:
    """Bits per byte by position in a file."""
    figure = _figure((9, 3.5))
    axes = figure.subplots()
    axes.step(list(starts), list(bpb), where="post", color=VALIDATION, linewidth=0.9)
    axes.set_ylim(bottom=0)
    _finish(axes, "byte offset", "bits per byte", title)
    _save(figure, path)


def plot_telemetry(
    series: Mapping[str, Sequence[tuple[int, float]]],
    path: Path,
    *,
    title: str,
    x: str,
    marks: Sequence[int] = (),
) -> None:
    """K, C and S, one below the other; marks show alerts."""
    figure = _figure((9, 1.2 + 1.6 * len(series)))
    rows = figure.subplots(len(series), sharex=True, squeeze=False)[:, 0]
    for axes, (name, points) in zip(rows, series.items(), strict=True):
        axes.plot(*zip(*points, strict=True), color=VALIDATION, linewidth=0.9)
        for mark in marks:
            axes.axvline(mark, color=INK, linewidth=0.8, linestyle=":")
        values = [value for _, value in points]
        room = max(0.05, 0.1 * (max(values) - min(values)))
        axes.set_ylim(max(-0.02, min(values) - room), min(1.02, max(values) + room))
        _finish(axes, x if axes is rows[-1] else "", f"{name}: {LONG_NAMES[name]}", title if axes is rows[0] else "")
    _save(figure, path)


def check_plot(path: Path) -> None:
    """Refuse a plot that cannot be drawn or written, before the work for it starts.

    Raises:
        ConfigError: not a PNG file, or it cannot be written to.
        MissingExtra: matplotlib is not installed.
    """
    if path.suffix.lower() != ".png" or path.is_dir():
        raise ConfigError(f"got plot={str(path)!r}; it must be a file that ends in .png. Try plot.png")
    check_out(path, "plot")
    _figure((1, 1))


def _figure(size: tuple[float, float]) -> Figure:
    """An empty figure; imports matplotlib.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise MissingExtra(
            f"plots need matplotlib, which cannot be loaded ({missing}). Try pip install matplotlib"
        ) from None
    return Figure(figsize=size, layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    picture = io.BytesIO()
    with warnings.catch_warnings():  # file names may have characters that the font lacks; boxes are drawn for them
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font", category=UserWarning)
        figure.savefig(picture, format="png", dpi=120)
    write_file(path, picture.getvalue())


def _finish(axes: Axes, x: str, y: str, title: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, loc="left", color=INK, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.xaxis.set_major_formatter("{x:,.0f}")
