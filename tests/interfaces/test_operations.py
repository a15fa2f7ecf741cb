"""Operations: one table, plain records in and out, a workspace that keeps models, jobs that can be stopped from anywhere."""

from __future__ import annotations

import ast
import inspect
import json
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import get_type_hints

import pytest
import torch

from bit_transformer.cli.output import as_flags
from bit_transformer.errors import (
    Ask,
    Cancelled,
    CheckpointError,
    ConfigError,
    Give,
    NonFiniteLoss,
    ParityError,
    RunNotRunning,
)
from bit_transformer.service.jobs import STOP_FILE, Job, Update
from bit_transformer.service.operations import OPERATIONS, call
from bit_transformer.service.requests import GenerateRequest, InfillRequest
from bit_transformer.service.workspace import Workspace
from tests.conftest import ROOT
from tests.interfaces.test_cli import SMALL

TINY = {"d_model": 16, "nhead": 2, "num_layers": 1, "max_seq_len": 256}


@pytest.fixture
def trained(btlm, text_file, tmp_path) -> Path:
    done = btlm("train", text_file, *SMALL, "--steps", 20, "--out", "runs/one")
    assert done.returncode == 0, done.stderr
    return tmp_path / "runs" / "one"


def training(out: Path, text: Path, **train: object) -> dict[str, object]:
    return {"out": out, "model": TINY, "train": {"batch_size": 4, **train}, "data": {"corpora": (str(text),)}}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_a_function_of_its_request_a_workspace_and_a_job(name: str) -> None:
    operation = OPERATIONS[name]
    hints = get_type_hints(operation._function())
    names = list(inspect.signature(operation._function()).parameters)
    assert [hints[parameter] for parameter in names] == [operation.request, Workspace, Job]
    assert operation.request.model_json_schema()["type"] == "object" and operation.result().json_schema()
    assert operation.summary.endswith(".") and len(operation.summary.splitlines()) == 1


def test_requests_survive_json_bytes_included() -> None:
    asked = GenerateRequest(run="a", prompts=(bytes(range(256)),), stop=(b"\xff",))
    assert GenerateRequest.model_validate_json(asked.model_dump_json()) == asked
    holes = InfillRequest(run="a", data=b"\x00a", holes=((0, 1),))
    assert InfillRequest.model_validate_json(holes.model_dump_json()) == holes


