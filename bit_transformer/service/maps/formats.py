"""A map as tables, as a picture, and as bookmarks of a hex editor."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np
from numpy.typing import NDArray

from bit_transformer.service.files import write_file
from bit_transformer.service.maps.marks import Mark, ranges_above
from bit_transformer.service.maps.overview import CELLS, MILLI, Overview, bounds, hilbert, look
from bit_transformer.service.maps.scale import STEPS, colours, finite, number_of
from bit_transformer.service.plots import COLOURS, INK, VALIDATION
from bit_transformer.surprisal.records import Kind, SurpriseMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PIECE = 1 << 14  # rows written at once
MOST_BOOKMARKS = 400  # more than that nobody looks through
GAP = 16  # bytes that a bookmarked range may have under the threshold, in a row
PICTURE = (1440, 840)  # pixels
DPI = 120
KINDS: dict[Kind, str] = {  # as on the page
    "text": "#0072b2",
    "code": "#009e73",
    "table": "#56b4e9",
    "markup": "#cc79a7",
    "binary": "#8b8f9c",
    "compressed": "#d55e00",
    "repeated": "#e69f00",
    "zeros": "#d3d7e0",
}
MARK = "#b3261e"


def write_csv(surprise: SurpriseMap, out: TextIO, window: int = 1) -> None:
    """Write a table, separated by commas, with a line of names first.

    For a window of 1 byte: `offset,value,bits`, and `bit7` to `bit0` where costs of single bits are kept, most significant first. For more:
    `offset,bytes,bits_per_byte,peak`. The last window may be shorter.
    """
    if window == 1:
        single = surprise.bit_costs is not None
        names = ["offset", "value", "bits", *(f"bit{7 - bit}" for bit in range(8) if single)]
        out.write(",".join(names) + "\n")
        for rows in _bytes(surprise):
            out.write("".join([f"{at},{value},{','.join(texts)}\n" for at, value, texts in rows]))
    else:
        out.write("offset,bytes,bits_per_byte,peak\n")
        for windows in _windows(surprise, window):
            out.write("".join([f"{at},{size},{mean},{peak}\n" for at, size, mean, peak in windows]))


def write_json(surprise: SurpriseMap, out: TextIO, window: int = 1) -> None:
    """Write JSON lines: one object a line. The first is about the file, and has its segments; the others are about its bytes, or its windows.

    Bytes have `offset`, `value`, `bits`, and `bit_costs` where they are kept, most significant first. Windows have `offset`, `bytes`,
    `bits_per_byte` and `peak`.
    """
    size = len(surprise.costs)
    head = {
        "name": surprise.name,
        "bytes": size,
        "bits_per_byte": number_of(sum(mean * width for _, width, mean, _ in _all_windows(surprise)) / max(size, 1)),
        "reader": surprise.reader,
        "window": window,
        "segments": [
            {
                "begin": surprise.begin + s.begin,
                "end": surprise.begin + s.end,
                "kind": s.kind,
                "bits_per_byte": number_of(s.bpb),
                "like": s.like,
            }
            for s in surprise.segments
        ],
    }
    out.write(json.dumps(head, allow_nan=False) + "\n")
    if window == 1:
        for rows in _bytes(surprise):
            lines = [
                f'{{"offset": {at}, "value": {value}, "bits": {texts[0]}'
                + (f', "bit_costs": [{", ".join(texts[1:])}]}}\n' if len(texts) > 1 else "}\n")
                for at, value, texts in rows
            ]
            out.write("".join(lines))
    else:
        for windows in _windows(surprise, window):
            lines = [
                f'{{"offset": {at}, "bytes": {width}, "bits_per_byte": {mean}, "peak": {peak}}}\n'
                for at, width, mean, peak in windows
            ]
            out.write("".join(lines))


def write_png(surprise: SurpriseMap, path: Path, *, hilbert: bool = False) -> None:
    """Draw the whole file: mean surprise of its parts, segments beside it, and the curve by offset. 1440 by 840 pixels.

    Args:
        hilbert: the parts are along a Hilbert curve, where near in the file is near in the picture; else line by line.

    Raises:
        OSError: writing failed; an old file stays.
        MissingExtra: matplotlib is not installed.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    seen = next(said for said in look(surprise) if isinstance(said, Overview))
    figure = Figure(figsize=(PICTURE[0] / DPI, PICTURE[1] / DPI), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(3.4, 1), width_ratios=(1, 1) if hilbert else (22, 1))
    left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    curve = figure.add_subplot(grid[1, :])
    picture, kinds = _hilbert_pictures(surprise, seen) if hilbert else _line_pictures(surprise, seen)
    for axes, pixels in ((left, picture), (right, kinds)):
        axes.imshow(pixels, interpolation="nearest", aspect="equal" if hilbert else "auto")
        axes.set_xticks([])
        axes.set_yticks([])
    _name(left, f"{surprise.name}: {seen.bits / max(len(surprise.costs), 1):.3f} bits per byte")
    _name(right, "segments" if hilbert else "")
    if not hilbert:
        rows = np.linspace(0, len(picture), 6)
        left.set_yticks(
            rows - 0.5,
            [f"{surprise.begin + int(row / len(picture) * len(surprise.costs)):#x}" for row in rows],
            fontsize=8,
        )
    _curve(curve, surprise, seen)
    used = [kind for kind in KINDS if any(s.kind == kind for s in surprise.segments)]
    patches = [Patch(color=KINDS[kind], label="one byte" if kind == "zeros" else kind) for kind in used]
    if patches:
        figure.legend(handles=patches, loc="outside lower left", ncols=len(patches), frameon=False, fontsize=8)
    _scale(figure.add_axes((0.74, 0.012, 0.24, 0.014)))
    picture_file = io.BytesIO()
    with warnings.catch_warnings():  # file names may have characters that the font lacks; boxes are drawn for them
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font", category=UserWarning)
        figure.savefig(picture_file, format="png", dpi=DPI)
    write_file(path, picture_file.getvalue())


