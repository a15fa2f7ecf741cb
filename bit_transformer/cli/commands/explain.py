"""`btlm explain`: what values of K, C and S mean for a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bit_transformer.cli.options import Device, Json, Store
from bit_transformer.cli.output import console, errors_in_one_line, show_json, table
from bit_transformer.errors import ConfigError
from bit_transformer.service import DEFAULT_STORE

if TYPE_CHECKING:
    from bit_transformer.service.safety import FileExplanation

LISTED = 12


def run(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="A calibrated run. Default: next to what kinds of data measured."),
    ] = None,
    file: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="A file to judge window by window, in place of K, C and S.")
    ] = None,
    *,
    K: Annotated[float | None, typer.Option("--K", help="Negentropy, in [0, 1].")] = None,
    C: Annotated[float | None, typer.Option("--C", help="Lempel-Ziv complexity, in [0, 1].")] = None,
    S: Annotated[float | None, typer.Option("--S", help="Symbiosis, in [0, 1].")] = None,
    bytes_: Annotated[
        int, typer.Option("--bytes", help="Bytes of the window on which they were measured, or of windows of FILE.")
    ] = 512,
    predictions: Annotated[
        bool, typer.Option("--predictions", help="Without RUN: they are of a model's predictions in training.")
    ] = False,
    device: Device = "auto",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Classify K, C and S, or the windows of a file, as typical, repetitive, noise or off-domain, by what was calibrated for the run."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        if file is not None:
            judged = call("explain_file", {"run": model, "name": file, "window": bytes_}, Workspace(store, device))
            if as_json:
                show_json(judged)
            else:
                _show_file(judged)
            return
        if K is None or C is None:
            raise ConfigError(
                "got neither K and C nor a file. Try --K 0.4 --C 0.6 --S 0.6, or btlm explain RUN FILE", field="K"
            )
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


def _show_file(found: FileExplanation) -> None:
    console.print(
        f"{found.file}: of {found.windows:,} windows of {found.window:,} bytes "
        + ", ".join(f"{count:,} {kind}" for kind, count in sorted(found.kinds.items(), key=lambda row: -row[1])),
        soft_wrap=True,
    )
    if found.stretches:
        made = table("\nnot typical", "offset", "bytes", "kind", "")
        for stretch in sorted(found.stretches, key=lambda s: s.begin - s.end)[:LISTED]:
            made.add_row(f"{stretch.begin:#x}", f"{stretch.end - stretch.begin:,}", stretch.kind, stretch.text)
        console.print(made)
    if len(found.stretches) > LISTED:
        console.print(f"{len(found.stretches) - LISTED:,} more are in --json", style="dim")
    console.print(f"{found.alpha:.1%} of typical windows are called otherwise", style="dim")
