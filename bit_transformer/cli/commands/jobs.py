"""`btlm jobs`: the queue of a management server."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bit_transformer.cli.options import Json, Store
from bit_transformer.cli.output import console, errors_in_one_line, show_json, table
from bit_transformer.service import DEFAULT_STORE


def run(
    state: Annotated[
        str | None, typer.Option(help="Only jobs that are queued, running, finished, stopped, failed or killed.")
    ] = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """List the jobs of a management server, newest first. Its store is runs.sqlite in its home."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        found = call("jobs.list", {"state": state}, Workspace(store))
        if as_json:
            show_json(found)
            return
        if not found:
            console.print(f"no jobs in {store}. Try --store with runs.sqlite of a server's home", soft_wrap=True)
            return
        made = table(f"\n{store}", "job", "operation", "run", "state", "progress", "created")
        for job in found:
            created = job.created[:16].replace("T", " ")
            made.add_row(str(job.id), job.operation, job.run or "-", job.state, _progress(job), created)
        console.print(made)
        for job in found:
            if job.error:
                console.print(f"{job.id}: {job.error['message']}", style="dim", soft_wrap=True)


def _progress(job: Any) -> str:
    told = job.progress or {}
    return f"{told['done'] / told['total']:.0%}" if job.state == "running" and told.get("total") else "-"
