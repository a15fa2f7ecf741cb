"""`btlm runs`: the recorded trainings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from bit_transformer.cli.options import Json, Store, run_folder
from bit_transformer.cli.output import bpb, console, errors_in_one_line, show_alerts, show_json, table
from bit_transformer.service import DEFAULT_STORE

Run = Annotated[str, typer.Argument(metavar="ID", help="A run's name, as `btlm runs list` gives it.")]
app = typer.Typer(
    help="List, show, compare, steer, stop and remove runs.", no_args_is_help=False, invoke_without_command=True
)


@app.callback()
def default(context: typer.Context, store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """List, show, compare, steer, stop and remove runs. Without a command, lists them."""
    if context.invoked_subcommand is None:
        list_(store, as_json)


@app.command("list")
def list_(store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """List all runs, newest first."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        found = call("runs.list", {}, Workspace(store))
        if as_json:
            show_json(found)
            return
        if not found:
            console.print(f"no runs in {store} yet. Try: btlm train stdlib --seconds 60")
            return
        made = table(f"\n{store}", "run", "status", "updates", "train", "val", "held out", "started")
        for r in found:
            made.add_row(
                r.id,
                r.status,
                f"{r.step:,}",
                bpb(r.train_bpb),
                bpb(r.val_bpb),
                bpb(r.held_out_bpb),
                r.created[:16].replace("T", " "),
            )
        console.print(made)
        console.print("bits per byte; times are UTC", style="dim")


