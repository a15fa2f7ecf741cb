"""`btlm score`: where a file is surprising to a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bit_transformer.cli.options import Device, Json, Overlap, Protocol, RunArgument, Store
from bit_transformer.cli.output import (
    EXIT_INTERRUPTED,
    bpb,
    console,
    errors_in_one_line,
    show_json,
    show_stopped,
    spark,
    table,
)
from bit_transformer.cli.training_output import live_progress
from bit_transformer.service import DEFAULT_STORE

if TYPE_CHECKING:
    from bit_transformer.service.evaluation import Scoring


def run(
    model: RunArgument,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to score, or '-'.")],
    window: Annotated[int, typer.Option(help="Bytes per stretch.")] = 256,
    top: Annotated[int, typer.Option(help="Regions to list: of the most surprising, and of the least.")] = 10,
    plot: Annotated[Path | None, typer.Option(help="Also draw bits per byte by offset, as a PNG.")] = None,
    overlap: Overlap = 0.5,
    protocol: Protocol = None,
    device: Device = "auto",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Bits per byte for each stretch of a file: high where the model is surprised."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        asked = {"run": model, "name": file, "window": window, "overlap": overlap, "learning": protocol, "plot": plot}
        with live_progress() as job:
            found = call("score", asked, Workspace(store, device), job)
        if as_json:
            show_json(found)
        else:
            _show(found, top)
        if found.stopped:
            raise typer.Exit(EXIT_INTERRUPTED)


def _show(found: Scoring, top: int) -> None:
    costs = [w.bpb for w in found.windows]
    console.print(
        f"{found.file}: {bpb(found.bpb)} bits per byte; stretches from {bpb(min(costs))} to {bpb(max(costs))}"
    )
    console.print(spark(costs), soft_wrap=True)
    for title, dear in (("\nmost surprising", True), ("\nleast surprising", False)):
        regions = [region for region in found.regions if region.dear == dear][:top]
        if not regions:
            continue
        made = table(title, "offset", "bytes", "bits per byte", "begins with")
        made.columns[-1].justify = "left"
        for region in regions:
            made.add_row(f"{region.offset:,}", f"{region.bytes:,}", bpb(region.bpb), region.content)
        console.print(made)
    console.print(f"model: {found.protocol}", style="dim", soft_wrap=True)
    if found.stopped:
        show_stopped(sum(w.bytes for w in found.windows), found.of_bytes, f"{bpb(found.bpb)} bits per byte so far")