@pytest.mark.parametrize(
    ("name", "fields", "says"),
    [
        ("evaluat", {}, "got operation 'evaluat'"),
        ("evaluate", {"run": "a", "name": ["b"]}, "unknown key 'name' in EvaluateRequest. Did you mean 'names'?"),
        ("score", {"run": "a", "name": "b", "window": "wide"}, "window='wide'"),
        ("runs.show", {}, "run"),
    ],
)
def test_what_cannot_be_asked_is_one_line(name: str, fields: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        call(name, fields, Workspace())
    assert says in str(refused.value) and len(str(refused.value).splitlines()) == 1


def test_an_operation_gives_what_the_command_line_prints(trained, btlm, text_file) -> None:
    found = (
        OPERATIONS["evaluate"]
        .result()
        .dump_python(call("evaluate", {"run": str(trained), "names": [str(text_file)]}, Workspace()))
    )
    shown = json.loads(btlm("evaluate", trained, text_file, "--json").stdout)
    for one in (found, shown, *found["codings"], *shown["codings"]):
        assert one.pop("seconds") > 0
    assert found == shown


def test_a_workspace_keeps_models_until_their_checkpoints_change(trained, tmp_path) -> None:
    workspace = Workspace(keep=1)
    copies = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        copies.append(tmp_path / name / "model.safetensors")
        copies[-1].write_bytes((Path(trained) / "model.safetensors").read_bytes())
    first = workspace.model(str(copies[0]))
    assert workspace.model(str(tmp_path / "a")) is first and not first.training
    copies[0].touch()
    assert workspace.model(str(copies[0])) is not first
    again = workspace.model(str(copies[0]))
    workspace.model(str(copies[1]))  # one is kept: this one
    assert workspace.model(str(copies[0])) is not again


def test_a_device_is_named_and_must_be_there(trained) -> None:
    with pytest.raises(ConfigError, match="device='gpu'"):
        Workspace(device="gpu")
    assert Workspace(device="cpu").model(str(trained)).head.weight.device.type == "cpu"
    for name in ("cuda:99", "mps"):
        with pytest.raises(ConfigError, match="this machine does not have"):
            Workspace(device=name).model(str(trained))
    for name in ("auto:0", "cuda:x", "cpu:1"):
        with pytest.raises(ConfigError, match="Try auto"):
            Workspace(device=name)


def test_a_training_is_cancelled_from_another_thread_and_goes_on(tmp_path, text_file) -> None:
    workspace = Workspace(tmp_path / "runs.sqlite")
    whole = call("train", training(tmp_path / "whole", text_file, steps=30), workspace)
    seen: list[int] = []

    def watch(message: object) -> None:
        if isinstance(message, Update):
            seen.append(message.step)
            if message.step == 5:
                threading.Thread(target=job.cancel).start()
                job._cancelled.wait(10)

    job = Job(watch)
    result = []
    thread = threading.Thread(
        target=lambda: result.append(call("train", training(tmp_path / "run", text_file, steps=30), workspace, job))
    )
    thread.start()
    thread.join(60)
    assert result[0].status == "stopped" and result[0].note == "interrupted" and 5 <= result[0].steps < 30
    on = call("resume", {"out": tmp_path / "run"}, workspace)
    assert on.status == "finished" and on.steps == 30
    assert on.comparison.bpb == whole.comparison.bpb


def test_a_training_is_stopped_from_another_process(tmp_path, text_file) -> None:
    store = tmp_path / "runs.sqlite"
    command = [sys.executable, "-m", "bit_transformer.cli"]
    flags = [
        "--seconds",
        "120",
        "--preset",
        "1",
        "--no-experts",
        "--set",
        "model.max_seq_len=256",
        "--store",
        str(store),
    ]
    trains = subprocess.Popen(
        [*command, "train", str(text_file), "--out", str(tmp_path / "run"), *flags], stderr=subprocess.DEVNULL
    )
    workspace = Workspace(store)
    try:
        for _ in range(600):
            time.sleep(0.1)
            if store.exists() and any(r.step for r in call("runs.list", {}, workspace)):
                break
        done = subprocess.run(
            [*command, "runs", "stop", "run", "--store", str(store), "--json"], capture_output=True, text=True
        )
        assert done.returncode == 0 and json.loads(done.stdout)["pid"] == trains.pid, done.stderr
        assert trains.wait(60) == 130
    finally:
        trains.kill()
    (run,) = call("runs.list", {}, workspace)
    assert run.status == "stopped" and (tmp_path / "run" / "training.safetensors").exists()
    assert not (tmp_path / "run" / STOP_FILE).exists()
    with pytest.raises(RunNotRunning, match="it is not in training"):
        call("runs.stop", {"run": "run"}, workspace)


def test_advice_is_given_in_the_words_of_each_door(trained, tmp_path, text_file, btlm) -> None:
    with pytest.raises(ConfigError) as refused:
        call("train", training(Path(trained), text_file, steps=1), Workspace(tmp_path / "s.sqlite"))
    error = refused.value
    assert error.field == "out" and "--" not in str(error)
    assert str(error).endswith(f"Try resume(out={str(trained)!r}), or overwrite=True, or another out")
    flags = f"Try `btlm train --resume --out {trained}`, or --overwrite, or another --out"
    assert error.said(as_flags).endswith(flags)
    done = btlm("train", text_file, "--out", trained, "--steps", 1, "--json")
    assert done.returncode == 2 and json.loads(done.stdout)["field"] == "out" and "--overwrite" in done.stderr
    with pytest.raises(CheckpointError) as missing:
        Workspace(tmp_path / "s.sqlite").model("no-such-run")
    assert missing.value.tries == (Ask("runs.list"),) and "`btlm runs list`" in missing.value.said(as_flags)


@pytest.mark.parametrize(
    ("advice", "flags"),
    [
        (Give("out", "runs/a b"), "--out 'runs/a b'"),
        (Give("overwrite", True), "--overwrite"),
        (Give("store"), "another --store"),
        (Give("train.telemetry", 0.005), "--set train.telemetry=0.005"),
        (Ask("calibrate", "r"), "`btlm calibrate r`"),
        (Ask("score", "r", (Give("names", ("a", "b c")),)), "`btlm score r a 'b c'`"),
        (Ask("resume", more=(Give("budget", {"steps": 1000}),)), "`btlm train --resume --steps 1000`"),
        (Ask("resume", more=(Give("out", "runs/a"),)), "`btlm train --resume --out runs/a`"),
        (Ask("train", more=(Give("data.corpora", ("stdlib",)),)), "`btlm train stdlib`"),
        (Give("holes", "10:20"), "--hide 10:20"),
        (Give("model.causal", False), "--diffusion"),
        ("more files", "more files"),
    ],
)
def test_advice_as_flags(advice: object, flags: str) -> None:
    assert as_flags(advice) == flags  # type: ignore[arg-type]


def test_advice_names_operations_and_fields_that_there_are() -> None:
    fields = {name for operation in OPERATIONS.values() for name in operation.request.model_fields}
    fields |= {"store", "num_layers", "d_model", "nhead", "max_seq_len", "dim_feedforward"}
    found = 0
    for path in (ROOT / "bit_transformer").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or not node.args:
                continue
            first = node.args[0]
            if not isinstance(first, ast.Constant):
                continue
            found += node.func.id in ("Ask", "Give")
            if node.func.id == "Give":
                assert first.value.partition(".")[0] in fields, (path, first.value)
            if node.func.id == "Ask":
                request = OPERATIONS[first.value].request.model_fields
                assert len(node.args) < 2 or "run" in request, (path, first.value)
                for inside in ast.walk(node):
                    if isinstance(inside, ast.Call) and getattr(inside.func, "id", "") == "Give":
                        assert inside.args[0].value.partition(".")[0] in request, (path, first.value)
    assert found > 30


def test_results_with_bytes_survive_json(trained) -> None:
    workspace = Workspace()
    asked = {"run": str(trained), "prompts": [b"\xff\x00"], "max_bytes": 9, "sampling": {"seed": 1, "temperature": 3.0}}
    made = call("generate", asked, workspace)
    result = OPERATIONS["generate"].result()
    assert result.validate_json(result.dump_json(made)) == made and len(made.data[0]) == 9


def test_errors_come_back_from_another_process() -> None:
    for error in (
        NonFiniteLoss("a loss", 3),
        ParityError("odd", [1, 2], tries=(Ask("repair"),)),
        ConfigError("no", field="out", tries=(Give("out"),)),
    ):
        back = pickle.loads(pickle.dumps(error))
        assert type(back) is type(error) and str(back) == str(error) and back.__dict__ == error.__dict__


def test_work_without_a_part_of_its_result_is_cancelled(trained, text_file) -> None:
    job = Job()
    job.cancel()
    with pytest.raises(Cancelled):
        call("calibrate", {"run": str(trained), "names": [str(text_file)], "alpha": 0.2}, Workspace(), job)
    before = Workspace().model(str(trained)).head.weight.clone()
    workspace = Workspace()
    call("evaluate", {"run": str(trained), "names": [str(text_file)], "learning": "online+mixer"}, workspace)
    assert torch.equal(workspace.model(str(trained)).head.weight, before)


def test_a_grown_copy_computes_the_same_and_is_trained_further(trained, text_file, tmp_path):
    workspace = Workspace(tmp_path / "runs" / "runs.sqlite", "cpu")
    made = call(
        "grow", {"run": str(trained), "out": tmp_path / "large", "model": {"num_layers": 3, "d_model": 64}}, workspace
    )
    assert made.parameters > made.parameters_before and made.difference < 1e-5 and made.model.num_layers == 3
    before, after = (
        call("evaluate", {"run": str(run), "names": [str(text_file)]}, workspace).total.bpb
        for run in (trained, tmp_path / "large")
    )
    assert after == pytest.approx(before, abs=1e-4)
    further = {"run": str(tmp_path / "large"), "out": tmp_path / "more", "train": {"steps": 4, "batch_size": 4}}
    result = call("train_further", {**further, "data": {"corpora": (str(text_file),)}}, workspace)
    assert result.parameters == made.parameters
    for fields, text in (
        ({"model": {}}, "got no size"),
        ({"model": {"num_layers": 0}, "out": tmp_path / "none"}, "num_layers"),
        ({"model": {"d_model": 8}, "out": tmp_path / "none"}, "less than the model's 16"),
        ({"model": {"num_layers": 4}}, "holds a model already"),
        ({"model": {"num_layers": 4}, "out": trained, "overwrite": True}, "the folder of the run itself"),
    ):
        with pytest.raises(ConfigError, match=text):
            call("grow", {"run": str(trained), "out": tmp_path / "large", **fields}, workspace)
