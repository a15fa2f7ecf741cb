"""`btlm explain`: what values of K, C and S mean for a run."""

from __future__ import annotations

from typing import Annotated

import typer

from bit_transformer.cli.options import Device, Json, Store
from bit_transformer.cli.output import console, errors_in_one_line, show_json
from bit_transformer.errors import ConfigError
from bit_transformer.service import DEFAULT_STORE


def run(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="A calibrated run. Default: next to what kinds of data measured."),
    ] = None,
    *,
    K: Annotated[float, typer.Option("--K", help="Negentropy, in [0, 1].")],
    C: Annotated[float, typer.Option("--C", help="Lempel-Ziv complexity, in [0, 1].")],
    S: Annotated[float | None, typer.Option("--S", help="Symbiosis, in [0, 1].")] = None,
    bytes_: Annotated[int, typer.Option("--bytes", help="Bytes of the window on which they were measured.")] = 512,
    predictions: Annotated[
        bool, typer.Option("--predictions", help="Without RUN: they are of a model's predictions in training.")
    ] = False,
    device: Device = "auto",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Classify K, C and S as typical, repetitive, noise or off-domain, by the quantiles that were calibrated for the run."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        if model is None:
            source = "predictions" if predictions else "bits"
            meant = call("interpret", {"K": K, "C": C, "S": S, "source": source}, Workspace(store, device))
            if as_json:
                show_json(meant)
                return
            console.print(", ".join(filter(None, (meant.verdict, meant.similarity))), style="bold")
            console.print("\n".join(meant.says), soft_wrap=True)
            return
        if S is None:
            raise ConfigError("got no S; a run's limits are of K, C and S. Try --S 0.6", field="S")
        found = call("explain", {"run": model, "K": K, "C": C, "S": S, "size": bytes_}, Workspace(store, device))
        if as_json:
            show_json(found)
            return
        console.print(found.kind, style="bold")
        console.print(found.text, soft_wrap=True)
