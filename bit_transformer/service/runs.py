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
    """All that is recorded of a run: its config, its result, its validations, how it grew, its alerts.

    Raises:
        RunNotFound: none of that name.
    """
    runs = RunStore(store)
    found = asdict(runs.get(run))
    more = {"validation": runs.series(run, "val_bpb"), "growth": growths(runs, run), "alerts": runs.alerts(run)}
    return {**found, **more}


def growths(store: RunStore, run: str) -> list[tuple[int, str]]:
    """Of a training that grew: the update from which on a shape was trained, and the shape; the first one included."""
    columns = [store.series(run, key) for key in ("num_layers", "d_model", "max_seq_len")]
    return [
        (step, f"{layers:.0f} x {width:.0f}, {bits:,.0f} bits")
        for (step, layers), (_, width), (_, bits) in zip(*columns, strict=True)
    ]
