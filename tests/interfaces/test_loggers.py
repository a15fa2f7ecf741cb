"""Logs of a training beside the run store, read back with the readers of each library."""

from __future__ import annotations

import importlib
import json
import sqlite3
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bit_transformer.errors import MissingExtra
from bit_transformer.service.jobs import Job, Update
from bit_transformer.service.loggers import JsonLines, Logger, open_logs
from bit_transformer.service.operations import call
from bit_transformer.service.workspace import Workspace
from bit_transformer.training import Record

TINY = {"d_model": 16, "nhead": 2, "num_layers": 1, "max_seq_len": 256}
SETTINGS = {"model": {"d_model": 16, "experts": None}, "train": {"steps": 9, "amp": False}}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps(path: Path) -> list[int]:
    return [line["step"] for line in lines(path) if "step" in line]


def log_of(name: str, folder: Path, step: int = 0) -> Logger:
    said: list[str] = []
    made = open_logs((name,), folder, "demo", SETTINGS, step, said.append)  # type: ignore[arg-type]
    assert not said, said
    return made


def feed(logger: Logger, *at: int) -> None:
    """Records that are a second apart, each of which says its step."""
    for step in at:
        progress = SimpleNamespace(seconds=float(step), share=0.0)
        logger(SimpleNamespace(progress=progress), Record(step=step, train_bpb=float(step), grad_norm=0.5))


def interrupted(logger: Logger, folder: Path, name: str) -> None:
    """A training that logged up to update 5, saved at 3, and goes on from there."""
    feed(logger, 1, 2, 3, 4, 5)
    logger.end("stopped", "interrupted")
    again = log_of(name, folder, step=3)
    feed(again, 4, 6)
    again.end("finished", "budget spent", {"bpb": 2.5, "bytes": 100, "protocol": "static"})


# ---- what is logged when ----


def test_records_are_logged_twice_a_second_and_validations_and_the_last_one_always():
    written: list[tuple[int, dict[str, float]]] = []
    log = SimpleNamespace(write=lambda step, figures: written.append((step, dict(figures))), end=lambda about: None)
    logger = Logger({"one": lambda: log}, lambda text: None)
    for step in range(1, 101):  # eight a second
        record = Record(step=step, train_bpb=1.0)
        if step == 51:
            record["val_bpb"] = 2.0
        share = 1.0 if step == 100 else step / 100
        logger(SimpleNamespace(progress=SimpleNamespace(seconds=step / 8, share=share)), record)
    assert [step for step, _ in written] == [*range(1, 51, 4), 51, *range(55, 100, 4), 100]
    assert written[13] == (51, {"train_bpb": 1.0, "val_bpb": 2.0})


def test_a_log_that_fails_is_given_up_and_the_training_goes_on():
    said: list[str] = []

    class Broken:
        def write(self, step: int, figures: object) -> None:
            raise OSError("the disk is full\nand more")

    def unopened() -> Any:
        raise RuntimeError("no server")

    good = SimpleNamespace(write=lambda step, figures: kept.append(step), end=lambda about: ended.append(about))
    kept: list[int] = []
    ended: list[object] = []
    logger = Logger({"broken": Broken, "never": unopened, "good": lambda: good}, said.append)  # type: ignore[dict-item]
    feed(logger, 1, 2)
    logger.end("finished", "", {"bpb": 1.0})
    logger.end("finished", "")  # is already closed
    assert said == ["the log never has ended: no server", "the log broken has ended: the disk is full"]
    assert kept == [1, 2] and ended == [{"status": "finished", "note": "", "bpb": 1.0}]


# ---- each log, read back ----


def test_a_file_of_json_lines_goes_on_without_a_step_twice(tmp_path):
    interrupted(log_of("jsonl", tmp_path), tmp_path, "jsonl")
    found = lines(tmp_path / "metrics.jsonl")
    assert [line.get("step") for line in found] == [1, 2, 3, 4, 6, None]
    assert found[0] == {"step": 1, "train_bpb": 1.0, "grad_norm": 0.5}
    assert found[-1] == {
        "end": {"status": "finished", "note": "budget spent", "bpb": 2.5, "bytes": 100, "protocol": "static"}
    }
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 7, "tra')  # a process that was killed while it wrote
    JsonLines(tmp_path / "metrics.jsonl", 6).end({})
    assert lines(tmp_path / "metrics.jsonl") == [*found[:-1], {"end": {}}]
    log_of("jsonl", tmp_path).end("stopped", "")  # a new training begins a new file
    assert steps(tmp_path / "metrics.jsonl") == []


