"""The runs of a store."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bit_transformer.runs.store import RunStore
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
    return [
        RunSummary(
            id=run.id,
            status=run.status,
            created=run.created,
            step=_last(runs, run.id, "train_bpb")[0],
            train_bpb=_last(runs, run.id, "train_bpb")[1],
            val_bpb=_last(runs, run.id, "val_bpb")[1],
            held_out_bpb=run.result.get("bpb"),
            folder=run.folder,
        )
        for run in runs.list_runs()
    ]


def show_run(run: str, store: Path = DEFAULT_STORE) -> dict[str, Any]:
    """All that is recorded of a run: its config, its result, its validations.

    Raises:
        RunNotFound: none of that name.
    """
    runs = RunStore(store)
    return {**asdict(runs.get(run)), "validation": runs.series(run, "val_bpb")}


def _last(runs: RunStore, run: str, key: str) -> tuple[int, float | None]:
    series = runs.series(run, key)
    return series[-1] if series else (0, None)
