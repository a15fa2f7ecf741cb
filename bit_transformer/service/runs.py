"""The runs of a store."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bit_transformer.runs.lock import LOCK_FILE, check_free, holder
from bit_transformer.runs.store import Run, RunStore
from bit_transformer.service import DEFAULT_STORE


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


def list_runs(store: Path = DEFAULT_STORE) -> list[RunSummary]:
    """All runs of a store, newest first."""
    runs = RunStore(store)
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


def show_run(run: str, store: Path = DEFAULT_STORE) -> dict[str, Any]:
    """All that is recorded of a run: its config, its result, its validations, how it grew, its alerts.

    Raises:
        RunNotFound: none of that name.
    """
    runs = RunStore(store)
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


def remove_runs(names: Sequence[str], *, files: bool = False, store: Path = DEFAULT_STORE) -> list[Removed]:
    """Forget runs.

    Args:
        files: also remove what trainings wrote into their folders, and the folders where nothing else is in them.

    Raises:
        RunNotFound: one of them is not in the store; then all stay.
        RunBusy: one of them is being trained; then all stay.
    """
    runs = RunStore(store)
    found = [runs.get(name) for name in dict.fromkeys(names)]
    for run in found:
        check_free(Path(run.folder))
    removed = []
    for run in found:
        gone = _remove_files(Path(run.folder)) if files else []
        runs.remove(run.id)
        removed.append(Removed(run.id, run.folder, gone))
    return removed


def _remove_files(folder: Path) -> list[str]:
    from bit_transformer.service.training import RUN_FILES  # which loads torch; lists of runs need none

    there = [name for name in (*RUN_FILES, LOCK_FILE) if (folder / name).is_file()]
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
