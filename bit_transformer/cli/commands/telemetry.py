"""`btlm telemetry`: K, C and S of a file by window, or of a run by step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bit_transformer.cli.options import Device, Json, Store
from bit_transformer.cli.output import (
    console,
    errors_in_one_line,
    progress_console,
    show_alerts,
    show_json,
    spark,
    table,
)
from bit_transformer.service import DEFAULT_STORE

if TYPE_CHECKING:
    from bit_transformer.service.telemetry import FileTelemetry, RunTelemetry

LEGEND = "K: 0 noise, 1 order · C: 0 constant, 1 fair coins · S: 1 like the reference"


def run(
    target: Annotated[str, typer.Argument(metavar="FILE|RUN", help="A file, '-', or a run: its name or folder.")],
    model: Annotated[
        str | None, typer.Option("--run", help="For a file: a calibrated run; S is measured against its reference.")
    ] = None,
    window: Annotated[int, typer.Option(help="For a file: bytes per window.")] = 512,
    top: Annotated[
        int, typer.Option(help="For a file: number of windows to list: the most typical, and those least like it.")
    ] = 5,
    plot: Annotated[Path | None, typer.Option(help="Also draw them, as a PNG.")] = None,
    device: Device = "auto",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Order (K), complexity (C) and similarity to a reference (S), of a file by window or of a run's predictions by step."""
    with errors_in_one_line(as_json):
        from bit_transformer.service import telemetry
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        workspace = Workspace(store, device)
        if telemetry.is_run(target, workspace):
            found = call("telemetry_of_run", {"run": target, "plot": plot}, workspace)
            show_json(found) if as_json else _show_run(found)
            _say_where(plot)
            return
        asked = {"name": target, "run": model, "window": window, "informative": top, "plot": plot}
        of_file = call("telemetry", asked, workspace)
        show_json(of_file) if as_json else _show_file(of_file)
        _say_where(plot)


def _say_where(plot: Path | None) -> None:
    if plot:
        progress_console.print(f"Drawn: {plot}", soft_wrap=True)


def _bars(values: list[float]) -> str:
    """Bars from the minimum to the maximum; changes of less than 0.02 look flat."""
    return spark(values, low=min(values), high=max(max(values), min(values) + 0.02), width=60)


def _show_run(found: RunTelemetry) -> None:
    console.print(f"{found.run}: what the model predicts, by update", style="bold")
    for name, rows in found.series.items():
        values = [value for _, value in rows]
        console.print(f"{name:>9}  first {values[0]:6.3f} {_bars(values)} last {values[-1]:.3f}", soft_wrap=True)
    show_alerts(found.alerts)
    console.print(f"{LEGEND}, here the experts", style="dim", soft_wrap=True)


def _show_file(found: FileTelemetry) -> None:
    windows = found.windows
    console.print(f"{found.file}: {len(windows):,} windows of {windows[0].bytes:,} bytes", style="bold")
    keys = ["K", "C"] if windows[0].S is None else ["K", "C", "S"]
    for key in keys:
        values = [getattr(w, key) for w in windows]
        console.print(f"{key}  least {min(values):.3f} {_bars(values)} most {max(values):.3f}", soft_wrap=True)
    kinds = [w.kind for w in windows if w.kind]
    if kinds:
        console.print(
            ", ".join(f"{kinds.count(kind):,} {kind}" for kind in sorted(set(kinds), key=kinds.count, reverse=True))
        )
    made = table(
        "\nthe most typical window, and those least like it", "offset", *keys, "like it", *(["kind"] if kinds else [])
    )
    for index in found.informative:
        w = windows[index]
        values = [f"{getattr(w, key):.3f}" for key in keys]
        made.add_row(f"{w.offset:,}", *values, f"{found.cluster.count(index):,}", *([w.kind or "-"] if kinds else []))
    console.print(made)
    console.print(LEGEND if found.run else f"{LEGEND}, with --run", style="dim", soft_wrap=True)
