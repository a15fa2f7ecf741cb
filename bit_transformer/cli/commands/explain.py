"""`btlm explain`: what values of K, C and S mean for a run."""

from __future__ import annotations

from typing import Annotated

import typer

from bit_transformer.cli.options import Device, Json, RunArgument, Store
from bit_transformer.cli.output import console, errors_in_one_line, show_json
from bit_transformer.service import DEFAULT_STORE


def run(
    model: RunArgument,
    K: Annotated[float, typer.Option("--K", help="Negentropy, in [0, 1].")],
    C: Annotated[float, typer.Option("--C", help="Lempel-Ziv complexity, in [0, 1].")],
    S: Annotated[float, typer.Option("--S", help="Symbiosis, in [0, 1].")],
    bytes_: Annotated[int, typer.Option("--bytes", help="Bytes of the window on which they were measured.")] = 512,
    device: Device = "auto",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Classify K, C and S as typical, repetitive, noise or off-domain, by the quantiles that were calibrated for the run."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        found = call("explain", {"run": model, "K": K, "C": C, "S": S, "size": bytes_}, Workspace(store, device))
        if as_json:
            show_json(found)
            return
        console.print(found.kind, style="bold")
        console.print(found.text, soft_wrap=True)
