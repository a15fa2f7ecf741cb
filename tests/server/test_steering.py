"""A training that is paused, changed, killed and resumed: it ends as if nothing but the changes had happened."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bit_transformer.errors import CheckpointError, ConfigError, NonFiniteLoss, RunNotFound, RunNotRunning
from bit_transformer.service.jobs import Job, Notice
from bit_transformer.service.operations import OPERATIONS, call
from bit_transformer.service.steering import Steering
from bit_transformer.service.workspace import Workspace
from bit_transformer.tensor_file import read_tensors
from tests.conftest import TEXT

TINY = {"d_model": 16, "nhead": 2, "num_layers": 1, "max_seq_len": 256, "experts": None}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "runs.sqlite", "cpu")


def asked(tmp_path: Path, name: str = "a", **train: Any) -> dict[str, Any]:
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT)
    settings = {"steps": 120, "batch_size": 2, "amp": False, "eval_every": 0.5, "eval_bytes": 512, "telemetry": 0.0}
    return {
        "out": tmp_path / name,
        "model": TINY,
        "train": {**settings, "average": 0.0, **train},
        "data": {"corpora": (str(text),)},
    }


def tables(folder: Path) -> dict[str, bytes]:
    tensors, _ = read_tensors(folder / "training.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


class Stepwise:
    """Runs a training in a thread, and acts at given updates."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: dict[int, Callable[[], Any]]) -> None:
        plain = Steering.__call__

        def observe(steering: Steering, trainer: Any, record: Any) -> None:
            if (action := at.pop(record["step"], None)) is not None:
                action()
                steering.looked = 0.0  # look now, so that it acts after this very update
            plain(steering, trainer, record)

        monkeypatch.setattr(Steering, "__call__", observe)


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.01)
    raise TimeoutError


def test_a_paused_training_waits_steps_and_ends_as_if_it_had_not_been(workspace, tmp_path, monkeypatch):
    call("train", asked(tmp_path, "plain"), workspace)
    Stepwise(monkeypatch, {40: lambda: call("runs.pause", {"run": "a"}, workspace)})
    worker = threading.Thread(target=call, args=("train", asked(tmp_path), workspace, Job(listens=False)))
    worker.start()

    def row() -> Any:
        return next((run for run in call("runs.list", {}, workspace) if run.id == "a"), None)

    paused = wait_for(lambda: (found := row()) and found.status == "paused" and found)
    assert paused.step == 40
    time.sleep(0.3)
    assert row().step == 40
    seconds = workspace.store.last("a", "seconds")
    call("runs.step", {"run": "a", "updates": 3}, workspace)
    wait_for(lambda: (found := row()).status == "paused" and found.step == 43)
    call("runs.checkpoint", {"run": "a"}, workspace)
    wait_for(lambda: (tmp_path / "a" / "checkpoints" / "43" / "model.safetensors").exists())
    call("runs.continue", {"run": "a"}, workspace)
    worker.join()
    assert row().status == "finished" and tables(tmp_path / "a") == tables(tmp_path / "plain")
    assert [e.kind for e in workspace.store.events(run="a", without=["metrics", "run", "rewound"])] == [
        "paused",
        "stepped",
        "paused",
        "checkpoint",
        "continued",
    ]
    # The clock stood still: the seconds of training are those of the updates.
    assert seconds is not None and workspace.store.last("a", "seconds")[1] < seconds[1] + 20
    with pytest.raises(RunNotRunning, match="is finished; it is not in training"):
        call("runs.pause", {"run": "a"}, workspace)


def test_a_training_that_is_stopped_in_a_pause_is_resumed_from_it(workspace, tmp_path, monkeypatch):
    call("train", asked(tmp_path, "plain"), workspace)
    Stepwise(monkeypatch, {30: lambda: call("runs.pause", {"run": "a"}, workspace)})
    job = Job(listens=False)
    worker = threading.Thread(target=call, args=("train", asked(tmp_path), workspace, job))
    worker.start()
    wait_for(lambda: [run for run in call("runs.list", {}, workspace) if run.status == "paused"])
    job.cancel()
    worker.join()
    (stopped,) = [run for run in call("runs.list", {}, workspace) if run.id == "a"]
    assert (stopped.status, stopped.step) == ("stopped", 30)
    call("resume", {"out": tmp_path / "a"}, workspace)
    assert tables(tmp_path / "a") == tables(tmp_path / "plain")


