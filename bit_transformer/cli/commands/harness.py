"""`btlm harness`: a model on tasks of the Language Model Evaluation Harness."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bit_transformer.cli.options import Device, Json, Overlap, RunArgument, Store
from bit_transformer.cli.output import console, errors_in_one_line, show_json, table
from bit_transformer.cli.training_output import live_progress
from bit_transformer.service import DEFAULT_STORE

if TYPE_CHECKING:
    from bit_transformer.service.harness import Harness


def run(
    model: RunArgument,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--tasks", help="Names of tasks, one each time or with commas. Default: all of --include."),
    ] = None,
    include: Annotated[
        Path | None, typer.Option("--include", help="A folder of task files (.yaml). Python that they name is run.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Documents of each task, at most.")] = None,
    shots: Annotated[int | None, typer.Option(help="Examples before each question. Default: as the task says.")] = None,
    batch: Annotated[int, typer.Option(help="Windows, or prompts, at once.")] = 32,
    protocol: Annotated[
        str,
        typer.Option(
            "--protocol", help="What learns from a text while it is scored: static (nothing), online (the experts)."
        ),
    ] = "static",
    overlap: Overlap = 0.5,
    device: Device = "auto",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """A model on tasks of the Language Model Evaluation Harness: log-likelihoods over bytes, and generation."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        names = tuple(name for given in tasks or [] for name in given.split(",") if name)
        asked = {
            "run": model,
            "tasks": names,
            "include": include,
            "limit": limit,
            "shots": shots,
            "batch": batch,
            "learning": protocol,
            "overlap": overlap,
        }
        with live_progress() as job:
            found: Harness = call("harness", asked, Workspace(store, device), job)
        if as_json:
            show_json(found)
        else:
            _show(found)


def _show(found: Harness) -> None:
    made = table("\ntasks", "task", "metric", "value", "documents")
    made.columns[1].justify = "left"
    for task in found.tasks:
        for metric, value in task.metrics.items():
            error = f" ± {task.errors[metric]:.4f}" if metric in task.errors else ""
            made.add_row(task.task, metric, f"{value:.4f}{error}", f"{task.documents:,} of {task.of:,}")
    console.print(made)
    console.print(f"tokens are bytes; {found.protocol}; lm-eval {found.harness}", style="dim", soft_wrap=True)
