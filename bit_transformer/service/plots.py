"""Plots of runs, as PNG files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

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


class Line(NamedTuple):
    """A line of a plot, by its points.

    Attributes:
        colour: number of its colour, so that it is the same in several plots.
        strong: whether it stands out.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int
    strong: bool = False


# Colours that stay apart for most eyes: Okabe & Ito 2008, "Color universal design".
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")
STYLES = ("-", "--", ":", "-.")


def lines_svg(panels: Sequence[tuple[str, Sequence[Line]]], *, y: str, title: str, log: bool = False) -> str:
    """Panels with the same lines over different quantities, as SVG with real text. Each panel is the label of its x axis, and its lines.

    Args:
        log: whether the x axes are logarithmic.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    figure = _figure((4.2 * len(panels) if len(panels) > 1 else 6.4, 4.0))
    import matplotlib
    from matplotlib.ticker import LogLocator, NullFormatter

    for axes, (label, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True
    ):
        for line in lines:
            axes.plot(
                [x for x, _ in line.points],
                [value for _, value in line.points],
                marker="o",
                markersize=3.5 if line.strong else 2.5,
                linewidth=2.2 if line.strong else 1.2,
                color=COLOURS[line.colour % len(COLOURS)],
                linestyle=STYLES[line.colour // len(COLOURS) % len(STYLES)],
                label=line.name,
                zorder=3 if line.strong else 2,
            )
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel(y)
            handles = axes.get_legend_handles_labels()
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=11, parse_math=False)
    figure.legend(*handles, loc="outside lower left", ncols=4, frameon=False, fontsize=8)
    picture = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bit-transformer"}):
        figure.savefig(picture, format="svg", metadata={"Date": None})
    return picture.getvalue()


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
