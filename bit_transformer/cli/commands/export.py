"""`btlm export`: a model in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bit_transformer.cli.options import Json, RunArgument, Store
from bit_transformer.cli.output import console, errors_in_one_line, show_json
from bit_transformer.cli.training_output import live_progress
from bit_transformer.service import DEFAULT_STORE


def run(
    model: RunArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write, a .zip.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Pack a model into one file: checkpoint, settings, gate, metrics, and a model card made from its records."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        with live_progress() as job:
            made = call("export", {"run": model, "out": file, "overwrite": overwrite}, Workspace(store), job)
        if as_json:
            show_json(made)
            return
        what = ", ".join(f"{name} ({size:,} bytes)" for name, size in made.files.items())
        console.print(f"exported {made.run} to {made.out}: {what}", soft_wrap=True)
