"""`btlm grow`: a larger copy of a model that computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bit_transformer.cli.options import Device, Json, Overwrite, RunArgument, Store
from bit_transformer.cli.output import console, errors_in_one_line, show_json
from bit_transformer.service import DEFAULT_STORE


def run(
    model: RunArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder of the copy.")],
    layers: Annotated[int | None, typer.Option("--layers", help="Layers of the copy.")] = None,
    width: Annotated[int | None, typer.Option("--width", help="Width; a multiple of the width of a head.")] = None,
    window: Annotated[int | None, typer.Option("--window", help="Longest window, in bits.")] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Write a larger copy of a model, which computes the same; `btlm train --init` trains it further."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        sizes = {"num_layers": layers, "d_model": width, "max_seq_len": window}
        given = {name: size for name, size in sizes.items() if size is not None}
        asked = {"run": model, "out": out, "model": given, "overwrite": overwrite}
        made = call("grow", asked, Workspace(store, device))
        if as_json:
            show_json({**vars(made), "model": made.model.model_dump(mode="json")})
            return
        console.print(
            f"{made.out}: {made.parameters_before:,} parameters became {made.parameters:,}; largest difference of a probability "
            f"{made.difference:.1e}. Try: btlm train --init {made.out} ...",
            soft_wrap=True,
        )
