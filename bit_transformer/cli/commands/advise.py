"""`btlm advise` and `btlm trade`: settings that fit, and what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bit_transformer.cli.options import Device, Json, Seconds, Set, parse_size
from bit_transformer.cli.output import console, errors_in_one_line, gigabytes, show_json, table
from bit_transformer.cli.training_output import live_progress

if TYPE_CHECKING:
    from bit_transformer.service.advisor.configuring import Advice, Variant


def run(
    data: Annotated[str | None, typer.Argument(metavar="[DATA]", help="A corpus, file or folder to train on.")] = None,
    task: Annotated[
        str, typer.Option(help="What the model is for: generate, compress, score, infill or repair.")
    ] = "generate",
    parameters: Annotated[str | None, typer.Option(help="Size of the model, about: 500M, 1.5G.")] = None,
    preset: Annotated[str | None, typer.Option(help="Or: tiny, small, medium, large, or a depth such as 6.")] = None,
    seconds: Seconds = None,
    memory: Annotated[str | None, typer.Option(help="Of a device, such as 24GB. Default: what is free here.")] = None,
    devices: Annotated[int, typer.Option(help="Devices that share the training.")] = 1,
    on: Annotated[str | None, typer.Option(help="cpu or cuda, of another machine. Default: this one.")] = None,
    measure: Annotated[float, typer.Option(help="Seconds of updates to time; 0: the time is not predicted.")] = 10.0,
    set_: Set = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Propose settings and a command for a task, a size and a budget, with the memory and the time that they take here."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.settings import read_settings
        from bit_transformer.service.workspace import Workspace

        settings = read_settings(None, set_ or [])
        asked = {
            "task": task,
            "parameters": None if parameters is None else parse_size(parameters),
            "preset": preset,
            "model": settings["model"],
            "train": settings["train"],
            "seconds": seconds,
            "memory": None if memory is None else parse_size(memory),
            "devices": devices,
            "device": on,
            "data": data,
            "measure": measure,
        }
        with live_progress() as job:
            found = call("advise", asked, Workspace(device=device), job)
        if as_json:
            show_json(found)
        else:
            _show(found)


def _show(found: Advice) -> None:
    made = table("", "setting", "why")
    made.columns[1].justify = "left"
    for reason in found.reasons:
        made.add_row(reason.setting, reason.why)
    console.print(made)
    room = "" if found.budget is None else f" of {gigabytes(found.budget)}{'' if found.fits else ': does not fit'}"
    console.print(
        f"\n{found.parameters:,} parameters ({found.active_parameters:,} active); memory {gigabytes(found.memory.peak)}{room}, during {found.memory.when}",
        soft_wrap=True,
    )
    if found.seconds is not None and found.time is not None:
        passes = "" if found.passes is None else f", {found.passes:.2g} passes over the data"
        console.print(
            f"time {found.seconds:,.0f} s: {found.time.updates:,} updates at {found.bytes_per_s:,.0f} bytes a second, and what comes before and between them{passes} "
            f"({found.time.how})",
            soft_wrap=True,
        )
    for name, number in found.smaller.items():
        console.print(f"would fit: {name} {number:,}", soft_wrap=True)
    for warning in found.warnings:
        console.print(f"note: {warning}", style="dim", soft_wrap=True)
    console.print(f"\n{found.command}", style="bold", soft_wrap=True)


def trade(
    variants: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SETTINGS]...",
            help='Settings of each variant, such as model.reversible=true; several in one as "A=1 B=2". Default: plain, checkpointed, reversible.',
        ),
    ] = None,
    preset: Annotated[str, typer.Option(help="tiny, small, medium, large, or a depth such as 6.")] = "small",
    measure: Annotated[
        float, typer.Option(help="Seconds of updates to time, for each; 0: only memory is compared.")
    ] = 3.0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Compare settings by memory and measured time, each with the preset as it is."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        asked: dict[str, object] = {"preset": preset, "seconds": measure}
        if variants:
            asked["variants"] = [[], *(text.split() for text in variants)]
        with live_progress() as job:
            found = call("trade", asked, Workspace(device=device), job)
        if as_json:
            show_json(found)
        else:
            _show_variants(found, preset)


def _show_variants(found: list[Variant], preset: str) -> None:
    made = table(
        f"\npreset {preset}; stored: for the backward pass",
        "settings",
        "memory",
        "stored",
        "s/update",
        "memory x",
        "time x",
    )
    for row in found:
        pace, ratio = row.seconds_per_update, row.time_ratio
        made.add_row(
            " ".join(row.settings) or "as it is",
            gigabytes(row.peak),
            gigabytes(row.activations),
            "-" if pace is None else f"{pace:.3f}",
            f"{row.peak_ratio:.2f}",
            "-" if ratio is None else f"{ratio:.2f}",
        )
    console.print(made)
    for row in found:
        if row.says:
            console.print(f"{' '.join(row.settings)}: {row.says}", style="dim", soft_wrap=True)
