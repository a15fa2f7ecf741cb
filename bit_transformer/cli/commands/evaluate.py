"""`btlm evaluate`: bits per byte of files, next to compressors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bit_transformer.cli.options import Device, Json, Overlap, Protocol, RunArgument, Store
from bit_transformer.cli.output import (
    EXIT_INTERRUPTED,
    bpb,
    console,
    errors_in_one_line,
    show_comparison,
    show_json,
    show_stopped,
    table,
)
from bit_transformer.cli.training_output import live_progress
from bit_transformer.service import DEFAULT_STORE

if TYPE_CHECKING:
    from bit_transformer.service.evaluation import Evaluation


def run(
    model: RunArgument,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Files, folders, globs or corpora by name.")],
    overlap: Overlap = 0.5,
    protocol: Protocol = None,
    primer_bytes: Annotated[
        int, typer.Option(help="Training bytes, the latest, that compressors read first; 0: no compressors.")
    ] = 1 << 20,
    device: Device = "auto",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Bits per byte of files, next to compressors: starting empty, and after reading what the model has read.

    Every byte is scored once; the protocol is printed.
    """
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        asked = {"run": model, "names": files, "overlap": overlap, "learning": protocol, "primer_bytes": primer_bytes}
        with live_progress() as job:
            found = call("evaluate", asked, Workspace(store, device), job)
        if as_json:
            show_json(found)
        else:
            if len(found.files) > 1:
                made = table("\nfiles", "file", "bits per byte")
                for name, value in found.files.items():
                    made.add_row(name, bpb(value))
                console.print(made)
            what = "bytes in all" if len(found.files) > 1 else f"bytes of {next(iter(found.files))}"
            if found.stopped:
                show_stopped(found.total.bytes, found.of_bytes, f"{bpb(found.total.bpb)} bits per byte so far")
            else:
                _show_codings(found, what) if found.codings else show_comparison(found.total, what)
        if found.stopped:
            raise typer.Exit(EXIT_INTERRUPTED)


def _show_codings(found: Evaluation, what: str) -> None:
    """Print the model next to compressors, best first, with what each has read before."""
    learns = not found.total.protocol.startswith("static")
    rows = [("this model", "its training data", found.total.bpb, found.coded, found.seconds)]
    for coding in found.codings:
        read = f"{coding.primed_with:,} bytes of it" if coding.primed_with else "nothing"
        rows.append((coding.name, read, coding.bpb, coding.coded, coding.seconds))
    made = table(f"\n{found.total.bytes:,} {what}", "coder", "has read", "bits per byte", "bytes", "seconds")
    made.columns[1].justify = "left"
    for name, read, value, coded, seconds in sorted(rows, key=lambda row: row[2]):
        error = f" ± {found.total.standard_error:.3f}" if name == "this model" and found.total.standard_error else ""
        style = "bold" if name == "this model" else None
        made.add_row(name, read, bpb(value) + error, f"{coded:,}", f"{seconds:.1f}", style=style)
    console.print(made)
    adaptive = (
        ""
        if learns
        else "; compressors learn from the file as they go, the model does not (try --protocol online, with experts)"
    )
    console.print(f"model: {found.total.protocol}{adaptive}", style="dim", soft_wrap=True)
