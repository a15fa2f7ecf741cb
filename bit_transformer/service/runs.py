"""The runs of a store."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bit_transformer.runs.store import Run, RunStore
from bit_transformer.service import DEFAULT_STORE


@dataclass(frozen=True)
class RunSummary:
    """A run in a list."""

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
        status=run.status,
        created=run.created,
        step=train[0] if train else 0,
        train_bpb=train[1] if train else None,
        val_bpb=validation[1] if validation else None,
        held_out_bpb=run.result.get("bpb"),
        folder=run.folder,
    )


def show_run(run: str, store: Path = DEFAULT_STORE) -> dict[str, Any]:
    """All that is recorded of a run: its config, its result, its validations, its alerts.

    Raises:
        RunNotFound: none of that name.
    """
    runs = RunStore(store)
    return {**asdict(runs.get(run)), "validation": runs.series(run, "val_bpb"), "alerts": runs.alerts(run)}