class Killed(BaseException):
    """As kill -9: nothing is saved."""


def test_a_change_is_made_again_after_the_same_update_when_the_process_was_killed(workspace, tmp_path, monkeypatch):
    """One run is changed at 30 and 60 and ends; another is killed at 75, with its last checkpoint at 50: both are equal."""

    def change(run: str, **settings: float) -> Callable[[], Any]:
        return lambda: call("runs.change", {"run": run, "settings": settings}, workspace)

    with monkeypatch.context() as patched:
        Stepwise(patched, {30: change("whole", lr=0.001, matrix_lr=0.004), 60: change("whole", lambda_K=0.2)})
        call("train", asked(tmp_path, "whole"), workspace)

    def kill() -> None:
        raise Killed

    with monkeypatch.context() as patched:
        actions = {
            30: change("killed", lr=0.001, matrix_lr=0.004),
            50: lambda: call("runs.checkpoint", {"run": "killed"}, workspace),
            60: change("killed", lambda_K=0.2),
            75: kill,
        }
        Stepwise(patched, actions)
        with pytest.raises(Killed):
            call("train", asked(tmp_path, "killed"), workspace)
    call("resume", {"out": tmp_path / "killed"}, workspace)
    assert tables(tmp_path / "killed") == tables(tmp_path / "whole")
    call("train", asked(tmp_path, "plain"), workspace)
    assert tables(tmp_path / "plain") != tables(tmp_path / "whole")
    changed = [(e.step, e.detail) for e in workspace.store.events(run="killed") if e.kind == "changed"]
    assert changed == [(30, {"lr": 0.001, "matrix_lr": 0.004}), (60, {"lambda_K": 0.2})]
    rates = dict(workspace.store.series("whole", "lr"))
    assert rates[30] > rates[31] and rates[31] == pytest.approx(
        0.001 * dict(workspace.store.series("whole", "rate"))[31]
    )


def test_a_change_in_the_same_look_as_a_checkpoint_is_not_lost(workspace, tmp_path, monkeypatch):
    """The checkpoint is written before the change, after the same update: a resume must begin with the change."""

    def both(run: str) -> Callable[[], Any]:
        def tell() -> None:
            call("runs.checkpoint", {"run": run}, workspace)
            call("runs.change", {"run": run, "settings": {"lr": 0.0005}}, workspace)

        return tell

    with monkeypatch.context() as patched:
        Stepwise(patched, {40: both("whole")})
        call("train", asked(tmp_path, "whole"), workspace)

    def kill() -> None:
        raise Killed

    with monkeypatch.context() as patched:
        Stepwise(patched, {40: both("killed"), 45: kill})
        with pytest.raises(Killed):
            call("train", asked(tmp_path, "killed"), workspace)
    call("resume", {"out": tmp_path / "killed"}, workspace)
    assert tables(tmp_path / "killed") == tables(tmp_path / "whole")


def test_a_new_change_is_not_undone_by_an_older_one_that_is_repeated(workspace, tmp_path, monkeypatch):
    def change(**settings: float) -> Callable[[], Any]:
        return lambda: call("runs.change", {"run": "a", "settings": settings}, workspace)

    def kill() -> None:
        raise Killed

    def keep() -> None:
        call("runs.checkpoint", {"run": "a"}, workspace)

    with monkeypatch.context() as patched:
        Stepwise(patched, {20: keep, 40: change(lr=0.1, table_lr=0.001), 50: kill})
        with pytest.raises(Killed):
            call("train", asked(tmp_path), workspace)
    with monkeypatch.context() as patched:
        Stepwise(patched, {30: change(lr=0.0002), 60: keep, 70: kill})
        with pytest.raises(Killed):
            call("resume", {"out": tmp_path / "a"}, workspace)
    call("resume", {"out": tmp_path / "a"}, workspace)
    rates, lr = dict(workspace.store.series("a", "rate")), dict(workspace.store.series("a", "lr"))
    for step in (31, 41, 61, 71, 120):
        assert lr[step] == pytest.approx(0.0002 * rates[step]), step
    _, document = read_tensors(tmp_path / "a" / "training.safetensors")
    assert document["progress"]["steered"] == {"lr": 0.0002, "table_lr": 0.001}