def write_imhex(surprise: SurpriseMap, path: Path, marks: Sequence[Mark] = (), threshold: float = 8.0) -> None:
    """Write bookmarks that ImHex imports (File, Import, Bookmarks): marks, or the ranges above a threshold where there are none, and segments.

    The most surprising come first: by all their bits for marks and ranges, by bits per byte for segments. There are 400 at most.

    Raises:
        OSError: writing failed; an old file stays.
    """
    if marks:
        found = [(m.begin, m.end, m.label, m.bits) for m in marks]
    else:
        found = [
            (begin, end, f"{threshold:g} bits or more", float(surprise.costs[begin:end].sum(dtype=np.float64)))
            for begin, end in ranges_above(surprise, threshold, gap=GAP)
        ]
    found = sorted(found, key=lambda each: -number_of(each[3]))
    segments = sorted(surprise.segments, key=lambda s: -number_of(s.bpb))
    shift = surprise.begin
    room = max(MOST_BOOKMARKS - len(segments), MOST_BOOKMARKS // 2)
    bookmarks = [
        _bookmark(shift + begin, shift + end, label, f"{bits:,.1f} bits in {end - begin:,} bytes", MARK)
        for begin, end, label, bits in found[:room]
    ]
    for segment in segments[: MOST_BOOKMARKS - len(bookmarks)]:
        like = {None: "", True: ", like the reference", False: ", not like the reference"}[segment.like]
        comment = f"{number_of(segment.bpb):.2f} bits per byte{like}"
        bookmarks.append(
            _bookmark(shift + segment.begin, shift + segment.end, segment.kind, comment, KINDS[segment.kind])
        )
    for number, bookmark in enumerate(bookmarks, 1):
        bookmark["id"] = number
    write_file(path, json.dumps({"bookmarks": bookmarks}, indent=1, allow_nan=False).encode())


def _bookmark(begin: int, end: int, name: str, comment: str, colour: str) -> dict[str, object]:
    red, green, blue = bytes.fromhex(colour[1:])
    return {
        "name": name,
        "comment": comment,
        "color": 0x60 << 24 | blue << 16 | green << 8 | red,  # as Dear ImGui has them; bytes stay readable
        "region": {"address": begin, "size": end - begin},
        "locked": True,
        "highlightVisible": True,
    }


def _bytes(surprise: SurpriseMap) -> Iterator[Iterator[tuple[int, int, list[str]]]]:
    """Pieces of offsets, values, and costs as text."""
    for at in range(0, len(surprise.costs), PIECE):
        here = slice(at, at + PIECE)
        costs = surprise.costs[here, None]
        if surprise.bit_costs is not None:
            costs = np.concatenate((costs, surprise.bit_costs[here]), axis=1)
        values = surprise.data[here].tolist()
        first = surprise.begin + at
        yield zip(range(first, first + len(values)), values, _texts(costs), strict=True)


def _texts(costs: NDArray[np.float16]) -> list[list[str]]:
    """Costs as text, four digits each: float16 has no more. Each number is made into text once."""
    different, which = np.unique(finite(costs), return_inverse=True)
    texts = np.array([f"{number_of(cost):.4g}" for cost in different.tolist()], dtype=object)
    found: list[list[str]] = texts[which.reshape(costs.shape)].tolist()
    return found


def _windows(surprise: SurpriseMap, window: int) -> Iterator[list[tuple[int, int, float, float]]]:
    """Pieces of offsets, sizes, means and peaks of windows."""
    size, many = len(surprise.costs), max(1, (1 << 20) // window) * window
    for at in range(0, size, many):
        costs = finite(surprise.costs[at : at + many])
        begins = np.arange(0, len(costs), window)
        sizes = np.diff(np.append(begins, len(costs)))
        means = (np.add.reduceat(costs, begins, dtype=np.float64) / sizes).round(4).tolist()
        peaks = np.maximum.reduceat(costs, begins).round(3).tolist()
        yield [
            (surprise.begin + at + begin, width, mean, round(peak, 3))
            for begin, width, mean, peak in zip(begins.tolist(), sizes.tolist(), means, peaks, strict=True)
        ]


def _all_windows(surprise: SurpriseMap) -> Iterator[tuple[int, int, float, float]]:
    for windows in _windows(surprise, 1 << 20):
        yield from windows


def _cells(surprise: SurpriseMap, seen: Overview, wanted: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Colours of `wanted` parts of the file: by their means, and by their kinds."""
    size = len(surprise.costs)
    at = np.arange(wanted, dtype=np.int64) * size // wanted  # the first byte of each
    begins = bounds(size, len(seen.means))
    sums = np.concatenate(([0], np.cumsum(seen.means * np.diff(begins).astype(np.float64))))
    edges = np.append(at, size).astype(np.float64)
    totals = np.diff(np.interp(edges, begins, sums)) / np.maximum(np.diff(edges), 1) / MILLI
    means = colours("light")[np.clip(np.rint(totals * STEPS), 0, 255).astype(np.uint8)]
    table = np.array([list(bytes.fromhex(KINDS[s.kind][1:])) for s in surprise.segments] or [[240, 242, 246]], np.uint8)
    starts = np.array([s.begin for s in surprise.segments] or [0])
    which = np.clip(np.searchsorted(starts, at, side="right") - 1, 0, len(table) - 1)
    return means, table[which]


def _line_pictures(surprise: SurpriseMap, seen: Overview) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    wanted = min(max(len(seen.means), 1), CELLS)
    rows = max(1, int(math.sqrt(wanted / 3)))
    columns = max(1, wanted // rows)
    means, _ = _cells(surprise, seen, rows * columns)
    _, kinds = _cells(surprise, seen, min(max(len(surprise.costs), 1), 4096))
    return means.reshape(rows, columns, 3), kinds.reshape(-1, 1, 3)


def _hilbert_pictures(surprise: SurpriseMap, seen: Overview) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    order = min(8, int(math.log2(max(1, len(seen.means)))) // 2)
    x, y = hilbert(order)
    pictures = []
    for shades in _cells(surprise, seen, 4**order):
        picture = np.zeros((2**order, 2**order, 3), np.uint8)
        picture[y, x] = shades
        pictures.append(picture)
    return pictures[0], pictures[1]


def _curve(axes: Axes, surprise: SurpriseMap, seen: Overview) -> None:
    size, cells = len(surprise.costs), len(seen.means)
    parts = min(cells, 1200)
    if parts:
        first = np.arange(parts) * cells // parts
        widths = np.diff(bounds(size, cells))
        sums = np.add.reduceat(seen.means * widths.astype(np.float64), first)
        means = sums / np.add.reduceat(widths, first) / MILLI
        peaks = np.maximum.reduceat(seen.peaks, first) / STEPS
        at = bounds(size, cells)[first]
        axes.fill_between(at, means, peaks, step="post", color=INK, alpha=0.15, linewidth=0, label="peak")
        axes.step(at, means, where="post", color=VALIDATION, linewidth=0.9, label="mean")
        axes.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    axes.set_xlim(0, max(size, 1))
    axes.set_ylim(bottom=0)
    axes.axhline(8, color=COLOURS[6], linewidth=0.7, linestyle=":")
    axes.set_xlabel("byte offset")
    axes.set_ylabel("bits per byte")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.xaxis.set_major_formatter(lambda x, _: f"{surprise.begin + x:,.0f}")


def _scale(axes: Axes) -> None:
    """The colours, with numbers."""
    shares = np.linspace(0, 1, 256)
    at = np.clip(np.rint(-4 * np.log2(1 - shares * (1 - 2.0**-4)) * STEPS), 0, 255).astype(int)
    axes.imshow(colours("light")[at][None], aspect="auto", extent=(0, 1, 0, 1))
    axes.set_yticks([])
    ticks = (0, 1, 2, 4, 8, 16)
    axes.set_xticks(
        [(1 - 2 ** (-t / 4)) / (1 - 2.0**-4) for t in ticks], [*map(str, ticks[:-1]), "16+ bits"], fontsize=7
    )
    axes.tick_params(length=0, pad=1, labeltop=True, labelbottom=False)


def _name(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", color=INK, parse_math=False, fontsize=10)
