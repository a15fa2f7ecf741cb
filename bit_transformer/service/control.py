"""Steering the runs of a store from any process: pause, go on, single updates, changed settings, kept checkpoints, triggers, branches."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bit_transformer.config import BUDGETS, RECORDED, ModelConfig, TrainConfig, changed_settings
from bit_transformer.errors import Ask, CheckpointError, ConfigError, Give, RunNotFound, RunNotRunning
from bit_transformer.runs.lock import held, holder
from bit_transformer.runs.store import Run, Trigger
from bit_transformer.service.files import check_run_folder, write_file
from bit_transformer.service.jobs import Job
from bit_transformer.service.requests import (
    BranchRequest,
    ChangeRequest,
    RemoveTriggerRequest,
    RunRequest,
    StepRequest,
    TriggerRequest,
)
from bit_transformer.service.runs import run_status
from bit_transformer.service.workspace import Workspace

ACTIONS = ("pause", "checkpoint", "notify")


@dataclass(frozen=True)
class Told:
    """A running training was told something; it acts after the update that it is at.

    Attributes:
        command: a number that grows with every command.
    """

    run: str
    kind: str
    command: int


def pause(request: RunRequest, workspace: Workspace, job: Job) -> Told:
    """Ask a training to save, and to wait. It keeps its memory; the budget's seconds do not count on.

    Raises:
        RunNotFound: no such run.
        RunNotRunning: it is not in training.
    """
    return _tell(request.run, "pause", {}, workspace)


def go_on(request: RunRequest, workspace: Workspace, job: Job) -> Told:
    """Let a paused training go on.

    Raises:
        RunNotFound, RunNotRunning: as of `pause`.
    """
    return _tell(request.run, "continue", {}, workspace)


def step(request: StepRequest, workspace: Workspace, job: Job) -> Told:
    """Let a paused training make some updates, and pause again.

    Raises:
        RunNotFound, RunNotRunning: as of `pause`.
        ConfigError: less than one update.
    """
    if request.updates < 1:
        raise ConfigError(
            f"got updates={request.updates}; at least 1 is needed", field="updates", tries=(Give("updates", 1),)
        )
    return _tell(request.run, "step", {"updates": request.updates}, workspace)


def checkpoint(request: RunRequest, workspace: Workspace, job: Job) -> Told:
    """Ask a training to save, and to keep this checkpoint as RUN@STEP.

    Raises:
        RunNotFound, RunNotRunning: as of `pause`.
    """
    return _tell(request.run, "checkpoint", {}, workspace)


def change(request: ChangeRequest, workspace: Workspace, job: Job) -> Told:
    """Change peak learning rates or penalties of a running training.

    Raises:
        RunNotFound, RunNotRunning: as of `pause`.
        ConfigError: a setting that cannot be changed, or a value that is not allowed.
    """
    run = workspace.store.get(request.run)
    if not request.settings:
        raise ConfigError("got no settings; at least one is needed. Try lr=0.001", field="settings")
    changed_settings(ModelConfig.of(run.config["model"]), TrainConfig.of(run.config["train"]).optim, request.settings)
    return _tell(request.run, "change", request.settings, workspace)


def add_trigger(request: TriggerRequest, workspace: Workspace, job: Job) -> Trigger:
    """Add a trigger to a run: it fires once, when its metric first crosses the line.

    Raises:
        RunNotFound: no such run.
        ConfigError: no line or two, or an unknown action.
    """
    store, run = workspace.store, workspace.store.get(request.run).id
    if request.metric not in RECORDED:
        raise ConfigError(
            f"got metric {request.metric[:80]!r}; it must be one of {', '.join(RECORDED)}",
            field="metric",
            tries=(Give("metric", "val_bpb"),),
        )
    if (request.above is None) == (request.below is None):
        raise ConfigError("got no line or two; one of above and below is needed. Try above=3", field="above")
    line = request.above if request.above is not None else request.below
    if line is None or not math.isfinite(line):
        raise ConfigError(f"got a line of {line}; it must be a finite number. Try above=3", field="above")
    if request.action not in ACTIONS:
        raise ConfigError(
            f"got action {request.action!r}; it must be one of {', '.join(ACTIONS)}. Try pause", field="action"
        )
    number = store.add_trigger(run, request.metric, request.above, request.below, request.action)
    return Trigger(number, request.metric, request.above, request.below, request.action)


def remove_trigger(request: RemoveTriggerRequest, workspace: Workspace, job: Job) -> list[Trigger]:
    """Remove a trigger; returns those that are left.

    Raises:
        RunNotFound: no such run, or no such trigger of it.
    """
    store, run = workspace.store, workspace.store.get(request.run).id
    if not store.remove_trigger(run, request.trigger):
        there = ", ".join(str(trigger.id) for trigger in store.triggers(run)) or "none"
        raise RunNotFound(f"got trigger {request.trigger}; run {run!r} has {there}", field="trigger")
    return store.triggers(run)


@dataclass(frozen=True)
class Branch:
    """A new run that begins with the state of another.

    Attributes:
        step: update that it goes on from.
        changed: settings of the training that differ.
    """

    run: str
    folder: str
    step: int
    changed: dict[str, Any]


def branch(request: BranchRequest, workspace: Workspace, job: Job) -> Branch:
    """Make a new run that goes on from a checkpoint of another, with changed settings. Resuming it starts the training.

    Raises:
        RunNotFound: no such run.
        CheckpointError: no such checkpoint.
        ConfigError: a setting that the checkpoint's state does not go with, or a folder that is in use.
    """
    from bit_transformer.service.observers import KEPT, TRAINING_FILE
    from bit_transformer.service.training import CONFIG_FILE, START_FILE
    from bit_transformer.tensor_file import read_tensors, write_tensors

    store = workspace.store
    run, out = store.get(request.run), request.out
    folder = Path(run.folder)
    state = (folder / KEPT / str(request.step) if request.step is not None else folder) / TRAINING_FILE
    if not state.is_file():
        kept = [place.name for place in (folder / KEPT).glob("*") if (place / TRAINING_FILE).is_file()]
        there = f"kept are {', '.join(sorted(kept, key=int))}" if kept else "none was kept"
        what = f"checkpoint of update {request.step}" if request.step is not None else "checkpoint"
        raise CheckpointError(
            f"run {run.id!r} has no {what}; {there}", field="step", tries=(Ask("runs.checkpoint", run.id),)
        )
    check_run_folder(out)
    with held(out):
        if (out / CONFIG_FILE).exists():
            raise ConfigError(
                f"{out} already holds a run; a branch needs its own folder", field="out", tries=(Give("out"),)
            )
        store.check_name(out.resolve().name, out)
        tensors, document = read_tensors(state)
        train = _changed(TrainConfig.of(document["train"]), request.train, run)
        progress = document["progress"]
        settings = json.loads((folder / CONFIG_FILE).read_text()) | {"train": train.model_dump(mode="json")}
        own_budget = {
            name: document["train"].get(name) for name in BUDGETS
        }  # a resumed training sees that it was changed
        document = {**document, "train": {**train.model_dump(mode="json"), **own_budget}}
        # New learning rates take the place of those that were changed in the run. Commands are numbered anew.
        given = _optim_fields(request.train)
        progress["steered"] = {name: value for name, value in progress.get("steered", {}).items() if name not in given}
        progress["commands"] = 0
        write_tensors(out / TRAINING_FILE, tensors, document)
        if (folder / START_FILE).exists():
            write_file(out / START_FILE, (folder / START_FILE).read_bytes())
        write_file(out / CONFIG_FILE, f"{json.dumps(settings, indent=2)}\n".encode())
        name, at = out.resolve().name, int(progress["step"])
        store.copy(run.id, name, out, settings, at, f"branched from {run.id} at update {at}")
    return Branch(name, str(out), at, request.train)


# The rest of a training config is part of what the state of a training is of.
MAY_BRANCH = (
    "steps", "epochs", "bytes", "seconds", "flops", "accum_steps", "auto_batch", "clip_norm", "eval_every", "checkpoint_seconds",
    "patience", "telemetry", "sample_bytes", "amp",
)  # fmt: skip


def _optim_fields(train: dict[str, Any]) -> dict[str, Any]:
    """Fields of the optimizers among those of a training, also where they stand by their short names."""
    short = {name: value for name, value in train.items() if name in TrainConfig.aliases}
    optim = train.get("optim") or {}
    if not isinstance(optim, dict):
        raise ConfigError(f"got train.optim={optim!r}; fields are needed. Try {{'lr': 0.001}}", field="train.optim")
    return {**optim, **{TrainConfig.aliases[name].partition(".")[2]: value for name, value in short.items()}}


def _changed(train: TrainConfig, fields: dict[str, Any], run: Run) -> TrainConfig:
    """A training config with changed fields."""
    optim = _optim_fields(fields)
    fields = {name: value for name, value in fields.items() if name not in TrainConfig.aliases and name != "optim"}
    other = next((name for name in fields if name not in MAY_BRANCH), None)
    if other is not None:
        raise ConfigError(
            f"got train.{other}; a branch goes on from a training's state, so only optim and {', '.join(MAY_BRANCH)} can differ",
            field=f"train.{other}",
            tries=(Ask("train_further", run.id),),
        )
    if "muon" in optim:
        raise ConfigError(
            "got train.optim.muon; the state is of the optimizers it was. Try without", field="train.optim.muon"
        )
    own = train.model_dump()
    if any(name in fields for name in BUDGETS):
        own = {name: value for name, value in own.items() if name not in BUDGETS}
    return TrainConfig.of({**own, **fields, "optim": {**own["optim"], **optim}})


def _tell(name: str, kind: str, detail: dict[str, Any], workspace: Workspace) -> Told:
    run = workspace.store.get(name)
    if holder(Path(run.folder)) is None:
        raise RunNotRunning(
            f"run {run.id!r} is {run_status(run)}; it is not in training",
            field="run",
            tries=(Ask("resume", more=(Give("out", run.folder),)),),
        )
    return Told(run.id, kind, workspace.store.add_command(run.id, kind, detail))
