"""Trainings in processes that torchrun starts: from the first to the last step, with processes killed, stopped and hanging."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from bit_transformer.checkpoint import load_checkpoint
from bit_transformer.config import DistributedConfig
from bit_transformer.errors import BitStreamError, ConfigError, NonFiniteLoss, RankFailed
from bit_transformer.service import launch
from bit_transformer.service.jobs import STOP_FILE, Job, Message, Notice, Update
from bit_transformer.service.operations import call
from bit_transformer.service.workspace import Workspace
from tests.conftest import ROOT

MODEL = {"d_model": 32, "nhead": 2, "num_layers": 1, "max_seq_len": 256, "ngram_orders": (2,), "ngram_rows": 256}
SLOW_START = 240  # seconds that a busy machine may take to start processes

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes through /proc")


def asked(out: Path, text: Path, nproc: int = 2, **more: Any) -> dict[str, Any]:
    train = {"steps": 30, "batch_size": 4, "amp": False, "eval_every": 0.5, "eval_bytes": 512} | more.pop("train", {})
    spread = {"nproc": nproc, "timeout": 60.0} | more.pop("distributed", {})
    return {
        "out": out,
        "model": MODEL,
        "train": train,
        "data": {"corpora": (str(text),)},
        "distributed": spread,
        **more,
    }


def workers(out: Path) -> dict[int, int]:
    """Process of each rank that trains into a folder."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes().split(b"\0") if process.name.isdigit() else []
            if b"bit_transformer.service.worker" not in command or b"torch.distributed.run" in command:
                continue
            if str(out) in Path(command[-2].decode(), launch.ASKED).read_text():
                variables = (process / "environ").read_bytes().split(b"\0")
                rank = next(line for line in variables if line.startswith(b"RANK="))
                found[int(rank[5:])] = int(process.name)
        except OSError:
            continue
    return found


def wait_for(what: Any) -> Any:
    end = time.monotonic() + SLOW_START
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.05)
    raise TimeoutError


def beside(out: Path, action: Any) -> Thread:
    """Act once there is a checkpoint."""

    def act() -> None:
        wait_for(lambda: list(out.glob("training*")) and not list(out.glob(".training*")))
        action()

    thread = Thread(target=act, daemon=True)
    thread.start()
    return thread


@pytest.mark.timeout(2 * SLOW_START)
def test_a_killed_process_is_started_again_and_the_training_ends_as_if_nothing_was(tmp_path, text_file):
    heard: list[Message] = []
    out = tmp_path / "run"
    slowly = {"steps": 400, "checkpoint_seconds": 0.2}
    killed = beside(out, lambda: os.kill(workers(out)[1], signal.SIGKILL))
    result = call("train", asked(out, text_file, train=slowly), Workspace(tmp_path / "s"), Job(heard.append))
    killed.join()
    assert result.status == "finished" and result.steps == 400 and result.comparison is not None
    notices = [message.text for message in heard if isinstance(message, Notice)]
    # Either torchrun sees the death first, or rank 0 misses an answer; both name the rank.
    seen = r"started again, from the last checkpoint \((rank 1 was killed by signal 9|rank 0: rank 1 did not answer)"
    assert any(re.search(seen, text) for text in notices), notices
    assert any(isinstance(message, Update) for message in heard)
    alone = {**asked(tmp_path / "alone", text_file, train=slowly | {"accum_steps": 2}), "distributed": None}
    other = call("train", alone, Workspace(tmp_path / "s"))
    assert result.val_bpb == pytest.approx(other.val_bpb, rel=0.05)
    assert load_checkpoint(out).num_parameters() == load_checkpoint(tmp_path / "alone").num_parameters()


@pytest.mark.timeout(2 * SLOW_START)
def test_a_sharded_training_is_stopped_and_resumed_by_one_process(tmp_path, text_file):
    out, workspace = tmp_path / "run", Workspace(tmp_path / "s")
    request = asked(out, text_file, train={"steps": 5000, "checkpoint_seconds": 0.5}, distributed={"shard": True})
    stop = beside(out, lambda: (out / STOP_FILE).touch())
    result = call("train", request, workspace)
    stop.join()
    assert result.status == "stopped" and 0 < result.steps < 5000
    assert (out / "model.safetensors").exists() and list(out.glob("training-*/document.json"))
    assert not (out / "training.safetensors").exists()
    more = call("resume", {"out": out, "budget": {"steps": result.steps + 5}}, workspace)
    assert more.steps == result.steps + 5 and (out / "training.safetensors").exists()


