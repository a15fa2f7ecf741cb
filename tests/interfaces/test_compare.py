"""`btlm compare`, as a user meets it: real trainings in processes of their own, killed and gone on with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
import yaml

from bit_transformer.config import ComparisonConfig
from bit_transformer.service.comparing.cells import cells_of, run_cell
from tests.conftest import TEXT

PLAN = """
title: Two of a kind
models:
  - {name: patches-8, kind: bits, model: {patch_bits: 8}}
  - byte-softmax
  - counts-1
seeds: 3
corpora: [text.txt]
shape: {d_model: 16, num_layers: 1, window_bytes: 32}
train: {bytes: 3000, batch_size: 4, eval_bytes: 256, eval_every: 0.5}
eval_bytes: 20000
threads: 1
at_once: 2
"""
COMMAND = [sys.executable, "-m", "bit_transformer.cli", "compare", "plan.yaml", "--out", "made", "--json"]


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "text.txt").write_bytes(TEXT * 5)
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path


def begun(plan, cells: int = 2) -> subprocess.Popen[bytes]:
    """A comparison of which some cells are done."""
    process = subprocess.Popen(COMMAND, cwd=plan, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + 120
    while len(list((plan / "made" / "cells").glob("*.json"))) < cells and time.monotonic() < until:
        time.sleep(0.05)
    return process


def test_a_killed_comparison_goes_on_with_what_is_not_done(btlm, plan):
    process = begun(plan)
    busy = btlm(*COMMAND[3:])
    assert busy.returncode == 2 and "RunBusy" in busy.stdout, busy.stderr
    process.send_signal(signal.SIGKILL)
    process.communicate()
    cells = plan / "made" / "cells"
    done = {path.name: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    assert 2 <= len(done) < 7

    again = btlm(*COMMAND[3:])
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert found["done"] == found["of"] == 7 and found["failed"] == {} and not found["stopped"]
    assert {name: (cells / name).stat().st_mtime_ns for name in done} == done
    rows = {row["name"]: row for row in found["findings"]["rows"]}
    assert rows["patches-8"]["bytes"] == rows["byte-softmax"]["bytes"] >= 3000
    assert set(rows["patches-8"]["bpb"]) == {"0", "1", "2"} and len(rows["byte-softmax"]["bit_costs"]) == 8
    assert rows["counts-1"]["mean"] < 2 and all(0 < row["mean"] < 8.5 for row in rows.values())
    assert any("With 3 pairs" in line for line in found["findings"]["limits"])
    assert "<svg" in (plan / "made" / "report.html").read_text()

    runs = json.loads(btlm("runs", "list", "--store", "made/runs.sqlite", "--json").stdout)
    assert len(runs) == 6 and {run["status"] for run in runs} == {"finished"}
    shown = json.loads(btlm("runs", "show", runs[0]["id"], "--store", "made/runs.sqlite", "--json").stdout)
    assert shown["config"]["provenance"]["torch"] and shown["config"]["train"]["seed"] in (0, 1, 2)
    assert not list((plan / "made").rglob("*.safetensors"))

    (plan / "text.txt").write_bytes(TEXT * 6)  # other data is no part of the same comparison
    other = btlm(*COMMAND[3:], "--seeds", 1)
    assert other.returncode == 0 and other.stderr.count("is of other data than there is now") == 3, other.stderr


def test_ctrl_c_leaves_nothing_half_done(plan):
    (plan / "plan.yaml").write_text(PLAN.replace("bytes: 3000", "seconds: 100").replace("seeds: 3", "seeds: 1"))
    process = begun(plan, 1)
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    found = json.loads(out)
    assert process.returncode == 130 and found["stopped"] and found["done"] == 1
    assert [path.name.split("-")[0] for path in (plan / "made" / "cells").glob("*.json")] == ["counts"]


def test_a_cell_that_fails_is_reported_and_the_others_go_on(btlm, plan):
    text = PLAN.replace("{patch_bits: 8}", "{patch_bits: 8, max_seq_len: 8000000}").replace("seeds: 3", "seeds: 1")
    (plan / "plan.yaml").write_text(text.replace("  - byte-softmax\n", ""))
    done = btlm("compare", "plan.yaml", "--out", "made", "--json")
    assert done.returncode == 2, done.stdout
    found = json.loads(done.stdout)
    assert found["done"] == 1 and ["window" in why for why in found["failed"].values()] == [True]
    assert "failed" in (plan / "made" / "report.md").read_text()


@pytest.mark.parametrize("kind", ["gpt2-bytes", "gpt2-bpe", "compressor", "adaptive"])
def test_a_cell_of_each_other_kind(plan, kind):
    model = {"name": "x", "kind": kind, **({"vocabulary": 300} if kind == "gpt2-bpe" else {})}
    if kind == "adaptive":
        model = {"name": "x", "kind": "bits", "model": {"experts": True}, "learning": ["static", "online"]}
    elif kind.startswith("gpt2"):
        pytest.importorskip("transformers")
    fields = yaml.safe_load(PLAN) | {"models": [model], "corpora": [str(plan / "text.txt")], "seeds": 1}
    chosen = ComparisonConfig.of(fields)
    (cell,) = cells_of(chosen)
    found = run_cell(chosen, cell, plan / "made")
    assert all(0 <= score.bpb < 8.5 for score in found.scores.values())
    assert {name: score.adaptive for name, score in found.scores.items() if kind != "compressor"} == {
        "adaptive": {"x": False, "x, online": True},
        "compressor": {},
    }.get(kind, {"x": False})
    if kind == "compressor":
        assert "xz -9e, primed" in found.scores and all(score.adaptive for score in found.scores.values())
        assert found.scores["xz -9e, primed"].bpb < 0.5  # the text repeats itself
    else:
        assert found.curve and found.train_bytes >= 3000 and found.steps > 1 and found.parameters > 1000
        sizes = {len(score.block_bits) for score in found.scores.values()}
        assert sizes == {-(-next(iter(found.scores.values())).bytes // 1024)}


@pytest.mark.parametrize(
    ("change", "args", "said"),
    [
        (("patches-8, kind", "patches-8, kid"), [], "unknown key"),
        (("byte-softmax", "byte-softmx"), [], "which is not known"),
        (("{patch_bits: 8}", "{patch_bits: 8}, train: {bytes: 4000}"), [], "all share one budget"),
        (("{patch_bits: 8}", "{patch_bits: 70}"), [], "patch_bits"),
        (("{patch_bits: 8}", "{patch_bits: 8}, learning: [online]"), [], "no experts"),
        (("text.txt", "nothing.txt"), [], "got corpus 'nothing.txt'"),
        (("", ""), ["--seeds", 0], "got seeds=0"),
        (("", ""), ["--seconds", 5, "--bytes", 5], "got bytes and seconds in train"),
        (("", ""), ["--quick"], "got plan.yaml and --quick"),
    ],
)
def test_bad_plans_are_one_line_and_nothing_is_trained(btlm, plan, change, args, said):
    (plan / "plan.yaml").write_text(PLAN.replace(*change))
    done = btlm("compare", "plan.yaml", "--out", "made", *args)
    assert done.returncode == 2 and done.stderr.startswith("btlm: ") and len(done.stderr.splitlines()) == 1, done.stderr
    assert said in done.stderr
    assert not (plan / "made").exists()


def test_without_a_plan(btlm):
    done = btlm("compare")
    assert done.returncode == 2 and "Try --quick" in done.stderr


def test_evaluate_shows_compressors_that_have_read_what_the_model_has(btlm, plan):
    done = btlm(
        "train", "text.txt", "--steps", 5, "--out", "runs/one", "--set", "model.d_model=16", "--set", "model.num_layers=1",
        "--set", "model.nhead=2", "--set", "model.max_seq_len=256", "--no-experts",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (plan / "other.txt").write_bytes(TEXT[:3000])
    found = json.loads(btlm("evaluate", "runs/one", "other.txt", "--json").stdout)
    by = {(coding["name"], coding["primed_with"] > 0): coding for coding in found["codings"]}
    assert {("zlib -9", False), ("zlib -9", True), ("xz -9e", False), ("xz -9e", True)} <= set(by)
    assert by["xz -9e", True]["coded"] < by["xz -9e", False]["coded"] and by["xz -9e", False]["bytes"] == 3000
    assert by["xz -9e", False]["bpb"] == pytest.approx(8 * by["xz -9e", False]["coded"] / 3000)
    shown = btlm("evaluate", "runs/one", "other.txt").stdout
    assert "has read" in shown and "its training data" in shown and "bytes of it" in shown
    few = json.loads(btlm("evaluate", "runs/one", "other.txt", "--json", "--primer-bytes", 100).stdout)
    assert {coding["primed_with"] for coding in few["codings"]} == {0, 100}
    assert json.loads(btlm("evaluate", "runs/one", "other.txt", "--json", "--primer-bytes", 0).stdout)["codings"] == []
    (plan / "text.txt").write_bytes(b"changed")
    gone = btlm("evaluate", "runs/one", "other.txt", "--json")
    assert "training bytes cannot be read" in gone.stderr
    assert {coding["primed_with"] for coding in json.loads(gone.stdout)["codings"]} == {0}


def test_where_the_disk_is_full_nothing_is_lost(plan):
    """A limit on the size of files stands for the disk: the report does not fit, the cell's result does."""
    (plan / "plan.yaml").write_text("models: [counts-1, counts-2]\ncorpora: [text.txt]\neval_bytes: 20000\n")
    limit = "import resource, signal, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY)); "
    start = "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from bit_transformer.cli.main import main; sys.argv[0] = 'btlm'; main()"
    full = subprocess.run(
        [sys.executable, "-c", limit + start, *COMMAND[3:]], cwd=plan, capture_output=True, text=True, timeout=120
    )
    assert full.returncode == 2, full.stderr
    assert "report" in full.stderr.splitlines()[-1] and "File too large" in full.stderr
    done = {path.name: path.stat().st_mtime_ns for path in (plan / "made" / "cells").glob("*.json")}
    assert len(done) == 2
    again = subprocess.run(COMMAND, cwd=plan, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0 and json.loads(again.stdout)["done"] == 2
    assert {path.name: path.stat().st_mtime_ns for path in (plan / "made" / "cells").glob("*.json")} == done