def test_tensorboard_reads_the_figures_the_settings_and_the_result(tmp_path):
    pytest.importorskip("tensorboard")
    accumulators = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    interrupted(log_of("tensorboard", tmp_path), tmp_path, "tensorboard")
    found = accumulators.EventAccumulator(str(tmp_path / "logs" / "tensorboard"))
    found.Reload()
    tags = found.Tags()
    assert {"train_bpb", "grad_norm"} <= set(tags["scalars"])
    assert [(event.step, event.value) for event in found.Scalars("train_bpb")] == [
        (s, float(s)) for s in (1, 2, 3, 4, 6)
    ]
    assert found.Scalars("result/bpb")[-1].value == 2.5
    (shown,) = found.Tensors("settings/text_summary")
    assert b'"d_model": 16' in shown.tensor_proto.string_val[0]
    content = found.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    plugin = importlib.import_module("tensorboard.plugins.hparams.plugin_data_pb2")
    hparams = plugin.HParamsPluginData.FromString(content).session_start_info.hparams
    assert hparams["train.steps"].number_value == 9 and hparams["train.amp"].bool_value is False


@pytest.fixture
def trackio_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library's folder; it is chosen when the library is imported."""
    pytest.importorskip("trackio")
    folder = tmp_path / "trackio"
    for name in ("utils", "sqlite_storage"):
        monkeypatch.setattr(importlib.import_module(f"trackio.{name}"), "TRACKIO_DIR", folder)
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    return folder