@pytest.mark.timeout(2 * SLOW_START)
def test_errors_come_back_with_the_rank_and_are_not_tried_again(tmp_path, text_file):
    workspace = Workspace(tmp_path / "s")
    with pytest.raises(ConfigError, match=r"rank 0: got batch_size=3 for 2 ranks .*Try batch_size=4") as wrong:
        call("train", asked(tmp_path / "run", text_file, train={"batch_size": 3}), workspace)
    assert wrong.value.field == "train.batch_size" and not (tmp_path / "run").exists()
    with pytest.raises(BitStreamError, match="bytes to train on") as small:  # which only the processes notice
        call("train", asked(tmp_path / "run", text_file) | {"model": {**MODEL, "max_seq_len": 8 << 20}}, workspace)
    assert len(str(small.value).splitlines()) == 1


@pytest.mark.slow
@pytest.mark.timeout(4 * SLOW_START)
def test_a_hanging_process_is_named_and_replaced(tmp_path, text_file):
    heard: list[Message] = []
    out = tmp_path / "run"
    hung = beside(out, lambda: os.kill(workers(out)[1], signal.SIGSTOP))
    request = asked(out, text_file, train={"steps": 400, "checkpoint_seconds": 0.2}, distributed={"timeout": 10.0})
    result = call("train", request, Workspace(tmp_path / "s"), Job(heard.append))
    hung.join()
    assert result.steps == 400
    notices = [message.text for message in heard if isinstance(message, Notice)]
    assert any("rank 1 did not answer; it was last heard of" in text for text in notices), notices


@pytest.mark.slow
@pytest.mark.timeout(4 * SLOW_START)
def test_what_always_fails_ends(tmp_path, text_file):
    request = asked(
        tmp_path / "run", text_file, train={"optim": {"lr": 1e30, "matrix_lr": 1e30}}, distributed={"restarts": 1}
    )
    with pytest.raises((NonFiniteLoss, RankFailed)):
        call("train", request, Workspace(tmp_path / "s"))


def test_more_processes_than_make_sense_are_refused(tmp_path, text_file):
    with pytest.raises(ConfigError, match=r"got nproc=1000; here are \d+ .*Try nproc=\d+"):
        call("train", asked(tmp_path / "run", text_file, nproc=1000), Workspace(tmp_path / "s"))


def test_processes_within_processes_are_refused(tmp_path, text_file, monkeypatch):
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="rank 1: got nproc=2 in a process that torchrun started"):
        call("train", asked(tmp_path / "run", text_file), Workspace(tmp_path / "s"))


def test_a_rank_that_reaches_nobody_says_whom(tmp_path, text_file, monkeypatch):
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "9")):
        monkeypatch.setenv(name, value)
    request = asked(tmp_path / "run", text_file) | {"distributed": {"timeout": 1.0}}
    with pytest.raises(RankFailed, match=r"rank 1: could not reach localhost:9 .*Try torchrun"):
        call("train", request, Workspace(tmp_path / "s"))


def test_flags_of_processes(btlm, text_file):
    done = btlm("train", text_file, "--distributed", "--steps", 1)
    assert (
        done.returncode == 2
        and "without a launcher: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT must be set" in done.stderr
    )
    done = btlm("train", text_file, "--fsdp", "--steps", 1)
    assert done.returncode == 2 and "--fsdp alone" in done.stderr and len(done.stderr.splitlines()) == 1
    assert DistributedConfig().nproc is None


@pytest.mark.timeout(2 * SLOW_START)
def test_the_workflow_runs_under_torchrun(tmp_path, text_file):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(ROOT / "unified_workflow.py"),
    ]
    flags = [
        "--corpus",
        str(text_file),
        "--out",
        str(tmp_path / "run"),
        "--epochs",
        "0.5",
        "--batch-size",
        "4",
        "--distributed",
        "--qat",
        "8",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *flags], capture_output=True, text=True, errors="replace", env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished (budget spent)") == 1 and "bits per byte of" in done.stdout
    assert load_checkpoint(tmp_path / "run").rounding is not None
