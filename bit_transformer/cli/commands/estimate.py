"""`btlm estimate`: memory of a training, or of a model in use, before the model is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bit_transformer.cli.options import (
    BatchSize,
    Device,
    Experts,
    Json,
    Parity,
    PatchBits,
    Preset,
    Recipe,
    Set,
    parse_size,
)
from bit_transformer.cli.output import console, errors_in_one_line, gigabytes, show_json, table

if TYPE_CHECKING:
    from bit_transformer.service.memory import MemoryReport

_MEANING = {
    "parameters": "",
    "gradients": "",
    "optimizer": "momenta and moments",
    "kept": "the best weights so far, and an average of the latest",
    "activations": "stored for the backward pass of a micro-batch",
    "logits": "of all nodes of the head",
    "working": "results and gradients of the current branch",
    "update": "temporary, of the optimizer",
    "cache": "keys and values of cached generation",
    "experts": "the bank, and the features of a batch",
    "attention_maps": "full_attn_logging",
}


def run(
    recipe: Recipe = None,
    preset: Preset = None,
    patch_bits: PatchBits = None,
    parity: Parity = False,
    experts: Experts = None,
    batch_size: BatchSize = None,
    set_: Set = None,
    in_use: Annotated[
        bool,
        typer.Option("--in-use", help="For use instead of training: batch-size windows scored, or streams generated."),
    ] = False,
    budget: Annotated[
        str | None, typer.Option(help="Memory of a device, such as 8GB. Default: the free memory of this machine.")
    ] = None,
    world_size: Annotated[int, typer.Option(help="Devices that share the model and the batch (FSDP).")] = 1,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Estimate memory per device: what takes it, the largest batch that fits, and which settings save how much."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.settings import model_of, read_settings, training_of

        settings = read_settings(recipe, set_ or [])
        model = model_of(settings, preset, patch_bits, parity, experts)
        flags = {} if batch_size is None else {"batch_size": batch_size}
        train = training_of(settings, model, flags)
        there = None if budget is None else parse_size(budget)
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        batch = batch_size if batch_size is not None else 1
        asked = {
            "model": model,
            "train": train,
            "training": not in_use,
            "batch": batch,
            "world_size": world_size,
            "budget": there,
        }
        found = call("estimate", asked, Workspace(device=device))
        if as_json:
            show_json(found)
        else:
            _show(found)


def _show(found: MemoryReport) -> None:
    what = "training, micro-batches of" if found.training else "in use,"
    devices = f" on each of {found.world_size} devices" if found.world_size > 1 else ""
    made = table(
        f"\n{what} {found.windows} windows of {found.positions:,} positions, {found.precision}{devices}", "", "", ""
    )
    for part, meaning in _MEANING.items():
        size = getattr(found.estimate, part)
        if size:
            made.add_row(part.replace("_", " "), gigabytes(size), meaning)
    made.add_row("peak", gigabytes(found.estimate.peak), f"during {found.estimate.when}", style="bold")
    made.columns[2].justify = "left"
    console.print(made)
    console.print(
        f"{found.model_parameters:,} parameters, {found.active_parameters:,} of them active per position",
        style="dim",
    )
    if found.budget:
        together = " on all devices" if found.world_size > 1 else ""
        fits = (
            f"up to {found.largest_batch:,} windows fit at once{together}" if found.largest_batch else _too_small(found)
        )
        console.print(f"\nIn {gigabytes(found.budget)}, {fits}.", soft_wrap=True)
    if found.savings:
        saved = table("\nsettings that save memory", "setting", "peak", "price")
        for saving in found.savings:
            saved.add_row(saving.settings, gigabytes(saving.peak), saving.price)
        saved.columns[2].justify = "left"
        console.print(saved)
    console.print(
        "\nThis counts tensors only. A process with torch takes some 0.4 GB more, and on a CPU its allocator keeps 0.1 to 0.7 GB of freed "
        "memory. Leave room for them.",
        style="dim",
        soft_wrap=True,
    )


def _too_small(found: MemoryReport) -> str:
    fixed = found.estimate.parameters + found.estimate.optimizer
    if found.budget and fixed > found.budget:
        return f"no batch fits: parameters and optimizer alone take {gigabytes(fixed)}; use a smaller model or more devices"
    return "not one window fits at once"