def test_trackio_has_the_figures_the_settings_and_the_result(tmp_path, trackio_folder, capsys):
    interrupted(log_of("trackio", tmp_path), tmp_path, "trackio")
    assert capsys.readouterr().out == ""
    with sqlite3.connect(trackio_folder / "bit-transformer.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
        assert [(name, step) for name, step, _ in rows] == [("demo", step) for step in (1, 2, 3, 4, 6)]
        assert json.loads(rows[0][2]) == {"train_bpb": 1.0, "grad_norm": 0.5}
        ((config,),) = database.execute("SELECT config FROM configs").fetchall()
        assert json.loads(config)["model"] == {"d_model": 16, "experts": None}
        alerts = dict(database.execute("SELECT title, text FROM alerts").fetchall())
    database.close()
    assert json.loads(alerts["finished"])["bpb"] == 2.5 and "interrupted" in alerts["stopped"]


def packed_records(data: bytes) -> Iterator[bytes]:
    """Records of a file of Weights & Biases: after seven bytes, blocks of 32 KiB of chunks with a checksum, a length and a kind, as in LevelDB."""
    assert data.startswith(b":W&B")
    at, record, block = 7, b"", 1 << 15
    while at + 7 <= len(data):
        if block - at % block < 7:  # the rest of a block is padding
            at += block - at % block
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last chunk
            yield record
            record = b""


def test_weights_and_biases_writes_offline_files_and_no_key(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    interrupted(log_of("wandb", tmp_path), tmp_path, "wandb")
    parts = sorted((tmp_path / "logs" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(parts) == 2
    identity = (tmp_path / "logs" / "wandb" / "run-id").read_text()
    assert all(identity in part.name for part in parts)
    seen: list[dict[str, Any]] = []
    configs: list[str] = []
    records = importlib.import_module("wandb.proto.wandb_internal_pb2")
    for part in parts:
        for packed in packed_records(part.read_bytes()):
            record = records.Record.FromString(packed)
            if record.HasField("history"):
                pairs = (
                    (one.key or "/".join(one.nested_key), json.loads(one.value_json)) for one in record.history.item
                )
                seen.append(dict(pairs))
            configs += [one.value_json for one in record.run.config.update]
    assert [row["_step"] for row in seen] == [1, 2, 3, 4, 5, 4, 6]  # of what was logged twice the later part counts
    assert seen[0]["train_bpb"] == 1.0 and any(
        '"d_model": 16' in config or '"d_model":16' in config for config in configs
    )
    for file in (tmp_path / "logs").rglob("*"):
        assert not file.is_file() or b"0123456789" * 4 not in file.read_bytes(), file


# ---- in a training ----


def training(out: Path, text: Path, **fields: Any) -> dict[str, Any]:
    train = {"batch_size": 4, "steps": 12}
    return {"out": out, "model": TINY, "train": train, "data": {"corpora": (str(text),)}, "eval_bytes": 500, **fields}


def stopped_at(step: int) -> Job:
    """A job that is cancelled at an update."""

    def watch(message: object) -> None:
        if isinstance(message, Update) and message.step == step:
            threading.Thread(target=job.cancel).start()
            job._cancelled.wait(10)

    job = Job(watch)
    return job


def test_a_training_that_is_stopped_and_resumed_goes_on_with_its_logs(tmp_path, text_file):
    names = ("jsonl", "tensorboard") if importlib.util.find_spec("tensorboard") else ("jsonl",)
    workspace, out = Workspace(tmp_path / "runs.sqlite", "cpu"), tmp_path / "run"
    first = call("train", training(out, text_file, log_to=names), workspace, stopped_at(5))
    assert first.status == "stopped" and json.loads((out / "config.json").read_text())["log_to"] == list(names)
    log = out / "metrics.jsonl"
    before = steps(log)
    assert before[0] == 1 and lines(log)[-1]["end"]["status"] == "stopped"
    with log.open("ab") as file:  # what a process that was killed logged after its last checkpoint
        file.write(b'{"step": 11, "train_bpb": 1.0}\n')
    done = call("resume", {"out": out}, workspace)
    assert done.status == "finished" and done.steps == 12
    after = steps(log)
    assert after == sorted(set(after)) and after[: len(before)] == before and after[-1] == 12
    rows = lines(log)
    assert rows[-1]["end"]["status"] == "finished" and rows[-1]["end"]["bpb"] == done.comparison.bpb
    recorded = dict(workspace.store.series("run", "train_bpb"))
    assert all(row["train_bpb"] == recorded[row["step"]] for row in rows[:-1])
    assert rows[-2]["val_bpb"] == done.val_bpb and "cpu_percent" in rows[-2]
    if "tensorboard" in names:
        accumulators = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
        found = accumulators.EventAccumulator(str(out / "logs" / "tensorboard"))
        found.Reload()
        assert [event.step for event in found.Scalars("train_bpb")] == after
    removed = call("runs.remove", {"names": ("run",), "files": True}, workspace)
    assert "metrics.jsonl" in removed[0].files and not out.exists()


def test_a_missing_library_is_one_line_before_anything_is_written(btlm, text_file, tmp_path, monkeypatch):
    find = importlib.import_module

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] in ("tensorboard", "trackio", "wandb"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])
        return find(name, *rest)

    monkeypatch.setattr("bit_transformer.extras.importlib.import_module", without)
    for name in ("tensorboard", "trackio", "wandb"):
        done = btlm("train", text_file, "--preset", "1", "--steps", 1, "--log-to", name, "--out", "runs/a")
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and not (tmp_path / "runs").exists()
        assert f"log_to={name} needs the library {name!r}" in done.stderr
        assert f"pip install 'bit-transformer[{name}]'" in done.stderr
    with pytest.raises(MissingExtra):
        call("train", training(tmp_path / "b", text_file, log_to=("wandb",)), Workspace(tmp_path / "s.sqlite"))
    assert not (tmp_path / "b").exists() and not (tmp_path / "s.sqlite").exists()


def test_a_log_that_there_is_none_of_is_refused(btlm: Callable[..., Any], text_file):
    done = btlm("train", text_file, "--steps", 1, "--log-to", "paper")
    assert done.returncode == 2 and "'jsonl', 'tensorboard', 'trackio' or 'wandb' is needed" in done.stderr