def test_a_training_that_failed_by_a_change_can_be_resumed(workspace, tmp_path, monkeypatch):
    change = {"run": "a", "settings": {"lambda_K": 1e308}}
    actions = {
        20: lambda: call("runs.checkpoint", {"run": "a"}, workspace),
        30: lambda: call("runs.change", change, workspace),
    }
    with monkeypatch.context() as patched:
        Stepwise(patched, actions)
        with pytest.raises(NonFiniteLoss):
            call("train", asked(tmp_path), workspace)
    assert call("resume", {"out": tmp_path / "a"}, workspace).status == "finished"
    assert any("will be as before" in e.detail.get("text", "") for e in workspace.store.events(run="a"))


def test_steps_are_counted(workspace, tmp_path, monkeypatch):
    def told(*kinds: str) -> Callable[[], Any]:
        return lambda: [
            workspace.store.add_command("a", kind, {"updates": 3} if kind == "step" else {}) for kind in kinds
        ]

    Stepwise(monkeypatch, {10: told("pause", "step"), 50: told("pause", "step", "continue")})
    worker = threading.Thread(target=call, args=("train", asked(tmp_path), workspace, Job(listens=False)))
    worker.start()
    wait_for(lambda: [run for run in call("runs.list", {}, workspace) if run.status == "paused" and run.step == 13])
    told("continue")()
    worker.join()
    kinds = [(e.kind, e.step) for e in workspace.store.events(run="a") if e.kind in ("paused", "stepped", "continued")]
    assert kinds == [("stepped", 10), ("paused", 13), ("continued", 13), ("stepped", 50), ("continued", 50)]


def test_a_trigger_fires_once_and_pauses(workspace, tmp_path, monkeypatch):
    heard: list[str] = []
    job = Job(lambda message: heard.append(message.text) if isinstance(message, Notice) else None, listens=False)
    add = {"run": "a", "metric": "train_bpb", "below": 6.0, "action": "pause"}
    keep = {"run": "a", "metric": "val_bpb", "above": 0.0, "action": "checkpoint"}
    Stepwise(monkeypatch, {2: lambda: [call("runs.trigger", add, workspace), call("runs.trigger", keep, workspace)]})
    worker = threading.Thread(target=call, args=("train", asked(tmp_path), workspace, job))
    worker.start()
    wait_for(lambda: [run for run in call("runs.list", {}, workspace) if run.status == "paused"])
    fired = workspace.store.triggers("a")[0].fired_at
    bpb = dict(workspace.store.series("a", "train_bpb"))
    assert fired and bpb[fired] < 6 and all(value >= 6 for step, value in bpb.items() if 2 <= step < fired)
    call("runs.continue", {"run": "a"}, workspace)
    worker.join()
    assert (tmp_path / "a" / "checkpoints" / "60" / "training.safetensors").exists()
    assert any("trigger at step" in text and "is below 6" in text for text in heard)
    assert [e.detail["metric"] for e in workspace.store.events(run="a") if e.kind == "trigger"].count("train_bpb") == 1
    (left,) = call("runs.untrigger", {"run": "a", "trigger": 1}, workspace)
    assert left.metric == "val_bpb"
    with pytest.raises(RunNotFound, match="got trigger 1; run 'a' has 2"):
        call("runs.untrigger", {"run": "a", "trigger": 1}, workspace)


