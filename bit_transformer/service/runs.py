"""The runs of a store."""

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
        status: finished, stopped, failed, running; or killed, where a training neither ended nor goes on.
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
    """All that is recorded of a run: its config, its result, its validations, how it grew, its alerts.

    Raises:
        RunNotFound: none of that name.
    """
    runs, run = workspace.store, request.run
    recorded = runs.get(run)
    found = {**asdict(recorded), "status": _status(recorded)}
    more = {"validation": runs.series(run, "val_bpb"), "growth": growths(runs, run), "alerts": runs.alerts(run)}
    return {**found, **more}


@dataclass(frozen=True)
class Removed:
    """A run that is forgotten, and which of its files went with it."""

    id: str
    folder: str
    files: list[str]


def remove_runs(request: RemoveRunsRequest, workspace: Workspace, job: Job) -> list[Removed]:
    """Forget runs.

    Raises:
        RunNotFound: one of them is not in the store; then all stay.
        RunBusy: one of them is being trained; then all stay.
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
    """A training that was asked to stop; it saves, and ends, after the update under way.

    Attributes:
        pid: of the process that trains.
    """

    id: str
    folder: str
    pid: int


def stop_run(request: StopRunRequest, workspace: Workspace, job: Job) -> Stopping:
    """Ask a training to stop in good order, whichever process of this machine it runs in.

    Raises:
        RunNotFound: no such run.
        RunNotRunning: nobody trains it now.
    """
    run = workspace.store.get(request.run)
    folder = Path(run.folder)
    found = holder(folder)
    if found is None:
        raise RunNotRunning(
            f"run {run.id!r} is {_status(run)}; nobody trains it now", field="run", tries=(Ask("runs.list"),)
        )
    write_file(folder / STOP_FILE, b"")
    return Stopping(run.id, run.folder, found.pid)


def _remove_files(folder: Path) -> list[str]:
    from bit_transformer.service.training import RUN_FILES  # which loads torch; lists of runs need none

    there = [name for name in (*RUN_FILES, LOCK_FILE, STOP_FILE) if (folder / name).is_file()]
    for name in there:
        (folder / name).unlink()
    with contextlib.suppress(OSError):  # there is more in it, or it is not there
        folder.rmdir()
    return there


def growths(store: RunStore, run: str) -> list[tuple[int, str]]:
    """Of a training that grew: the update from which on a shape was trained, and the shape; the first one included."""
    columns = [store.series(run, key) for key in ("num_layers", "d_model", "max_seq_len")]
    return [
        (step, f"{layers:.0f} x {width:.0f}, {bits:,.0f} bits")
        for (step, layers), (_, width), (_, bits) in zip(*columns, strict=True)
    ]
