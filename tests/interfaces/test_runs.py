"""Run folders and records as several processes meet them: one training at a time, killed ones known, old ones removed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

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
    files = {"config.json", "metrics.csv", "loss.png", "model.safetensors", "training.safetensors"}
    assert [(run["id"], set(run["files"])) for run in removed] == [("b", files), ("c", files)]
    assert [path.name for path in (tmp_path / "runs/b").iterdir()] == ["notes.txt"]
    assert not (tmp_path / "runs/c").exists() and json.loads(btlm("runs", "list", "--json").stdout) == []


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