def test_a_branch_goes_on_with_changed_settings_and_leaves_the_run_as_it_is(workspace, tmp_path, monkeypatch):
    Stepwise(monkeypatch, {40: lambda: call("runs.checkpoint", {"run": "a"}, workspace)})
    call("train", asked(tmp_path), workspace)
    before = tables(tmp_path / "a")
    made = call("runs.branch", {"run": "a", "out": tmp_path / "same", "step": 40}, workspace)
    assert (made.run, made.step) == ("same", 40)
    assert workspace.store.series("same", "train_bpb") == workspace.store.series("a", "train_bpb")[:40]
    call("resume", {"out": tmp_path / "same"}, workspace)
    assert tables(tmp_path / "same") == before  # without a change it is the same training
    other = {"run": "a", "out": tmp_path / "longer", "step": 40, "train": {"lr": 0.001, "steps": 150}}
    assert call("runs.branch", other, workspace).changed == {"lr": 0.001, "steps": 150}
    result = call("resume", {"out": tmp_path / "longer"}, workspace)
    assert result.steps == 150 and tables(tmp_path / "a") == before
    rates = dict(workspace.store.series("longer", "lr"))
    assert rates[41] == pytest.approx(0.001 * dict(workspace.store.series("longer", "rate"))[41])
    with pytest.raises(ConfigError, match=r"got train\.seed"):
        call("runs.branch", {"run": "a", "out": tmp_path / "b", "train": {"seed": 3}}, workspace)
    with pytest.raises(CheckpointError, match="no checkpoint of update 41; kept are 40"):
        call("runs.branch", {"run": "a", "out": tmp_path / "b", "step": 41}, workspace)
    with pytest.raises(ConfigError, match="already holds a run"):
        call("runs.branch", {"run": "a", "out": tmp_path / "same"}, workspace)


@pytest.mark.parametrize(
    ("operation", "fields", "error", "text"),
    [
        ("runs.change", {"settings": {}}, ConfigError, "got no settings"),
        ("runs.change", {"settings": {"dropout": 0.1}}, ConfigError, "got 'dropout'; while a training runs, only lr"),
        ("runs.change", {"settings": {"lr": -1}}, ConfigError, "lr"),
        ("runs.change", {"settings": {"lambda_S": 0.1}}, ConfigError, "lambda_S=0.1 needs experts"),
        ("runs.step", {"updates": 0}, ConfigError, "got updates=0"),
        ("runs.trigger", {"metric": "K"}, ConfigError, "got no line or two"),
        ("runs.trigger", {"metric": "K", "above": float("nan")}, ConfigError, "finite"),
        ("runs.trigger", {"metric": "val_pbp", "above": 1}, ConfigError, "got metric 'val_pbp'"),
        ("runs.change", {"settings": {"lr": float("inf")}}, ConfigError, "should be a finite number"),
        ("runs.trigger", {"metric": "K", "above": 1, "action": "shell"}, ConfigError, "got action 'shell'"),
        ("runs.pause", {}, RunNotRunning, "it is not in training"),
    ],
)
def test_what_a_run_cannot_be_told_is_refused_in_one_line(workspace, tmp_path, operation, fields, error, text):
    call("train", asked(tmp_path, steps=2), workspace)
    with pytest.raises(error, match=text) as refused:
        call(operation, {"run": "a", **fields}, workspace)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name.startswith("runs.") and name != "runs.list"])
def test_a_run_that_is_not_there_is_named(workspace, tmp_path, operation):
    call("train", asked(tmp_path, steps=2), workspace)
    required = {
        "names": ["a", "no"],
        "run": "no",
        "settings": {"lr": 0.1},
        "metric": "K",
        "above": 1.0,
        "trigger": 1,
        "out": "x",
    }
    fields = {name: value for name, value in required.items() if name in OPERATIONS[operation].request.model_fields}
    with pytest.raises(RunNotFound, match="got run 'no'"):
        call(operation, fields, workspace)


def test_a_kept_checkpoint_stays_when_later_ones_are_written(workspace, tmp_path, monkeypatch):
    Stepwise(monkeypatch, {20: lambda: call("runs.checkpoint", {"run": "a"}, workspace)})
    call("train", asked(tmp_path), workspace)
    kept = tmp_path / "a" / "checkpoints" / "20"
    _, document = read_tensors(kept / "training.safetensors")
    assert document["progress"]["step"] == 20
    assert json.loads((tmp_path / "a" / "config.json").read_text())["train"]["steps"] == 120
    call("runs.remove", {"names": ["a"], "files": True}, workspace)
    assert not (tmp_path / "a").exists()
