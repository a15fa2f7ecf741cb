"""`btlm diagnose`: how a run goes, what an error means, why a gate blocks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bit_transformer.cli.options import Device, Json, Store
from bit_transformer.cli.output import as_flags, console, errors_in_one_line, gigabytes, show_json, table
from bit_transformer.cli.training_output import live_progress
from bit_transformer.errors import ConfigError
from bit_transformer.service import DEFAULT_STORE

if TYPE_CHECKING:
    from bit_transformer.service.advisor.diagnosis import Diagnosis
    from bit_transformer.service.advisor.error_logs import ErrorDiagnosis
    from bit_transformer.service.advisor.gate import GateDiagnosis

LONGEST = 200_000  # characters of a log that are read, at its end


def run(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="The name of a run in the store.")] = None,
    log: Annotated[Path | None, typer.Option(help="Explain the error in this log; - is standard input.")] = None,
    gate: Annotated[bool, typer.Option("--gate", help="Find out how often the gate of RUN blocks, and why.")] = False,
    file: Annotated[
        str | None, typer.Option(help="With --gate: the text to judge. Default: samples of the model.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="With --gate: of the samples.")] = 1.0,
    preset: Annotated[str | None, typer.Option(help="With --log: the model that was trained.")] = None,
    device: Device = "auto",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Say how a run goes and why: converging, levelled off, diverging, over-fitting, NaN, too slow, blocked by its gate."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        workspace = Workspace(store, device)
        name = None if run is None else Path(run).name  # a run folder has the name of its run
        if run is None and log is None:
            raise ConfigError("got no run and no log; one is needed. Try btlm runs list")
        if log is not None:
            text = sys.stdin.read() if str(log) == "-" else log.read_text(errors="replace")
            asked: dict[str, Any] = {"log": text[-LONGEST:], "run": name, "preset": preset}
            found = call("diagnose_error", asked, workspace)
        elif gate:
            with live_progress() as job:
                found = call("diagnose_gate", {"run": run, "name": file, "temperature": temperature}, workspace, job)
        else:
            found = call("diagnose", {"run": name}, workspace)
        if as_json:
            show_json(found)
        else:
            (_show_error if log is not None else _show_gate if gate else _show)(found)


def _show(found: Diagnosis) -> None:
    console.print(f"{found.run}: {found.verdict} ({found.status})", style="bold", soft_wrap=True)
    for finding in found.findings:
        console.print(f"{'!' if finding.problem else ' '} {finding.kind}: {finding.says}", soft_wrap=True)
        if finding.quoted:
            console.print(f"    {finding.quoted}", style="dim", soft_wrap=True)
        if finding.tries:
            console.print(f"    try {', or '.join(map(as_flags, finding.tries))}", style="dim", soft_wrap=True)


def _show_error(found: ErrorDiagnosis) -> None:
    console.print(found.kind, style="bold")
    console.print(found.says, soft_wrap=True)
    console.print(found.line, style="dim", soft_wrap=True)
    if found.numbers:
        console.print(", ".join(f"{name} {gigabytes(int(size))}" for name, size in found.numbers.items()))
    if found.savings:
        made = table("\nsettings that save memory", "setting", "peak", "fits", "price")
        for saving, fits in zip(found.savings, found.fits, strict=True):
            made.add_row(saving.settings, gigabytes(saving.peak), "yes" if fits else "no", saving.price)
        made.columns[3].justify = "left"
        console.print(made)
    if found.tries:
        console.print(f"try {', or '.join(map(as_flags, found.tries))}", soft_wrap=True)


def _show_gate(found: GateDiagnosis) -> None:
    console.print(f"{found.run}, {found.what}: {found.verdict}", style="bold", soft_wrap=True)
    console.print(found.says, soft_wrap=True)
    made = table("", "", "here", "reference", "floor")
    for name, value in found.medians.items():
        row = [f"{there[name]:.3f}" if name in there else "-" for there in (found.reference, found.floors)]
        made.add_row(f"median {name}", f"{value:.3f}", *row)
    console.print(made)
    if found.tries:
        console.print(f"try {', or '.join(map(as_flags, found.tries))}", soft_wrap=True)
