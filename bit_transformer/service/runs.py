"""Listing, showing, comparing, removing and stopping the runs of a store."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bit_transformer.config import ModelConfig, TrainConfig
from bit_transformer.config.base import flat
from bit_transformer.errors import Ask, ConfigError, RunNotRunning
from bit_transformer.runs.lock import LOCK_FILE, check_free, holder
from bit_transformer.runs.store import Live, Overview, Run, RunStore
from bit_transformer.service.files import write_file
from bit_transformer.service.jobs import STOP_FILE, Job
from bit_transformer.service.requests import (
    CompareRunsRequest,
    ListRunsRequest,
    RemoveRunsRequest,
    RunRequest,
    StopRunRequest,
)
from bit_transformer.service.workspace import Workspace


@dataclass(frozen=True)
class RunSummary:
    """A run in a list.

    Attributes:
        status: finished, stopped, failed, running, paused; or killed, if the training has neither ended nor is running.
        share: fraction of the budget spent; None if that is not known.
        eta: seconds left; `bytes_per_s`: of data. None unless it is running.
        note: why it ended.
    """

    id: str
    status: str
    created: str
    step: int
    train_bpb: float | None
    val_bpb: float | None
    held_out_bpb: float | None
    folder: str
    share: float | None = None
    eta: float | None = None
    bytes_per_s: float | None = None
    note: str = ""


def list_runs(request: ListRunsRequest, workspace: Workspace, job: Job) -> list[RunSummary]:
    """All runs of the store, newest first."""
    return [summary(found) for found in workspace.store.overview()]


def summary(found: Overview) -> RunSummary:
    """A run in a list, from its record."""
    run, live, train = found.run, found.live, found.train
    status = run_status(run, live)
    moving = live if status == "running" else None
    return RunSummary(
        id=run.id,
        status=status,
        created=run.created,
        step=train[0] if train else 0,
        train_bpb=train[1] if train else None,
        val_bpb=found.validation[1] if found.validation else None,
        held_out_bpb=run.result.get("bpb"),
        folder=run.folder,
        share=live.share if live else None,
        eta=moving.eta if moving else None,
        bytes_per_s=moving.bytes_per_s if moving else None,
        note=run.note,
    )


def run_status(run: Run, live: Live | None = None) -> str:
    """What a run is at: its recorded status, but killed if no process trains it any more, and paused if one waits."""
    if run.status != "running":
        return run.status
    if holder(Path(run.folder)) is None:
        return "killed"
    return "paused" if live and live.paused else "running"


def show_run(request: RunRequest, workspace: Workspace, job: Job) -> dict[str, Any]:
    """Everything recorded about a run: config, result, validations, growth, alerts.

    Raises:
        RunNotFound: no run of that name.
    """
    runs, run = workspace.store, request.run
    recorded = runs.get(run)
    found = {**asdict(recorded), "status": run_status(recorded)}
    more = {"validation": runs.series(run, "val_bpb"), "growth": growths(runs, run), "alerts": runs.alerts(run)}
    return {**found, **more}


@dataclass(frozen=True)
class Figure:
    """A metric of a run.

    Attributes:
        last: its latest value; `step`: the update it is of.
        best: the lowest, of costs in bits (`train_bpb`, `val_bpb`, `coded_bpb`); None of other metrics, where lower is not better.
    """

    last: float
    step: int
    best: float | None
    best_step: int | None


@dataclass(frozen=True)
class ComparedRun:
    """A run in a comparison.

    Attributes:
        figures: by metric.
        result: of the last evaluation: bpb, bytes, protocol, compressors; empty if there was none.
    """

    id: str
    status: str
    created: str
    folder: str
    figures: dict[str, Figure]
    result: dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """A setting in which runs differ.

    Attributes:
        key: dotted, such as train.optim.lr.
        values: one for each run; None where a run does not have it.
    """

    key: str
    values: list[Any]


@dataclass(frozen=True)
class RunsComparison:
    """Runs next to each other, in the order in which they were named."""

    runs: list[ComparedRun]
    settings: list[Difference]


def compare_runs(request: CompareRunsRequest, workspace: Workspace, job: Job) -> RunsComparison:
    """Compare runs of the store: the settings that differ, the last and the best figures, and the results.

    Raises:
        ConfigError: fewer than two runs.
        RunNotFound: one of them is not in the store.
    """
    runs, names = workspace.store, list(dict.fromkeys(request.names))
    if len(names) < 2:
        raise ConfigError(
            f"got {len(names)} {'run' if len(names) == 1 else 'runs'}; it must be two or more, each once",
            field="names",
            tries=(Ask("runs.list"),),
        )
    found = [runs.get(name) for name in names]
    columns = [dict(_settings(run.config)) for run in found]
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = [Difference(key, [column.get(key) for column in columns]) for key in keys]
    return RunsComparison(
        runs=[
            ComparedRun(run.id, run_status(run), run.created, run.folder, _figures(runs, run.id), run.result)
            for run in found
        ],
        settings=[row for row in rows if any(value != row.values[0] for value in row.values)],
    )


def _figures(runs: RunStore, run: str) -> dict[str, Figure]:
    found = {}
    for key in runs.metric_keys(run):
        rows = runs.series(run, key)
        step, last = rows[-1]
        numbers = [row for row in rows if not math.isnan(row[1])] if key.endswith("_bpb") else []
        best_step, best = min(numbers, key=lambda row: row[1], default=(None, None))
        found[key] = Figure(last, step, best, best_step)
    return found


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a run was asked for, by dotted key. Settings that are newer than the run have their defaults."""
    for section, kind in (("model", ModelConfig), ("train", TrainConfig), ("data", None)):
        fields = config.get(section) or {}
        if kind is not None:
            with contextlib.suppress(ConfigError):  # of another version: as it was recorded
                fields = kind.of(fields).model_dump(mode="json")
        yield from flat(section, fields)
    yield from ((key, config.get(key)) for key in ("eval_bytes", "teacher", "init"))


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
            f"run {run.id!r} is {run_status(run)}; it is not in training", field="run", tries=(Ask("runs.list"),)
        )
    write_file(folder / STOP_FILE, b"")
    return Stopping(run.id, run.folder, found.pid)


def _remove_files(folder: Path) -> list[str]:
    # Imports torch, which lists of runs do not need.
    from bit_transformer.distributed.checkpoints import part_folders
    from bit_transformer.service.loggers import FOLDERS, LOGS_FOLDER
    from bit_transformer.service.observers import KEPT, PARTS
    from bit_transformer.service.training import RUN_FILES

    parts = [*part_folders(folder, PARTS), *filter(Path.is_dir, [folder / name for name in (KEPT, *FOLDERS)])]
    for path in parts:
        shutil.rmtree(path)
    there = [name for name in (*RUN_FILES, LOCK_FILE, STOP_FILE) if (folder / name).is_file()]
    for name in there:
        (folder / name).unlink()
    for place in (folder / LOGS_FOLDER, folder):
        with contextlib.suppress(OSError):  # there are other files in it, or it does not exist
            place.rmdir()
    return [*there, *(path.relative_to(folder).as_posix() for path in parts)]


def growths(store: RunStore, run: str) -> list[tuple[int, str]]:
    """The growth of a training: the first update of each shape, and the shape; including the first shape."""
    columns = [store.series(run, key) for key in ("num_layers", "d_model", "max_seq_len")]
    return [
        (step, f"{layers:.0f} x {width:.0f}, {bits:,.0f} bits")
        for (step, layers), (_, width), (_, bits) in zip(*columns, strict=True)
    ]
