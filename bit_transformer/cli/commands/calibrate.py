"""`btlm calibrate`: measure normal text, and set the limits of a run's gate."""

from __future__ import annotations

from typing import Annotated

import typer

from bit_transformer.cli.options import Device, Json, RunArgument, Store
from bit_transformer.cli.output import console, errors_in_one_line, show_json, table
from bit_transformer.cli.training_output import live_progress
from bit_transformer.service import DEFAULT_STORE


def run(
    model: RunArgument,
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILES...",
            help="Reference files that the model was not trained on. Default: the run's held-out data.",
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(help="False-alarm rate, in (0, 0.5).")] = 0.01,
    seed: Annotated[int, typer.Option(help="Seed of the random division of the windows.")] = 0,
    device: Device = "auto",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Set the limits of a run's gate, for each window length, so that a known fraction of normal windows is blocked."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        asked = {"run": model, "names": files or (), "alpha": alpha, "seed": seed}
        with live_progress() as job:
            found = call("calibrate", asked, Workspace(store, device), job)
        if as_json:
            show_json(found)
            return
        columns = ("bytes", "windows", "C floor", "median", "S floor", "median", "loop", "alarms")
        made = table(f"\nlimits for a false-alarm rate of {found.alpha:.2%}", *columns)
        for row in found.lengths:
            numbers = (row.C_floor, row.C_median, row.S_floor, row.S_median)
            expected = f"{row.alarms[0]:.2%} to {row.alarms[1]:.2%}"
            copied = f"{row.most_copied:,.0f}"
            made.add_row(f"{row.bytes:,}", f"{row.windows:,}", *(f"{x:.3f}" for x in numbers), copied, expected)
        console.print(made)
        if found.left_out:
            sizes = ", ".join(f"{size:,}" for size in found.left_out)
            console.print(
                f"left out: {sizes} bytes; alpha={found.alpha:g} needs more reference bytes for them", soft_wrap=True
            )
        console.print(
            f"reference of S: {found.reference}; {found.reference_bytes:,} reference bytes; loop: bytes that a loop may copy; alarms: "
            f"95 % interval of the false-alarm rate on new text of this kind. Written to {found.file}",
            style="dim",
            soft_wrap=True,
        )
