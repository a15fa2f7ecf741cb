"""`btlm distill`: train a small model on what a large one predicts."""

from __future__ import annotations

from typing import Annotated

import typer

from bit_transformer.cli.options import (
    BatchSize,
    Device,
    EvalBytes,
    Json,
    Overwrite,
    RunArgument,
    Seconds,
    Seed,
    Set,
    Steps,
    Store,
    run_folder,
)
from bit_transformer.cli.output import EXIT_INTERRUPTED, bpb, console, errors_in_one_line, show_json
from bit_transformer.cli.training_output import live_progress, show_training
from bit_transformer.service import DEFAULT_STORE


def run(
    model: RunArgument,
    out_: Annotated[str, typer.Option("--out", help="Run folder of the small model; must not contain a run.")],
    corpora: Annotated[
        list[str] | None,
        typer.Argument(metavar="CORPUS...", help="Training data. Default: the data of the run."),
    ] = None,
    num_layers: Annotated[int | None, typer.Option(help="Number of layers. Default: half of the run's.")] = None,
    d_model: Annotated[int | None, typer.Option(help="Width. Default: half of the run's.")] = None,
    nhead: Annotated[int | None, typer.Option(help="Number of heads. Default: heads as wide as the run's.")] = None,
    seconds: Seconds = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    eval_bytes: EvalBytes = 1 << 18,
    device: Device = "auto",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Train a smaller model on data and on a run's predictions (distillation), and compare the two."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.settings import read_settings, with_budget
        from bit_transformer.service.workspace import Workspace

        settings = read_settings(None, set_ or [])
        given = {"steps": steps, "seconds": seconds, "batch_size": batch_size, "seed": seed}
        flags = {"num_layers": num_layers, "d_model": d_model, "nhead": nhead}
        asked = {
            "run": model,
            "out": run_folder(out_),
            "model": settings["model"] | {key: value for key, value in flags.items() if value is not None},
            "train": with_budget(settings["train"], {k: v for k, v in given.items() if v is not None}),
            "data": settings["data"] | ({"corpora": tuple(corpora)} if corpora else {}),
            "eval_bytes": eval_bytes,
            "overwrite": overwrite,
        }
        with live_progress() as job:
            found = call("distill", asked, Workspace(store, device), job)
        if as_json:
            show_json(found)
        else:
            show_training(found.training)
            if found.teacher_bpb is not None and found.student_bpb is not None:
                console.print(
                    f"{found.teacher}: {bpb(found.teacher_bpb)} bits per byte on the same bytes; lost: "
                    f"{found.student_bpb - found.teacher_bpb:+.3f}, with {found.parameters:.0%} of the active parameters and "
                    f"{found.flops:.0%} of the operations a byte",
                    soft_wrap=True,
                )
        if found.training.status == "stopped":
            raise typer.Exit(EXIT_INTERRUPTED)
