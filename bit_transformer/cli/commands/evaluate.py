"""`btlm evaluate`: bits per byte of files, next to compressors."""

from __future__ import annotations

from typing import Annotated

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


def run(
    model: RunArgument,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Files, folders, globs or corpora by name.")],
    overlap: Overlap = 0.5,
    protocol: Protocol = None,
    device: Device = "auto",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Bits per byte of files, next to compressors. Every byte is scored once; the protocol is printed."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        asked = {"run": model, "names": files, "overlap": overlap, "learning": protocol}
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
                show_comparison(found.total, what)
        if found.stopped:
            raise typer.Exit(EXIT_INTERRUPTED)