@app.command("show")
def show(
    run: Run,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Show the record of a run."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        found = call("runs.show", {"run": run}, Workspace(store))
        if as_json:
            show_json(found)
            return
        console.print(
            f"{found['id']}  {found['status']} ({found['note'] or ('no end was recorded' if found['status'] == 'killed' else 'under way')})  {found['folder']}",
            style="bold",
        )
        for section in ("model", "train", "data", "provenance"):
            console.print(f"\n{section}", style="bold")
            for key, value in found["config"].get(section, {}).items():
                console.print(f"  {key} = {json.dumps(value)}")
        made = table("\nvalidation", "update", "bits per byte")
        for step, value in found["validation"]:
            made.add_row(f"{step:,}", bpb(value))
        console.print(made)
        if found["growth"]:
            made = table("\ngrowth", "from update", "layers x width, window")
            for step, shape in found["growth"]:
                made.add_row(f"{step:,}", shape)
            console.print(made)
        show_alerts(found["alerts"])


@app.command("compare")
def compare(
    names: Annotated[
        list[str], typer.Argument(metavar="A B...", help="Two or more names, as `btlm runs list` gives them.")
    ],
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Compare runs: the settings that differ, and the figures."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        found = call("runs.compare", {"names": names}, Workspace(store))
        if as_json:
            show_json(found)
            return
        made = table("", "", *(run.id for run in found.runs))
        made.add_row("status", *(run.status for run in found.runs))
        for row in found.settings:
            made.add_row(row.key, *(json.dumps(value) for value in row.values))
        figures = [run.figures for run in found.runs]
        made.add_row("updates", *(f"{f['train_bpb'].step:,}" if "train_bpb" in f else "-" for f in figures))
        for key, name in (("train_bpb", "train"), ("val_bpb", "val")):
            made.add_row(f"{name}, last", *(bpb(f[key].last if key in f else None) for f in figures))
            made.add_row(f"{name}, best", *(bpb(f[key].best if key in f else None) for f in figures))
        made.add_row("held out", *(bpb(run.result.get("bpb")) for run in found.runs))
        console.print(made)
        console.print("bits per byte", style="dim")


@app.command("rm")
def remove(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names, as `btlm runs list` gives them.")],
    files: Annotated[
        bool,
        typer.Option("--files", help="Also remove their files: settings, checkpoints, gate, metrics."),
    ] = False,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Remove the records of runs; without --files their folders stay. Refuses runs that are training."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        removed = call("runs.remove", {"names": names, "files": files}, Workspace(store))
        if as_json:
            show_json(removed)
            return
        for run in removed:
            what = f", and from {run.folder}: {', '.join(run.files) or 'nothing'}" if files else f"; {run.folder} stays"
            console.print(f"removed {run.id} from {store}{what}", soft_wrap=True)


@app.command("stop")
def stop(
    run: Run,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Ask a training to stop, whichever process it runs in; it saves first, and `btlm train --resume` goes on with it."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        found = call("runs.stop", {"run": run}, Workspace(store))
        if as_json:
            show_json(found)
        else:
            console.print(f"asked process {found.pid} to stop training {found.id}", soft_wrap=True)


@app.command("pause")
def pause(run: Run, store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """Let a training save and wait. It keeps its memory, and its budget of seconds stands still."""
    _tell(
        "runs.pause",
        {"run": run},
        lambda told: f"asked {told.run} to pause; `btlm runs continue {told.run}` lets it go on",
        store,
        as_json,
    )


@app.command("continue")
def go_on(run: Run, store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """Let a paused training go on."""
    _tell("runs.continue", {"run": run}, lambda told: f"asked {told.run} to go on", store, as_json)


@app.command("step")
def step(
    run: Run,
    updates: Annotated[int, typer.Option(help="How many updates to make.")] = 1,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Let a paused training make some updates, and pause again."""
    asked = {"run": run, "updates": updates}
    _tell(
        "runs.step",
        asked,
        lambda told: f"asked {told.run} to make {updates:,} update{'s' * (updates != 1)}",
        store,
        as_json,
    )


@app.command("change")
def change(
    run: Run,
    set_: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=NUMBER",
            help="lr, matrix_lr or table_lr (peaks; the schedule goes on), lambda_K, lambda_C or lambda_S.",
        ),
    ],
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Change learning rates or penalties of a running training. A resumed training makes the change again, after the same update."""
    with errors_in_one_line(as_json):
        settings = _numbers(set_)
    said = ", ".join(f"{key}={value:g}" for key, value in settings.items())
    _tell(
        "runs.change",
        {"run": run, "settings": settings},
        lambda told: f"asked {told.run} to change {said}",
        store,
        as_json,
    )


@app.command("checkpoint")
def checkpoint(run: Run, store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """Let a training save, and keep this checkpoint as ID@STEP, in checkpoints/STEP of its folder."""
    _tell("runs.checkpoint", {"run": run}, lambda told: f"asked {told.run} to keep a checkpoint", store, as_json)


@app.command("branch")
def branch(
    run: Run,
    out: Annotated[str, typer.Option("--out", help="Run folder of the new run; must not contain one.")],
    step: Annotated[int | None, typer.Option(help="Update of a kept checkpoint. Default: the last checkpoint.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the training, such as train.optim.lr=0.001."),
    ] = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Make a new run that goes on from a checkpoint of another, with changed settings. `btlm train --resume` trains it."""
    with errors_in_one_line(as_json):
        from bit_transformer.errors import ConfigError
        from bit_transformer.service.operations import call
        from bit_transformer.service.settings import read_settings
        from bit_transformer.service.workspace import Workspace

        settings = read_settings(None, set_ or [])
        other = next((section for section in ("model", "data") if settings[section]), None)
        if other is not None:
            raise ConfigError(f"got --set {other}...; a branch keeps model and data. Try --set train.optim.lr=0.001")
        asked = {"run": run, "out": run_folder(out), "step": step, "train": settings["train"]}
        made = call("runs.branch", asked, Workspace(store))
        if as_json:
            show_json(made)
        else:
            console.print(
                f"{made.run} begins with {run} at update {made.step:,}. Train it with: btlm train --out {made.folder} --resume",
                soft_wrap=True,
            )


@app.command("trigger")
def trigger(
    run: Run,
    metric: Annotated[str, typer.Option(help="Such as val_bpb, train_bpb, grad_norm, K, C or S.")],
    above: Annotated[float | None, typer.Option(help="It fires when the metric is above this.")] = None,
    below: Annotated[float | None, typer.Option(help="It fires when the metric is below this.")] = None,
    action: Annotated[str, typer.Option(help="pause, checkpoint (keep one) or notify.")] = "notify",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Do something once a metric of a run crosses a line. A trigger fires once."""
    asked = {"run": run, "metric": metric, "above": above, "below": below, "action": action}
    _tell(
        "runs.trigger",
        asked,
        lambda made: f"trigger {made.id} of {run}: {made.action} by {made.metric}",
        store,
        as_json,
    )


@app.command("untrigger")
def untrigger(
    run: Run,
    number: Annotated[int, typer.Argument(metavar="NUMBER", help="Of the trigger, as `btlm runs trigger` gave it.")],
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Remove a trigger of a run."""
    _tell(
        "runs.untrigger",
        {"run": run, "trigger": number},
        lambda _: f"removed trigger {number} of {run}",
        store,
        as_json,
    )


def _tell(operation: str, asked: dict[str, Any], said: Callable[[Any], str], store: Path, as_json: bool) -> None:
    """Call an operation, and print its result or what was done."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        found = call(operation, asked, Workspace(store))
        if as_json:
            show_json(found)
        else:
            console.print(said(found), soft_wrap=True)


def _numbers(assignments: list[str]) -> dict[str, float]:
    """Settings from `key=number`."""
    from bit_transformer.errors import ConfigError

    found = {}
    for text in assignments:
        key, _, value = text.partition("=")
        try:
            found[key.strip()] = float(value)
        except ValueError:
            raise ConfigError(
                f"got the setting {text!r}; KEY=NUMBER is needed. Try lr=0.001", field="settings"
            ) from None
    return found
