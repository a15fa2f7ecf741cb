"""`btlm repair`: correct flipped bits. `btlm protect`: add parity bits, so that more can be corrected."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bit_transformer.cli.options import Device, Json, RunArgument, Store, parse_range
from bit_transformer.cli.output import EXIT_INTERRUPTED, console, errors_in_one_line, show_json, table
from bit_transformer.cli.training_output import live_progress
from bit_transformer.service import DEFAULT_STORE

if TYPE_CHECKING:
    from bit_transformer.service.restoration import RepairReport

LISTED = 10


def run(
    model: RunArgument,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The damaged file; for a model with parity, a protected one.")
    ],
    out: Annotated[Path, typer.Option(help="File for the repaired bytes.")],
    rate: Annotated[
        float | None, typer.Option(help="Fraction of flipped bits, in (0, 0.5). Default: estimated from the file.")
    ] = None,
    range_: Annotated[
        str | None,
        typer.Option("--range", metavar="FROM:TO", help="Bytes to repair; the others stay unchanged. Default: all."),
    ] = None,
    device: Device = "auto",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Correct flipped bits of a file. Works with any run; best with experts and parity, trained on similar files."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        span = None if range_ is None else parse_range(range_)
        asked = {"run": model, "path": file, "out": out, "rate": rate, "span": span}
        with live_progress() as job:
            found = call("repair", asked, Workspace(store, device), job)
        if as_json:
            show_json(found)
        else:
            _show(found, out, rate_given=rate is not None)
        if found.stopped:
            raise typer.Exit(EXIT_INTERRUPTED)


def _show(found: RepairReport, out: Path, *, rate_given: bool) -> None:
    if found.changes:
        made = table("", "byte", "received", "now", "doubt")
        for change in found.changes[:LISTED]:
            made.add_row(f"{change.offset:,}", _shown(change.received), _shown(change.now), f"{change.doubt:.0%}")
        console.print(made)
    found_rate = f"; about {found.rate:.3%} of the bits were flipped" if not rate_given and found.flipped_bits else ""
    more = f", of which {LISTED} are shown (all: --json)" if len(found.changes) > LISTED else ""
    begin, done = found.repaired
    if done > begin:
        console.print(
            f"{found.flipped_bits:,} bits changed in {done - begin:,} bytes{more}{found_rate}. "
            f"{found.doubtful:,} patches are still doubtful. Written to {out}",
            soft_wrap=True,
        )
    if found.stopped:
        _show_rest(found, out)


def _show_rest(found: RepairReport, out: Path) -> None:
    """Print how to continue a stopped repair."""
    (begin, done), end = found.repaired, found.asked[1]
    if done == begin:
        console.print("Stopped before the first piece was done; nothing was written", soft_wrap=True)
        return
    rest = f"--range {done}:{end} --rate {found.rate:.3g}"
    how = (
        f"btlm repair {found.run} {found.file} {rest} --out {out}.rest; bytes {done} to {end} of that belong into {out}"
        if found.parity
        else f"btlm repair {found.run} {out} {rest} --out {out}"
    )
    console.print(
        f"Stopped: bytes {begin} to {done} are repaired, the others as received. Go on with: {how}", soft_wrap=True
    )


def _shown(byte: int) -> str:
    return f"{byte:02x} {chr(byte) if 32 < byte < 127 else ' '}"


def protect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Any file.")],
    out: Annotated[Path, typer.Option(help="File for the result.")],
    undo: Annotated[bool, typer.Option("--undo", help="Read a protected file back.")] = False,
    as_json: Json = False,
) -> None:
    """Add a parity bit to each byte of a file and pack the nine bits, for `btlm repair` with models with parity."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        made = call("protect", {"path": file, "out": out, "undo": undo}, Workspace())
        if as_json:
            show_json({"bytes": made.bytes, "out": made.file})
        else:
            console.print(
                f"{made.bytes:,} bytes {'read back' if undo else 'protected'}, written to {out}", soft_wrap=True
            )
