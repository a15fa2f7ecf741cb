"""`btlm map`: where a file is surprising. `btlm locate`: where it is damaged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bit_transformer.cli.options import Device, Json, Store, parse_range
from bit_transformer.cli.output import bpb, console, errors_in_one_line, show_json, table
from bit_transformer.cli.training_output import live_progress
from bit_transformer.errors import ConfigError
from bit_transformer.service import DEFAULT_STORE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bit_transformer.service.locating import Located
    from bit_transformer.service.maps.mapping import Mapped
    from bit_transformer.surprisal.damage import Damage

LISTED = 12

File = Annotated[Path, typer.Argument(metavar="FILE", help="Any file.")]
Model = Annotated[
    str | None,
    typer.Option("--run", "--model", metavar="RUN", help="A run whose model reads the file. Default: experts alone."),
]
Reference = Annotated[
    list[str] | None,
    typer.Option("--reference", metavar="CLEAN", help="Clean files of the same kind; several may be given."),
]
FalseAlarms = Annotated[
    float, typer.Option("--false-alarms", help="Ranges per megabyte of clean data that are reported as damaged.")
]
Range = Annotated[
    str | None, typer.Option("--range", metavar="FROM:TO", help="Bytes to read. Default: all of the file.")
]


def run(
    file: File,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The page. Default: FILE.map.html, unless another format is asked for."),
    ] = None,
    model: Model = None,
    reference: Reference = None,
    csv: Annotated[Path | None, typer.Option(help="Also a table of bytes or windows; - is standard output.")] = None,
    json_lines: Annotated[
        Path | None, typer.Option("--json-lines", help="The same as JSON, one object a line; - is standard output.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Also a picture.")] = None,
    hilbert: Annotated[bool, typer.Option("--hilbert", help="Wind the picture along a Hilbert curve.")] = False,
    imhex: Annotated[Path | None, typer.Option(help="Also bookmarks that ImHex opens, such as map.hexbm.")] = None,
    window: Annotated[int, typer.Option(help="Bytes of a row of the tables.")] = 1,
    false_alarms: FalseAlarms = 1.0,
    range_: Range = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    device: Device = "auto",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Show where a file is surprising, byte by byte: one HTML page, a picture, tables."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        if png is not None and png.suffix.lower() != ".png":
            raise ConfigError(
                f"got --png {png}; a name that ends in .png is needed. Try --png {png.with_suffix('.png')}"
            )
        others = (csv, json_lines, png, imhex)
        page = out or (None if any(others) else file.with_name(f"{file.name}.map.html"))
        asked = {
            "path": file,
            "run": model,
            "reference": tuple(reference or ()),
            "out": page,
            "csv": csv,
            "table": json_lines,
            "png": png,
            "imhex": imhex,
            "window": window,
            "hilbert": hilbert,
            "span": None if range_ is None else parse_range(range_),
            "false_alarms": false_alarms,
            "overwrite": overwrite,
        }
        with live_progress() as job:
            found = call("map", asked, Workspace(store, device), job)
        if Path("-") in others:
            return
        if as_json:
            show_json(found)
        else:
            _show_map(found)


def _show_map(found: Mapped) -> None:
    rate = found.bytes / max(found.seconds, 1e-9)
    console.print(
        f"{found.file}: {found.bytes:,} bytes, {bpb(found.bpb)} bits per byte, of the cheaper way of each; read at {rate / 1e6:.2f} MB/s",
        soft_wrap=True,
    )
    known = any(part.like is not None for part in found.segments)
    columns = ("offset", "bytes", "kind", "bits per byte", *(["like the reference"] if known else []))
    made = table("\nparts, the largest first", *columns)
    for part in sorted(found.segments, key=lambda s: s.begin - s.end)[:LISTED]:
        like = ["yes" if part.like else "no"] if known else []
        made.add_row(f"{part.begin:#x}", f"{part.end - part.begin:,}", part.kind, bpb(part.bpb), *like)
    console.print(made)
    if len(found.segments) > LISTED:
        console.print(f"{len(found.segments) - LISTED:,} smaller ones are in the page and in --json", style="dim")
    if found.damaged:
        _show_damage(found.damaged, len(found.damaged))
    console.print(f"\nread by {found.reader}", style="dim", soft_wrap=True)
    console.print(f"written: {', '.join(found.written)}", soft_wrap=True)


def locate(
    file: File,
    model: Model = None,
    reference: Reference = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="CLEAN", help="An intact version of the file; what it has too is not reported."),
    ] = None,
    false_alarms: FalseAlarms = 1.0,
    range_: Range = None,
    device: Device = "auto",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Find damaged ranges of a file, at a known rate of false alarms."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        asked = {
            "path": file,
            "run": model,
            "reference": tuple(reference or ()),
            "against": against,
            "false_alarms": false_alarms,
            "span": None if range_ is None else parse_range(range_),
        }
        with live_progress() as job:
            found = call("locate", asked, Workspace(store, device), job)
        if as_json:
            show_json(found)
        else:
            _show_located(found, against)


def _show_located(found: Located, against: str | None) -> None:
    _show_damage(found.ranges, found.found)
    if against is not None:
        console.print(
            f"what {against} has too is not reported; of what differs, only you know what is damage", soft_wrap=True
        )
    elif found.false_alarms is None or found.between is None:
        console.print(
            "How many of these are false alarms is not known: there is nothing clean to compare with. Give --reference or --run",
            style="yellow",
            soft_wrap=True,
        )
    else:
        low, high = found.between
        console.print(
            f"{found.reference_bytes:,} bytes of clean data had {found.false_alarms:.2g} such ranges per megabyte "
            f"(95 % interval {low:.2g} to {high:.2g}, if this file is as they are)",
            soft_wrap=True,
        )
    if found.blind:
        console.print(
            f"{found.blind:,} of {found.bytes:,} bytes are compressed or encrypted; damage leaves no mark there",
            style="yellow",
            soft_wrap=True,
        )
    console.print(f"read by {found.reader}", style="dim", soft_wrap=True)


def _show_damage(ranges: Sequence[Damage], count: int) -> None:
    if not count:
        console.print("nothing looks damaged")
        return
    made = table(
        f"\n{count:,} range{'s look' if count > 1 else ' looks'} damaged, the clearest first",
        "offset",
        "bytes",
        "evidence",
        "kind",
        "",
    )
    made.columns[-1].justify = "left"
    for d in ranges[:LISTED]:
        made.add_row(f"{d.begin:#x}", f"{d.length:,}", f"{d.bits:.0f} bits", d.kind, d.text)
    console.print(made)
    if count > LISTED:
        console.print(f"{count - LISTED:,} more are in --json", style="dim")
