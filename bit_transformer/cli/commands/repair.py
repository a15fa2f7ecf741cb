"""`btlm repair`: set flipped bits right; `btlm protect`: give bytes a parity bit, so that more can be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bit_transformer.cli.options import Json, RunArgument, Store
from bit_transformer.cli.output import console, errors_in_one_line, show_json, table
from bit_transformer.cli.training_output import live_progress
from bit_transformer.service import DEFAULT_STORE

LISTED = 10


def run(
    model: RunArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What was received; of a model with parity, protected.")],
    out: Annotated[Path, typer.Option(help="File for the repaired bytes.")],
    rate: Annotated[
        float | None, typer.Option(help="Share of bits that were flipped, in (0, 0.5). Default: found from the file.")
    ] = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Set right the bits of a file that were flipped; with any run, best one with experts and parity, trained on files of its kind."""
    with errors_in_one_line(as_json):
        from bit_transformer.service import restoration

        with live_progress() as report:
            found = restoration.repair_file(model, file, out, rate=rate, store=store, report=report)
        if as_json:
            show_json(found)
            return
        if found.changes:
            made = table("", "byte", "received", "now", "doubt")
            for change in found.changes[:LISTED]:
                made.add_row(f"{change.offset:,}", _shown(change.received), _shown(change.now), f"{change.doubt:.0%}")
            console.print(made)
        found_rate = f"; about {found.rate:.3%} of the bits were flipped" if rate is None and found.flipped_bits else ""
        more = f", of which {LISTED} are shown (all: --json)" if len(found.changes) > LISTED else ""
        console.print(
            f"{found.flipped_bits:,} bits changed in {found.bytes:,} bytes{more}{found_rate}. "
            f"{found.doubtful:,} patches are doubtful still. Written to {out}",
            soft_wrap=True,
        )


def _shown(byte: int) -> str:
    return f"{byte:02x} {chr(byte) if 32 < byte < 127 else ' '}"


def protect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Any file.")],
    out: Annotated[Path, typer.Option(help="File for the result.")],
    undo: Annotated[bool, typer.Option("--undo", help="Read a protected file back.")] = False,
    as_json: Json = False,
) -> None:
    """Follow each byte of a file by its parity bit, nine bits to a byte, packed: what `btlm repair` reads for models with parity."""
    with errors_in_one_line(as_json):
        from bit_transformer.service import restoration

        size = restoration.protect_file(file, out, undo=undo)
        if as_json:
            show_json({"bytes": size, "out": str(out)})
        else:
            console.print(f"{size:,} bytes {'read back' if undo else 'protected'}, written to {out}", soft_wrap=True)
