"""Operations that look closely: predictions bit by bit, byte values, how long a training takes, filling in as it goes on, runs compared."""

from __future__ import annotations

import base64
import json
import math
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from bit_transformer.bit_io import bytes_to_bits, pack_bits
from bit_transformer.checkpoint import save_checkpoint
from bit_transformer.config import TrainConfig
from bit_transformer.decoding.session import Session
from bit_transformer.errors import BitTransformerError, Cancelled
from bit_transformer.evaluation.metrics import bits_per_byte, default_protocol, surprise
from bit_transformer.model import BitTransformerLM
from bit_transformer.runs.store import RunStore
from bit_transformer.service import duration
from bit_transformer.service.jobs import Job
from bit_transformer.service.operations import OPERATIONS, call
from bit_transformer.service.requests import InfillRequest, RepairBytesRequest
from bit_transformer.service.workspace import Workspace
from bit_transformer.training import train_loop
from tests.conftest import TEXT, prose, random_model

EXPERTS = {"buckets": 1024, "history": 4096}
TINY = {"d_model": 16, "nhead": 2, "num_layers": 1, "max_seq_len": 256}


def saved(model, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    save_checkpoint(folder / "model.safetensors", model)
    return str(folder)


def refused(name: str, fields: dict[str, object], field: str, says: str, workspace: Workspace | None = None) -> None:
    with pytest.raises(BitTransformerError) as error:
        call(name, fields, workspace or Workspace())
    assert error.value.field == field and says in str(error.value) and len(str(error.value).splitlines()) == 1
    assert ". Try " in str(error.value)


# ---- predictions ----


@pytest.mark.parametrize("experts", [None, EXPERTS])
@pytest.mark.parametrize("patch_bits, parity", [(1, False), (3, False), (8, False), (12, False), (4, True), (9, True)])
def test_predictions_are_those_of_one_step_at_a_time(tmp_path, patch_bits, parity, experts) -> None:
    unit = math.lcm(patch_bits, 9 if parity else 8)
    model = random_model(patch_bits=patch_bits, parity=parity, max_seq_len=3 * unit, experts=experts)
    run, data = (
        saved(model, tmp_path / "run"),
        bytes(np.random.default_rng(1).integers(0, 256, 2 * unit // 9, dtype=np.uint8)),
    )
    found = call("predictions", {"run": run, "data": data, "learning": "static"}, Workspace(device="cpu"))
    bits = bytes_to_bits(data, parity=parity)
    with torch.inference_mode():  # all fits into one window, so every probability is that of a stream read bit by bit
        session = Session(model, engine="torch")
        first = torch.sigmoid(torch.as_tensor(session.node_logits()[0, 1])).item()
        after = torch.softmax(session.step(bits[None]).double(), -1)[0, :-1, 1].tolist()
    ones = np.array(found.ones)
    assert ones.shape == (len(data), 9 if parity else 8) and found.bits == bits.reshape(ones.shape).tolist()
    np.testing.assert_allclose(ones.ravel(), [first, *after], rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize(
    "patch_bits, parity, experts, learning",
    [
        (12, False, None, None),
        *((8, False, EXPERTS, learning) for learning in (None, "static", "online+mixer")),
        *((9, True, EXPERTS, learning) for learning in (None, "static", "online+mixer")),
    ],
)
def test_costs_of_bytes_are_sums_of_bits_and_those_of_the_score(
    tmp_path, patch_bits, parity, experts, learning
) -> None:
    model = random_model(patch_bits=patch_bits, parity=parity, max_seq_len=288, experts=experts)
    with torch.no_grad():
        for parameter in model.mixer.parameters() if experts else ():
            parameter.mul_(0.02)  # else many probabilities are 0 or 1 to the last digit
    run, workspace = saved(model, tmp_path / "run"), Workspace(device="cpu")
    found = call("predictions", {"run": run, "data": TEXT[:1000], "learning": learning}, workspace)
    protocol = default_protocol(model, 0.5, learning)
    assert found.protocol == str(protocol) and found.bytes == 1000
    np.testing.assert_allclose(found.costs, surprise(model, TEXT[:1000], protocol), rtol=1e-9)
    score = bits_per_byte(model, TEXT[:1000], protocol)
    assert math.isclose(found.total, score.bits, rel_tol=1e-9) and math.isclose(found.bpb, score.bpb, rel_tol=1e-9)
    slow = [
        [-math.log2(one if bit else 1 - one) for bit, one in zip(bits, ones, strict=True)]
        for bits, ones in zip(found.bits, found.ones, strict=True)
    ]
    np.testing.assert_allclose([sum(row) for row in slow], found.costs, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(np.mean(slow, axis=0), found.by_position, rtol=1e-6, atol=1e-9)
    assert math.isclose(sum(found.by_position), found.bpb, rel_tol=1e-9)
    (tmp_path / "data").write_bytes(TEXT[:1000])
    asked = {"run": run, "name": str(tmp_path / "data"), "learning": learning}
    assert math.isclose(call("score", asked, workspace).bpb, found.bpb, rel_tol=1e-9)
    assert (
        OPERATIONS["predictions"].result().validate_json(OPERATIONS["predictions"].result().dump_json(found)) == found
    )


def test_predictions_refuse_what_cannot_be_predicted(tmp_path) -> None:
    run = saved(random_model(max_seq_len=64), tmp_path / "run")
    refused("predictions", {"run": run, "data": b""}, "data", "got 0 bytes; it must be 1 to 65,536")
    refused("predictions", {"run": run, "data": bytes(65_537)}, "data", "got 65,537 bytes")
    refused("predictions", {"run": run, "data": b"a", "overlap": 1}, "overlap", "got overlap=1.0")
    both = saved(random_model(causal=False, max_seq_len=64), tmp_path / "both")
    refused("predictions", {"run": both, "data": b"a"}, "run", "got a diffusion model")
    broken = random_model(max_seq_len=64)
    with torch.no_grad():
        broken.head.weight.fill_(math.nan)
    refused("predictions", {"run": saved(broken, tmp_path / "nan"), "data": b"a"}, "run", "not finite")


# ---- histogram ----


def test_a_histogram_counts_what_a_slow_loop_counts(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("bit_transformer.service.histogram.PIECE", 1000)
    (tmp_path / "d").mkdir()
    texts = [prose(1, 900), bytes(range(256)) * 3]
    for name, text in zip("ab", texts, strict=True):
        (tmp_path / "d" / name).write_bytes(text)
    found = call("histogram", {"name": str(tmp_path / "d")}, Workspace())
    whole = b"".join(texts)
    counts = Counter(whole)
    assert (found.files, found.bytes) == (2, len(whole)) and found.counts == [counts[value] for value in range(256)]
    slow = -sum(n / len(whole) * math.log2(n / len(whole)) for n in counts.values())
    assert math.isclose(found.entropy, slow, rel_tol=1e-12)
    ones = [sum(byte >> (7 - place) & 1 for byte in whole) / len(whole) for place in range(8)]
    np.testing.assert_allclose(found.ones, ones, rtol=1e-12)
    (tmp_path / "one").write_bytes(b"a" * 5)
    alone = call("histogram", {"name": str(tmp_path / "one")}, Workspace())
    assert alone.entropy == 0 and alone.ones == [0, 1, 1, 0, 0, 0, 0, 1]
    job = Job()
    job.cancel()
    with pytest.raises(Cancelled):
        call("histogram", {"name": str(tmp_path / "d")}, Workspace(), job)
    with pytest.raises(BitTransformerError, match="no such file"):
        call("histogram", {"name": str(tmp_path / "none")}, Workspace())


def test_a_histogram_of_a_large_file_takes_no_memory(tmp_path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 28)  # 256 MiB of zeros
    code = (
        "import resource, sys\n"
        "from bit_transformer.service.operations import call\n"
        "from bit_transformer.service.workspace import Workspace\n"
        "call('histogram', {'name': sys.argv[1]}, Workspace())\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "found = call('histogram', {'name': sys.argv[2]}, Workspace())\n"
        "assert found.counts[0] == 1 << 28 and 'torch' not in sys.modules\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    (tmp_path / "small").write_bytes(bytes(1 << 21))
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "small", tmp_path / "large"], capture_output=True, text=True
    )
    assert done.returncode == 0 and int(done.stdout) < 16 << 10, done.stderr + done.stdout  # KiB


# ---- time ----


def estimate(workspace: Workspace, **train: object):
    fields = {"batch_size": 4, "amp": False, "eval_bytes": 512, **train}
    more = {key: fields.pop(key) for key in ("data_bytes", "model") if key in fields}
    return call("estimate_time", {"model": TINY, "train": fields, "seconds": 0.2, **more}, workspace)


def test_a_budget_is_what_its_updates_take(monkeypatch) -> None:
    """With a clock that the updates move, the figures are known exactly."""
    now = [0.0]
    monkeypatch.setattr(duration.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(duration, "threads_that_pay", lambda trainer, job: duration._threads(1))
    update = duration.Trainer.update

    def slow(trainer):
        now[0] += 0.5
        return update(trainer)

    monkeypatch.setattr(duration.Trainer, "update", slow)
    monkeypatch.setattr(duration, "_validation_seconds", lambda *_: 3.0)
    workspace = Workspace(device="cpu")
    plain = {"model": {**TINY, "experts": None}}
    steps = estimate(workspace, steps=1000, **plain)
    assert steps.seconds_per_update == 0.5 and steps.updates == 1000 and steps.seconds == 503
    assert steps.bytes_per_s == 4 * 32 / 0.5 and steps.measured_updates == 2 and steps.first_pass_seconds == 0
    assert estimate(workspace, bytes=1280, **plain).updates == 10
    epochs = estimate(workspace, epochs=2, data_bytes=3200, **plain)  # 99 windows of 32 bytes an epoch
    assert epochs.updates == math.ceil(2 * 99 / 4)
    timed = estimate(workspace, seconds=23, **plain)
    assert timed.seconds == 23 and timed.updates == 40
    each = BitTransformerLM(**{**TINY, "experts": None}).flops_per_byte()
    assert estimate(workspace, flops=each * 128 * 6.5, **plain).updates == 7


def test_measuring_leaves_nothing_behind(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BTLM_CACHE_DIR", str(tmp_path / "cache"))
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    workspace = Workspace(tmp_path / "runs.sqlite", device="cpu")
    found = estimate(workspace, steps=100, model={**TINY, "experts": EXPERTS}, data_bytes=500_000)
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled() and not list(tmp_path.iterdir())
    assert found.first_pass_seconds == pytest.approx(500_000 / found.first_pass_bytes_per_s)
    whole = found.updates * found.seconds_per_update + found.first_pass_seconds + found.validation_seconds
    assert found.seconds == pytest.approx(whole) and found.validation_seconds > 0
    unknown = estimate(workspace, steps=100, model={**TINY, "experts": EXPERTS})
    assert unknown.first_pass_seconds is None and "data_bytes is not given" in unknown.how
    streamed = estimate(
        workspace, steps=9, model={**TINY, "experts": EXPERTS}, data_bytes=10**9, feature_cache=1000
    )  # read as the training goes on
    assert streamed.first_pass_bytes_per_s is None and streamed.first_pass_seconds == 0
    for more in ({"causal": False}, {"patch_bits": 9, "parity": True, "max_seq_len": 288}):
        assert estimate(workspace, steps=5, model={**TINY, "experts": None, **more}).seconds > 0
    assert estimate(workspace, steps=5, qat=8, model={**TINY, "d_model": 32, "experts": None}).seconds > 0
    assert "grows" in estimate(workspace, steps=5, progressive=True, model={**TINY, "experts": None}).how
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_estimate_is_near_what_a_training_takes() -> None:
    shape = {"d_model": 128, "nhead": 2, "num_layers": 3, "max_seq_len": 2048, "experts": None}
    found = call("estimate_time", {"model": shape, "train": {"steps": 30, "batch_size": 8}, "seconds": 2}, Workspace())
    began = time.perf_counter()
    model = random_model(**shape)
    train_loop(model, prose(1, 100_000), TrainConfig(steps=30, batch_size=8), validation=prose(2, 2400))
    took = time.perf_counter() - began
    assert 0.5 < found.seconds / took < 2, (found, took)


def test_what_cannot_be_timed_is_refused() -> None:
    asked = {"model": TINY, "train": {"steps": 1}}
    refused("estimate_time", {**asked, "seconds": 0}, "seconds", "got seconds=0")
    refused("estimate_time", {**asked, "seconds": 1e6}, "seconds", "must be in (0, 600]")
    refused("estimate_time", {**asked, "data_bytes": 0}, "data_bytes", "got data_bytes=0")
    refused("estimate_time", {"model": TINY, "train": {"epochs": 1}}, "data_bytes", "no data_bytes")


# ---- filling in and repairing, call by call ----


FILLERS = [
    {"noise": "hidden"},
    {"noise": "hidden", "patch_bits": 4, "parity": True},
    {"noise": "hidden", "patch_bits": 9, "parity": True},
    {"noise": "hidden", "patch_bits": 1},
    {"noise": "flips"},
    {"noise": "flips", "patch_bits": 8, "parity": True},
]


ANCESTRAL, CONFIDENCE = {"steps": 3, "order": "ancestral"}, {"steps": 3, "order": "confidence"}


@pytest.mark.parametrize(
    "fields, how",
    [(f, how) for f in FILLERS for how in ({}, ANCESTRAL, CONFIDENCE) if how != CONFIDENCE or f["noise"] == "hidden"],
)
def test_the_last_frame_of_each_sample_is_what_infill_gives(tmp_path, fields, how) -> None:
    model = random_model(causal=False, max_seq_len=144, **fields)
    run, workspace = saved(model, tmp_path / "run"), Workspace(device="cpu")
    data, holes = TEXT[:61], ((2, 5), (40, 44), (58, 61))  # several windows, the last unit partial
    request = InfillRequest(run=run, data=data, holes=holes, samples=2, seed=3, **how)
    whole = call("infill", request.model_dump(), workspace)
    frames = list(OPERATIONS["infill"].stream(request, workspace))
    width = model.config.byte_bits
    for sample in range(2):
        of = [frame for frame in frames if frame.sample == sample]
        assert of[-1].data == whole.data[sample] and of[-1].masked == []
        hidden = {bit for begin, end in holes for bit in range(begin * width, end * width)}
        seen: set[int] = set()
        before = None
        for frame in of:
            masked = {bit for begin, end in frame.masked for bit in range(begin, end)}
            changed = {bit for begin, end in frame.changed for bit in range(begin, end)}
            assert masked <= hidden and changed <= hidden - masked and frame.byte_bits == width
            seen |= changed
            assert seen == hidden - masked
            if before is not None:  # whatever differs is said to have changed
                old, new = (bytes_to_bits(f.data) for f in (before, frame))
                differs = {i // 8 * width + i % 8 for i in np.flatnonzero(old != new).tolist()}
                assert differs <= changed
            before = frame
    assert [frame.calls for frame in frames] == list(range(1, len(frames) + 1))
    assert {frame.total for frame in frames} == {len(frames)}
    result = OPERATIONS["infill"]
    assert result.request.model_validate_json(request.model_dump_json()) == request


def test_a_frame_is_a_call_of_the_network(tmp_path) -> None:
    model = random_model(causal=False, max_seq_len=144, patch_bits=8)
    run, workspace = saved(model, tmp_path / "run"), Workspace(device="cpu")
    calls = []
    workspace.model(run).head.register_forward_hook(lambda *_: calls.append(1))
    frames = OPERATIONS["infill"].stream(InfillRequest(run=run, data=bytes(9), holes=((0, 4),), seed=1), workspace)
    assert not calls
    for count, frame in enumerate(frames, 1):
        assert len(calls) == count == frame.calls and sum(b - a for a, b in frame.masked) == 8 * (4 - count)
    for wrong in ({"steps": 0}, {"order": "left"}, {"temperature": -1}, {"seed": -1}, {"samples": 0}):
        with pytest.raises(BitTransformerError) as error:  # before the first frame
            asked = {"run": run, "data": bytes(9), "holes": ((0, 4),), **wrong}
            OPERATIONS["infill"].stream(InfillRequest(**asked), workspace)
        assert error.value.field == next(iter(wrong))


@pytest.mark.parametrize(
    "fields", [{**f, "causal": False} for f in FILLERS] + [{"patch_bits": 8}, {"patch_bits": 9, "parity": True}]
)
@pytest.mark.parametrize("rate, span", [(0.02, None), (None, (11, 50))])
def test_bytes_are_repaired_as_a_file_is_and_frames_end_there(tmp_path, fields, rate, span) -> None:
    model = random_model(max_seq_len=144, **fields)
    run, workspace = saved(model, tmp_path / "run"), Workspace(device="cpu")
    bits = bytes_to_bits(TEXT[:61], parity=model.config.parity).copy()
    bits[[10, 90, 200, 333]] ^= 1
    data = pack_bits(bits)[0]
    request = RepairBytesRequest(run=run, data=data, rate=rate, span=span)
    found = call("repair_bytes", request.model_dump(), workspace)
    (tmp_path / "in").write_bytes(data)
    asked = {"run": run, "path": tmp_path / "in", "out": tmp_path / "out", "rate": rate, "span": span}
    report = call("repair", asked, workspace)
    assert found.data == (tmp_path / "out").read_bytes()
    for name in ("bytes", "flipped_bits", "rate", "doubtful", "changes", "repaired", "parity"):
        assert getattr(found, name) == getattr(report, name), name
    frames = list(OPERATIONS["repair_bytes"].stream(request, workspace))
    assert frames[-1].data == found.data and sum(b - a for a, b in frames[-1].changed) == found.flipped_bits
    if not model.config.causal:
        assert [frame.calls for frame in frames] == list(range(1, frames[-1].total + 1))
    result = OPERATIONS["repair_bytes"].result()
    assert result.validate_json(result.dump_json(found)) == found


def test_bytes_that_cannot_be_repaired_are_refused(tmp_path) -> None:
    run = saved(random_model(max_seq_len=144, causal=False), tmp_path / "run")
    refused("repair_bytes", {"run": run, "data": b""}, "data", "got 0 bytes")
    refused("repair_bytes", {"run": run, "data": bytes(1 << 17)}, "data", "got 131,072 bytes")
    refused("repair_bytes", {"run": run, "data": bytes(9), "span": (3, 3)}, "span", "got the range 3:3")
    odd = saved(random_model(max_seq_len=144, parity=True, patch_bits=9), tmp_path / "odd")
    refused("repair_bytes", {"run": odd, "data": b"\xff" * 90}, "data", "odd parity")
    twelve = saved(random_model(max_seq_len=144, patch_bits=12), tmp_path / "twelve")
    refused("repair_bytes", {"run": twelve, "data": b"ab"}, "data", "at least 3")


# ---- what a training records ----


def test_a_training_records_samples_and_costs_by_position(tmp_path, text_file) -> None:
    workspace = Workspace(tmp_path / "s.sqlite", device="cpu")
    train = {"steps": 8, "batch_size": 4, "sample_bytes": 11, "eval_every": 0.5, "telemetry": 1}
    asked = {"out": tmp_path / "run", "model": {**TINY, "experts": None}, "train": train}
    call("train", {**asked, "data": {"corpora": (str(text_file),)}}, workspace)
    samples = [event for event in workspace.store.events(run="run") if event.kind == "sample"]
    assert samples and samples[0].step == 4 and len(base64.b64decode(samples[0].detail["data"])) == 11
    series = {key: workspace.store.series("run", key) for key in workspace.store.metric_keys("run")}
    assert {f"bit_{place}" for place in range(8)} <= set(series) and "bit_8" not in series
    assert series["bit_0"][0] == (1, pytest.approx(1.0, abs=0.1))  # hardly anything is learned yet


# ---- runs compared ----


def test_runs_are_compared_by_what_differs(tmp_path, btlm) -> None:
    store = RunStore(tmp_path / "s.sqlite")
    config = {"model": TINY, "train": {"steps": 9}, "data": {"corpora": ["a"]}, "eval_bytes": 5, "provenance": {"x": 1}}
    store.begin("one", tmp_path / "one", config)
    other = {
        **config,
        "model": {**TINY, "experts": {"buckets": 1024}},
        "train": {
            "steps": 9,
            "optim": {"lr": 0.1},
            "sample_bytes": 0,
        },  # the default, which the first run does not have
        "provenance": {"x": 2},
    }
    store.begin("two", tmp_path / "two", other)
    store.add_metrics("one", [(1, "train_bpb", 8.0), (2, "train_bpb", 3.0), (3, "train_bpb", 4.0), (3, "K", 0.5)])
    store.add_metrics("two", [(7, "val_bpb", 2.5)])
    store.end("two", "finished", "", {"bpb": 2.25})
    found = call("runs.compare", {"names": ["one", "two"]}, Workspace(store.path))
    differ = {row.key: row.values for row in found.settings}
    assert differ.pop("train.optim.lr") == [0.003, 0.1]
    assert differ.pop("model.experts.buckets")[1] == 1024
    assert all(key.startswith("model.experts") for key in differ), differ
    first, second = found.runs
    train = first.figures["train_bpb"]
    assert (train.last, train.step, train.best, train.best_step) == (4.0, 3, 3.0, 2)
    assert first.figures["K"].last == 0.5 and first.figures["K"].best is None
    assert second.result == {"bpb": 2.25} and second.status == "finished" and second.figures["val_bpb"].best == 2.5
    shown = btlm("runs", "compare", "one", "two", "--store", store.path).stdout
    assert "train.optim.lr" in shown and "0.003" in shown and "2.250" in shown and "provenance" not in shown
    as_json = json.loads(btlm("runs", "compare", "one", "two", "--store", store.path, "--json").stdout)
    assert as_json == OPERATIONS["runs.compare"].result().dump_python(found, mode="json")
    refused(
        "runs.compare", {"names": ["one", "one"]}, "names", "got 1 run; it must be two or more", Workspace(store.path)
    )
    refused("runs.compare", {"names": ["one", "three"]}, "run", "got run 'three'", Workspace(store.path))


def test_comparing_runs_needs_no_torch(tmp_path) -> None:
    code = (
        "import sys, bit_transformer.service.runs, bit_transformer.service.histogram; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
