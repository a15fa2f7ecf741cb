"""Listing, showing, removing and stopping the runs of a store."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bit_transformer.errors import Ask, RunNotRunning
from bit_transformer.runs.lock import LOCK_FILE, check_free, holder
from bit_transformer.runs.store import Run, RunStore
from bit_transformer.service.files import write_file
from bit_transformer.service.jobs import STOP_FILE, Job
from bit_transformer.service.requests import ListRunsRequest, RemoveRunsRequest, RunRequest, StopRunRequest
from bit_transformer.service.workspace import Workspace


@dataclass(frozen=True)
class RunSummary:
    """A run in a list.

    Attributes:
        status: finished, stopped, failed, running; or killed, if the training has neither ended nor is running.
    """

    id: str
    status: str
    created: str
    step: int
    train_bpb: float | None
    val_bpb: float | None
    held_out_bpb: float | None
    folder: str


def list_runs(request: ListRunsRequest, workspace: Workspace, job: Job) -> list[RunSummary]:
    """All runs of the store, newest first."""
    runs = workspace.store
    return [_summary(runs, run) for run in runs.list_runs()]


def _summary(runs: RunStore, run: Run) -> RunSummary:
    train, validation = runs.last(run.id, "train_bpb"), runs.last(run.id, "val_bpb")
    return RunSummary(
        id=run.id,
        status=_status(run),
        created=run.created,
        step=train[0] if train else 0,
        train_bpb=train[1] if train else None,
        val_bpb=validation[1] if validation else None,
        held_out_bpb=run.result.get("bpb"),
        folder=run.folder,
    )


def _status(run: Run) -> str:
    return "killed" if run.status == "running" and holder(Path(run.folder)) is None else run.status


def show_run(request: RunRequest, workspace: Workspace, job: Job) -> dict[str, Any]:
    """Everything recorded about a run: config, result, validations, growth, alerts.

    Raises:
        RunNotFound: no run of that name.
    """
    runs, run = workspace.store, request.run
    recorded = runs.get(run)
    found = {**asdict(recorded), "status": _status(recorded)}
    more = {"validation": runs.series(run, "val_bpb"), "growth": growths(runs, run), "alerts": runs.alerts(run)}
    return {**found, **more}


@dataclass(frozen=True)
class Removed:
    """A run removed from the store, and which of its files were removed."""

    id: str
    folder: str
    files: list[str]


def remove_runs(request: RemoveRunsRequest, workspace: Workspace, job: Job) -> list[Removed]:
    """Remove runs from the store.

    Raises:
        RunNotFound: one of them is not in the store; then none is removed.
        RunBusy: one of them is in training; then none is removed.
    """
    runs, names, files = workspace.store, request.names, request.files
    found = [runs.get(name) for name in dict.fromkeys(names)]
    for run in found:
        check_free(Path(run.folder))
    removed = []
    for run in found:
        gone = _remove_files(Path(run.folder)) if files else []
        runs.remove(run.id)
        removed.append(Removed(run.id, run.folder, gone))
    return removed


@dataclass(frozen=True)
class Stopping:
    """A training that was asked to stop. It saves and ends after the current update.

    Attributes:
        pid: of the training process.
    """

    id: str
    folder: str
    pid: int


def stop_run(request: StopRunRequest, workspace: Workspace, job: Job) -> Stopping:
    """Ask a training to stop normally, in any process on this machine.

    Raises:
        RunNotFound: no such run.
        RunNotRunning: it is not in training.
    """
    run = workspace.store.get(request.run)
    folder = Path(run.folder)
    found = holder(folder)
    if found is None:
        raise RunNotRunning(
            f"run {run.id!r} is {_status(run)}; it is not in training", field="run", tries=(Ask("runs.list"),)
        )
    write_file(folder / STOP_FILE, b"")
    return Stopping(run.id, run.folder, found.pid)


def _remove_files(folder: Path) -> list[str]:
    from bit_transformer.service.training import RUN_FILES  # imports torch, which lists of runs do not need

    there = [name for name in (*RUN_FILES, LOCK_FILE, STOP_FILE) if (folder / name).is_file()]
    for name in there:
        (folder / name).unlink()
    with contextlib.suppress(OSError):  # there are other files in it, or it does not exist
        folder.rmdir()
    return there


def growths(store: RunStore, run: str) -> list[tuple[int, str]]:
    """The growth of a training: the first update of each shape, and the shape; including the first shape."""
    columns = [store.series(run, key) for key in ("num_layers", "d_model", "max_seq_len")]
    return [
        (step, f"{layers:.0f} x {width:.0f}, {bits:,.0f} bits")
        for (step, layers), (_, width), (_, bits) in zip(*columns, strict=True)
    ]
