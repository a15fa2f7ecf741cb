"""Run folders and records as several processes meet them: one training at a time, killed ones known, old ones removed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bit_transformer.runs.jobs import JobStore
from bit_transformer.runs.store import RunStore
from bit_transformer.service import training
from bit_transformer.service.operations import call
from bit_transformer.service.workspace import Workspace
from tests.conftest import ROOT
from tests.interfaces.test_cli import SMALL, start, wait_for

LONG = [*SMALL, "--steps", 100_000, "--set", "train.checkpoint_seconds=0.2"]


def contents(folder: Path) -> dict[str, bytes]:
    """What may not change by another's hand: settings, and that no file comes or goes."""
    return {path.name: path.read_bytes() if path.name in ("config.json", ".lock") else b"" for path in folder.iterdir()}


@pytest.mark.parametrize("way", [["--overwrite"], [], ["--resume"]])
def test_a_second_training_of_a_folder_is_refused_before_it_changes_anything(btlm, text_file, tmp_path, way) -> None:
    process = start("train", text_file, *LONG, "--out", "runs/one", cwd=tmp_path)
    folder = tmp_path / "runs" / "one"
    wait_for(folder / "training.safetensors", process)
    settings = (folder / "config.json").read_bytes()
    args = (
        ["train", "--out", "runs/one", *way]
        if way == ["--resume"]
        else ["train", text_file, *SMALL, "--steps", 2, "--out", "runs/one", *way]
    )
    refused = subprocess.run(
        [sys.executable, "-m", "bit_transformer.cli", *map(str, args), "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 2, refused.stderr
    assert f"process {process.pid} on" in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert json.loads(refused.stdout)["error"] == "RunBusy"
    assert (folder / "config.json").read_bytes() == settings and (folder / "training.safetensors").exists()
    assert json.loads(btlm("runs", "list", "--json").stdout)[0]["status"] == "running"
    for removal in (["rm", "one"], ["rm", "one", "--files"]):
        assert "is training there" in btlm("runs", *removal).stderr
    process.send_signal(signal.SIGKILL)
    process.communicate()

    assert (folder / ".lock").exists()
    (killed,) = json.loads(btlm("runs", "list", "--json").stdout)
    assert killed["status"] == "killed" and "killed (no end was recorded)" in btlm("runs", "show", "one").stdout
    if way:
        done = btlm("train", text_file, *SMALL, "--steps", 2, "--out", "runs/one", "--overwrite")
        assert done.returncode == 0, done.stderr
        assert not (folder / ".lock").exists()
        assert json.loads(btlm("runs", "list", "--json").stdout)[0]["status"] == "finished"


def test_runs_are_removed_with_or_without_their_files(btlm, text_file, tmp_path) -> None:
    for name in ("a", "b", "c"):
        assert btlm("train", text_file, *SMALL, "--steps", 1, "--out", f"runs/{name}").returncode == 0
    (tmp_path / "runs/b/notes.txt").write_text("mine")
    assert btlm("runs", "rm", "a", "ghost").returncode == 2  # all or none
    assert len(json.loads(btlm("runs", "list", "--json").stdout)) == 3
    said = btlm("runs", "rm", "a").stdout
    assert said.startswith("removed a from") and said.endswith("stays\n") and (tmp_path / "runs/a/config.json").exists()
    removed = json.loads(btlm("runs", "rm", "b", "c", "--files", "--json").stdout)
    files = {"config.json", "metrics.csv", "metrics.jsonl", "loss.png", "model.safetensors", "training.safetensors"}
    assert [(run["id"], set(run["files"])) for run in removed] == [("b", files), ("c", files)]
    assert [path.name for path in (tmp_path / "runs/b").iterdir()] == ["notes.txt"]
    assert not (tmp_path / "runs/c").exists() and json.loads(btlm("runs", "list", "--json").stdout) == []


def test_a_training_is_steered_from_the_command_line(btlm, text_file, tmp_path) -> None:
    process = start("train", text_file, *LONG, "--set", "train.eval_every=0.5", "--out", "runs/one", cwd=tmp_path)
    folder, store = tmp_path / "runs/one", Workspace(Path("runs/runs.sqlite")).store
    wait_for(folder / "training.safetensors", process)

    def row() -> dict[str, Any]:
        return json.loads(btlm("runs", "list", "--json").stdout)[0]

    def wait(what: Callable[[], Any]) -> Any:
        for _ in range(1200):
            if found := what():
                return found
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.05)
        raise AssertionError(row())

    def happened(kind: str) -> list[dict[str, Any]]:
        return [event.detail for event in store.events(run="one") if event.kind == kind]

    try:
        done = btlm("runs", "pause", "one")
        assert done.returncode == 0 and done.stdout.startswith("asked one to pause"), done.stderr
        wait(lambda: row()["status"] == "paused")
        before = row()["step"]
        told = json.loads(btlm("runs", "step", "one", "--updates", 2, "--json").stdout)
        assert told["run"] == "one" and told["kind"] == "step"
        wait(lambda: row()["status"] == "paused" and row()["step"] == before + 2)
        assert "change lr=0.001, lambda_K=0.1" in btlm(
            "runs", "change", "one", "--set", "lr=0.001", "--set", "lambda_K=0.1"
        ).stdout.replace("to change", "change")
        wait(lambda: happened("changed") == [{"lr": 0.001, "lambda_K": 0.1}])
        assert btlm("runs", "checkpoint", "one").returncode == 0
        kept = folder / "checkpoints" / str(before + 2)
        wait(lambda: (kept / "training.safetensors").exists() and happened("checkpoint"))
        made = json.loads(
            btlm("runs", "trigger", "one", "--metric", "train_bpb", "--above", 0, "--action", "pause", "--json").stdout
        )
        assert made["id"] == 1 and made["above"] == 0
        more = btlm("runs", "trigger", "one", "--metric", "K", "--below", 0)
        assert more.stdout == "trigger 2 of one: notify by K\n"
        assert btlm("runs", "untrigger", "one", 2).stdout == "removed trigger 2 of one\n"
        assert "asked one to go on" in btlm("runs", "continue", "one").stdout
        wait(lambda: happened("trigger"))  # at the next update
        wait(lambda: row()["status"] == "paused" and row()["step"] > before + 2)
        assert happened("trigger")[0]["metric"] == "train_bpb" and happened("trigger")[0]["action"] == "pause"
        done = btlm("runs", "branch", "one", "--out", "runs/two", "--step", before + 2, "--set", "train.optim.lr=0.002")
        assert done.returncode == 0 and f"two begins with one at update {before + 2:,}" in done.stdout, done.stderr
        assert json.loads((tmp_path / "runs/two/config.json").read_text())["train"]["optim"]["lr"] == 0.002
        assert btlm("runs", "stop", "one").returncode == 0
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.communicate()
    on = btlm("train", "--resume", "--out", "runs/two", "--steps", before + 4)
    assert on.returncode == 0, on.stderr
    for args, says in (
        (["pause", "one"], "it is not in training. Try `btlm train --resume --out"),
        (["step", "one", "--updates", 0], "got updates=0"),
        (["change", "one", "--set", "lr=fast"], "KEY=NUMBER is needed"),
        (["change", "one", "--set", "d_model=8"], "Try `btlm runs branch`"),
        (["branch", "one", "--out", "runs/two"], "already holds a run"),
        (["branch", "one", "--out", "runs/x", "--set", "model.d_model=8"], "a branch keeps model and data"),
        (["branch", "one", "--out", "runs/x", "--step", 1], "Try `btlm runs checkpoint one`"),
        (["trigger", "one", "--metric", "K"], "one of above and below is needed"),
        (["untrigger", "one", 9], "run 'one' has 1"),
        (["continue", "ghost"], "Try `btlm runs list`"),
    ):
        refused = btlm("runs", *args)
        assert refused.returncode == 2 and says in refused.stderr and len(refused.stderr.splitlines()) == 1, args
    assert not (tmp_path / "runs/x").exists()


def test_jobs_of_a_server_are_listed(btlm, tmp_path) -> None:
    assert btlm("jobs").stdout.startswith("no jobs in")
    jobs = JobStore(tmp_path / "home.sqlite")
    jobs.add("train", {"out": "a"}, "a")
    jobs.add("evaluate", {"run": "a"}, "a")
    first = jobs.start_next()
    assert first is not None
    jobs.set_progress(first.id, {"done": 1, "total": 4, "doing": "training", "unit": "%"})
    found = json.loads(btlm("jobs", "--store", "home.sqlite", "--json").stdout)
    assert [(job["id"], job["state"]) for job in found] == [(2, "queued"), (1, "running")]
    (running,) = json.loads(btlm("jobs", "--store", "home.sqlite", "--state", "running", "--json").stdout)
    assert running["operation"] == "train" and running["run"] == "a"
    assert "25%" in btlm("jobs", "--store", "home.sqlite").stdout
    jobs.end(first.id, "failed", error={"error": "X", "message": "no room. Try less"})
    assert "1: no room. Try less" in btlm("jobs", "--store", "home.sqlite").stdout
    refused = btlm("jobs", "--state", "lost")
    assert refused.returncode == 2 and "state='lost'" in refused.stderr


def test_errors_of_the_system_are_json_too_and_name_the_file(btlm, text_file, tmp_path, monkeypatch) -> None:
    def full(self: Path, mode: str = "r", *more: object) -> object:
        if mode == "wb":
            raise OSError(28, "No space left on device", str(self))
        return opened(self, mode, *more)

    opened = Path.open
    monkeypatch.setattr(Path, "open", full)
    done = btlm("protect", text_file, "--out", "x", "--json")
    assert done.returncode == 2
    said = json.loads(done.stdout)
    assert said["error"] == "OSError" and "x: No space left on device" in said["message"] and ".tmp" not in done.stderr


def test_a_training_without_matplotlib_ends_well_and_says_what_is_missing(
    btlm, text_file, tmp_path, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = btlm("train", text_file, *SMALL, "--steps", 2, "--out", "runs/one")
    assert done.returncode == 0 and "loss.png was not written: plots need matplotlib" in done.stderr, done.stderr
    assert (tmp_path / "runs/one/metrics.csv").exists() and not (tmp_path / "runs/one/loss.png").exists()
    refused = btlm("score", "runs/one", text_file, "--plot", "x.png")
    assert refused.returncode == 2 and "Try pip install matplotlib" in refused.stderr and not refused.stdout


def test_names_in_any_script_are_drawn_without_a_warning(btlm, tmp_path) -> None:
    path = tmp_path / "訓練 $データ$.txt"
    path.write_bytes(b"to be, or not to be. " * 200)
    done = btlm("telemetry", path, "--plot", "x.png")  # warnings are errors here
    assert done.returncode == 0 and (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_an_older_file_is_noted_in_one_line(tmp_path) -> None:
    golden = ROOT / "tests" / "golden" / "format-1-plain.safetensors"
    call = [sys.executable, "-m", "bit_transformer.cli", "generate", str(golden), "--bytes", "4", "--seed", "1"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True)
    (line,) = done.stderr.decode().splitlines()
    assert done.returncode == 0 and "is of an older format" in line


def test_an_estimate_counts_parameters(btlm, text_file) -> None:
    found = json.loads(btlm("estimate", *SMALL, "--json").stdout)
    result = json.loads(btlm("train", text_file, *SMALL, "--steps", 1, "--out", "runs/one", "--json").stdout)
    assert found["model_parameters"] == result["parameters"] > result["active_parameters"] == found["active_parameters"]
    assert (
        f"{result['parameters']:,} parameters, {result['active_parameters']:,} of them"
        in btlm("estimate", *SMALL).stdout
    )


def test_a_run_has_ended_only_when_its_files_are_written(text_file, tmp_path, monkeypatch) -> None:
    """Whoever sees that a run has ended may resume or remove it, so its process must be done with the folder."""
    workspace = Workspace(tmp_path / "runs.db")
    seen = []

    def exported(store: RunStore, run: str, *_: Any) -> None:
        seen.append(store.get(run).status)
        raise OSError("no space left")

    monkeypatch.setattr(training, "_export", exported)
    model = {"d_model": 16, "nhead": 2, "num_layers": 1, "max_seq_len": 256}
    data = {"corpora": [str(text_file)]}
    fields = {"out": tmp_path / "runs/one", "data": data, "train": {"steps": 1, "batch_size": 2}, "model": model}
    with pytest.raises(OSError, match="no space left"):
        call("train", fields, workspace)
    assert seen == ["running"]
    assert workspace.store.get("one").status == "finished"  # the training itself was done
