"""`btlm doctor`: what this machine has, and whether everything works."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bit_transformer.cli.options import Device, Json, Store
from bit_transformer.cli.output import EXIT_INPUT, console, errors_in_one_line, gigabytes, show_json, table
from bit_transformer.service import DEFAULT_STORE

if TYPE_CHECKING:
    from bit_transformer.service.advisor.doctor import Machine


def run(device: Device = "auto", store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """Look at this machine: processor, memory, GPUs, disk, versions, and whether all that is needed works (else exit code 2)."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        found: Machine = call("doctor", {}, Workspace(store, device))
        if as_json:
            show_json(found)
        else:
            _show(found)
    if not found.well:
        raise SystemExit(EXIT_INPUT)


def _show(found: Machine) -> None:
    memory = "memory unknown" if found.memory_free is None else f"{gigabytes(found.memory_free)} of memory free"
    bf16 = "bfloat16" if found.bfloat16 else "no bfloat16"
    console.print(
        f"{found.processor}, {found.cores} cores ({bf16}), {memory}, {gigabytes(found.disk_free)} of disk free",
        soft_wrap=True,
    )
    for gpu in found.gpus:
        console.print(f"{gpu.name}, {gigabytes(gpu.memory_free)} of {gigabytes(gpu.memory_total)} free", soft_wrap=True)
    console.print(f"device: {found.device}; {found.platform}, Python {found.python}", soft_wrap=True)
    console.print(", ".join(f"{name} {number}" for name, number in found.versions.items()), style="dim", soft_wrap=True)
    made = table("", "", "", "")
    made.show_header = False
    made.columns[2].justify = "left"
    for check in found.checks:
        made.add_row("✓" if check.ok else "✗" if check.needed else "-", check.name, check.says)
    made.columns[1].justify = "left"
    console.print(made)
