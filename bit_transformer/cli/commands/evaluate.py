"""`btlm evaluate`: bits per byte of files, beside compressors."""

from __future__ import annotations

from typing import Annotated

import typer

from bit_transformer.cli.options import Json, Overlap, Protocol, RunArgument, Store
from bit_transformer.cli.output import bpb, console, errors_in_one_line, show_comparison, show_json, table
from bit_transformer.service import DEFAULT_STORE


def run(
    model: RunArgument,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Files, folders, globs or corpora by name.")],
    overlap: Overlap = 0.5,
    protocol: Protocol = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Bits per byte: every byte of every file scored once, with the protocol named."""
    with errors_in_one_line(as_json):
        from bit_transformer.service import evaluation

        found = evaluation.evaluate(model, files, overlap=overlap, learning=protocol, store=store)
        if as_json:
            show_json(found)
            return
        if len(found.files) > 1:
            made = table("\nfiles", "file", "bits per byte")
            for name, value in found.files.items():
                made.add_row(name, bpb(value))
            console.print(made)
        show_comparison(found.total, "bytes in all" if len(found.files) > 1 else f"bytes of {next(iter(found.files))}")
