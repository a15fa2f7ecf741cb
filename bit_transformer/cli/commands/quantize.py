"""`btlm quantize`: a copy of a model with weights of 8 or 4 bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bit_transformer.cli.options import Device, Json, Overwrite, RunArgument, Store
from bit_transformer.cli.output import bpb, console, errors_in_one_line, show_json, table
from bit_transformer.cli.training_output import live_progress
from bit_transformer.service import DEFAULT_STORE

if TYPE_CHECKING:
    from bit_transformer.service.quantization import Quantized


def run(
    model: RunArgument,
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]...", help="Files to score both models on. Default: the run's held-out data."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder or .safetensors file of the copy. Default: RUN-int8, RUN-int4.")
    ] = None,
    bits: Annotated[
        int | None, typer.Option(help="8 or 4. Default: what the run was trained for (--qat), else 8.")
    ] = None,
    group: Annotated[
        int | None, typer.Option(help="Weights that share a scale. Default: 64 with 8 bits, 32 with 4.")
    ] = None,
    activations: Annotated[
        bool, typer.Option("--activations", help="Also round the inputs of all matrices to 8 bits.")
    ] = False,
    eval_bytes: Annotated[int, typer.Option(help="Bytes to score, at most.")] = 1 << 17,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Measure memory and speed, each model in its own process.")
    ] = True,
    overwrite: Overwrite = False,
    device: Device = "auto",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Write a copy of a model with weights of 8 or 4 bits, and show what that costs and saves."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        asked = {
            "run": model,
            "out": out,
            "bits": bits,
            "group": group,
            "activations": activations,
            "names": files or (),
            "eval_bytes": eval_bytes,
            "measure": measure,
            "overwrite": overwrite,
        }
        with live_progress() as job:
            made = call("quantize", asked, Workspace(store, device), job)
        if as_json:
            show_json(made)
        else:
            _show(made)


def _show(made: Quantized) -> None:
    how = f"{made.bits}-bit weights in groups of {made.group}{', 8-bit inputs' if made.activations else ''}"
    console.print(f"\n{how}{', as it was trained' if made.trained else ''}", style="bold", soft_wrap=True)
    shown = table("", "", "before", "after", "ratio")
    shown.title = None  # it would be wrapped to the table's width
    before, after = made.before, made.after
    if before.bpb is not None and after.bpb is not None:
        shown.add_row("bits per byte", bpb(before.bpb), bpb(after.bpb), f"{after.bpb - before.bpb:+.4f}")
    for name, old, new in (
        ("weights", before.weight_bytes, after.weight_bytes),
        ("checkpoint", before.file_bytes, after.file_bytes),
        ("peak memory", before.peak_bytes, after.peak_bytes),
    ):
        if old and new:
            shown.add_row(name, f"{old / 1e6:,.1f} MB", f"{new / 1e6:,.1f} MB", f"{new / old:.1%}")
    if before.bytes_per_s and after.bytes_per_s:
        rates = (f"{before.bytes_per_s:,.0f} bytes/s", f"{after.bytes_per_s:,.0f} bytes/s")
        shown.add_row("sampling, one stream", *rates, f"{after.bytes_per_s / before.bytes_per_s:.2f} x")
    console.print(shown)
    if made.scored:
        console.print(f"{made.scored:,} bytes scored: {made.protocol}", style="dim", soft_wrap=True)
    console.print(f"written to {made.out}", soft_wrap=True)
