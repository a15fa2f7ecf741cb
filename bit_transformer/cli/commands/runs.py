"""`btlm runs`: the recorded trainings."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from bit_transformer.cli.options import Json, Store
from bit_transformer.cli.output import bpb, console, errors_in_one_line, show_alerts, show_json, table
from bit_transformer.service import DEFAULT_STORE

app = typer.Typer(help="List, show, stop and remove runs.", no_args_is_help=False, invoke_without_command=True)


@app.callback()
def default(context: typer.Context, store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """List, show, stop and remove runs. Without a command, lists them."""
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
    run: Annotated[str, typer.Argument(metavar="ID", help="A run's name, as `btlm runs list` gives it.")],
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
    run: Annotated[str, typer.Argument(metavar="ID", help="A run's name, as `btlm runs list` gives it.")],
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
