"""The command as a user meets it: processes, exit codes, one-line errors, and files that survive."""

from __future__ import annotations

import csv
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bit_transformer.checkpoint import load_checkpoint, read_tensors
from tests.conftest import ROOT, TEXT, at_most, prose

SMALL = ["--set", "model.d_model=16", "--set", "model.nhead=2", "--set", "model.num_layers=1", "--set", "model.max_seq_len=256",
         "--set", "model.ngram_rows=256", "--set", "model.experts.buckets=1024", "--set", "model.experts.history=4096",
         "--set", "train.amp=false", "--batch-size", 4]  # fmt: skip


@pytest.fixture
def trained(btlm, text_file, tmp_path) -> Path:
    done = btlm("train", text_file, *SMALL, "--steps", 20, "--out", "runs/one")
    assert done.returncode == 0, done.stderr
    return tmp_path / "runs" / "one"


def csv_rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def config_of(run: Path) -> dict[str, dict[str, object]]:
    return json.loads((run / "config.json").read_text())


def start(*args: object, cwd: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "bit_transformer.cli", *map(str, args)],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if path.exists():
            return
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not come")


def test_train_leaves_a_run_and_the_other_verbs_use_it(btlm, trained, text_file):
    assert {p.name for p in trained.iterdir()} == {
        "config.json",
        "model.safetensors",
        "training.safetensors",
        "metrics.csv",
        "metrics.jsonl",
        "loss.png",
    }
    config = json.loads((trained / "config.json").read_text())
    assert config["model"]["d_model"] == 16 and config["data"]["held_out_bytes"] > 0 and config["provenance"]["torch"]
    rows = csv_rows(trained / "metrics.csv")
    assert len(rows) == 20 and float(rows[-1]["train_bpb"]) < float(rows[0]["train_bpb"])
    assert (trained / "loss.png").read_bytes().startswith(b"\x89PNG")

    evaluated = json.loads(btlm("evaluate", trained, text_file, "--json").stdout)
    assert evaluated["total"]["bytes"] == len(TEXT)
    assert 0 < evaluated["total"]["bpb"] < 8 and set(evaluated["total"]["compressors"]) == {
        "zlib -9",
        "bz2 -9",
        "xz -9e",
    }
    assert "every byte scored once" in evaluated["total"]["protocol"]
    assert "bits per byte" in btlm("evaluate", trained, text_file, text_file).stdout

    scored = json.loads(btlm("score", trained, text_file, "--window", 1000, "--json").stdout)
    assert sum(w["bytes"] for w in scored["windows"]) == len(TEXT)
    assert scored["windows"][1]["offset"] == 1000
    assert abs(scored["bpb"] - evaluated["total"]["bpb"]) < 1e-3
    shown = btlm("score", trained, text_file, "--plot", "score.png")
    assert "most surprising" in shown.stdout and (trained.parents[1] / "score.png").exists()

    one = btlm("generate", trained, "--prompt", "It is ", "--bytes", 30, "--seed", 1)
    assert one.stdout.startswith("It is ")
    both = json.loads(
        btlm("generate", trained, "--prompt", "It is ", "--bytes", 30, "--seed", 1, "--samples", 2, "--json").stdout
    )
    assert all(len(bytes.fromhex(h)) == 30 for h in both["hex"])

    listed = json.loads(btlm("runs", "list", "--json").stdout)
    assert [(r["id"], r["status"], r["step"]) for r in listed] == [("one", "finished", 20)]
    assert "one" in btlm("runs").stdout
    assert json.loads(btlm("runs", "show", "one", "--json").stdout)["result"]["bpb"] > 0
    assert "d_model = 16" in btlm("runs", "show", "one").stdout
    assert btlm("generate", "one", "--bytes", 5, "--seed", 1).returncode == 0  # by name, through the store


def test_a_surprising_stretch_stands_out(btlm, trained, tmp_path):
    noise = os.urandom(1000)
    (tmp_path / "mixed").write_bytes(TEXT[:8000] + noise + TEXT[:8000])
    windows = json.loads(btlm("score", trained, "mixed", "--window", 500, "--json").stdout)["windows"]
    assert {w["offset"] for w in sorted(windows, key=lambda w: -w["bpb"])[:2]} == {8000, 8500}


def test_a_command_line_that_cannot_be_read_is_json_too(btlm):
    done = btlm("evaluate", "--json")
    said = "missing argument 'RUN'. Try `btlm evaluate --help`"
    assert (done.returncode, json.loads(done.stdout)) == (2, {"error": "UsageError", "message": said})
    assert done.stderr == f"btlm: {said}\n"


def test_results_as_json_are_one_line_and_progress_goes_elsewhere(btlm, text_file):
    done = btlm("train", text_file, *SMALL, "--steps", 5, "--out", "r", "--json")
    result = json.loads(done.stdout)
    assert result["status"] == "finished" and result["steps"] == 5 and result["comparison"]["bpb"] > 0
    assert "bpb" in done.stderr


def test_standard_input_is_a_corpus_and_a_file_to_score(btlm, trained):
    assert btlm("train", "-", *SMALL, "--steps", 3, "--out", "piped", stdin=TEXT).returncode == 0
    scored = btlm("score", trained, "-", "--json", stdin=TEXT[:700])
    assert sum(w["bytes"] for w in json.loads(scored.stdout)["windows"]) == 700


BAD = [
    (["train", "nowhere.txt"], "corpus 'nowhere.txt'"),
    (["train", "stdlb"], "Did you mean 'stdlib'?"),
    (["generate", "RUN", "--temperature", "-1"], "got temperature=-1.0; float >= 0 is needed. Try --temperature 0"),
    (["score", "stdlib", "RUN"], "they look swapped. Try `btlm score"),
    (["train", "EMPTY"], "empty file"),
    (["train", "TINY"], "at least one window"),
    (["train"], "Try `btlm train stdlib`"),
    (["train", "TEXT", "--set", "model.d_modle=3"], "Did you mean 'd_model'"),
    (["train", "TEXT", "--seed", "4294967296"], "Try --seed 0"),
    (
        ["train", "TEXT", "--patch-bits", "12", "--set", "model.experts.rich=true"],
        "Try --patch-bits 8, or --set model.experts.rich=false",
    ),
    (["train", "TEXT", "--diffusion", "--set", "model.experts=true"], "Try --no-experts"),
    (["train", "TEXT", "--set", "model.noise=flips"], "Try --diffusion"),
    (["train", "TEXT", "--nproc", "0"], "Try --nproc 1"),
    (["distill", "RUN", "--out", "d", "--steps", "1", "--set", "model.patch_bits=9"], "Try --set model.max_seq_len="),
    (["grow", "RUN", "--out", "g", "--layers", "0"], "got num_layers=0; int > 0 is needed. Try num_layers=1"),
    (["evaluate"], "missing argument 'RUN'. Try `btlm evaluate --help`"),
    (
        ["train", "TEXT", "--sed", "4"],
        "no such option: --sed (Possible options: --fsdp, --seed, --set). Try `btlm train --help`",
    ),
    (["runs", "shwo"], "no such command 'shwo'. Did you mean 'show'? Try `btlm runs --help`"),
    (["train", "TEXT", "--set", "model.nhead=7"], "Try --set model.d_model=266"),
    (["train", "TEXT", "--set", "d_model=3"], "section"),
    (["train", "TEXT", "--set", "nonsense"], "section.key=value"),
    (["train", "TEXT", "--steps", "2", "--seconds", "3"], "exactly one of"),
    (["train", "TEXT", "--preset", "colossal"], "tiny, small, medium, large"),
    (["train", "TEXT", "--recipe", "none.toml"], "cannot be read"),
    (["train", "TEXT", "--diffusion", "--experts"], "goes with causal=True"),
    (["train", "TEXT", "--diffusion", "--diffusion-steps", "0"], "diffusion_steps=0"),
    (
        ["train", "TEXT", "--diffusion-steps", "8"],
        "got diffusion_steps=8 without diffusion, which it needs. Try --diffusion",
    ),
    (["train", "TEXT", "--noise", "flips"], "got noise='flips' without diffusion, which it needs. Try --diffusion"),
    (["train", "TEXT", "--diffusion", "--noise", "rain"], "noise='rain'"),
    (["train", "TEXT", "--set", "train.curriculum=0.5"], "a curriculum needs a diffusion model"),
    (["train", "TEXT", "--diffusion", "--set", "model.schedule=sometimes"], "schedule='sometimes'"),
    (["train", "TEXT", "--progressive", "--set", "train.compile_model=true"], "a growing model cannot be compiled"),
    (["infill", "RUN", "--text", "a_b"], "got an autoregressive model"),
    (["infill", "RUN"], "Try --text"),
    (["infill", "RUN", "TEXT", "--hide", "5"], "got the range '5'"),
    (["infill", "RUN", "EMPTY", "--hide", "5:6"], "is empty"),
    (["infill", "RUN", "TEXT", "--samples", "0"], "samples=0"),
    (["infill", "RUN", "TEXT", "--samples", "2", "--out", "x"], "a file takes one"),
    (["repair", "RUN", "TEXT", "--out", "x", "--rate", "0.5"], "rate=0.5; it must lie between 0 and 0.5"),
    (["repair", "RUN", "TEXT", "--out", "nodir/x"], "in an existing folder"),
    (["repair", "RUN", "nowhere", "--out", "x"], "cannot be read"),
    (["protect", "TEXT", "--out", "TEXT"], "is the input file"),
    (["protect", "EMPTY", "--out", "x"], "is empty"),
    (["train", "TEXT", "--out", ""], "--out got an empty name"),
    (["distill", "RUN", "--out", "", "--d-model", "8"], "--out got an empty name"),
    (["repair", "RUN", "TEXT", "--out", ""], "it must be a file in an existing folder"),
    (["protect", "TEXT", "--out", ""], "it must be a file in an existing folder"),
    (["infill", "RUN", "--text", "a_b", "--out", ""], "it must be a file in an existing folder"),
    (["repair", "RUN", "TEXT", "--out", "/proc/self/x"], "out='/proc/self/x'"),
    (["score", "RUN", "TEXT", "--plot", "/proc/self/x.png"], "plot='/proc/self/x.png'"),
    (["train", "TEXT", "--out", "/proc/self/x"], "out='/proc/self/x'"),
    (["runs", "rm", "ghost"], "btlm runs list"),
    (["distill", "RUN", "--out", "x", "--num-layers", "9", "--d-model", "64"], "the teacher has"),
    (["distill", "RUN", "--out", "x", "--d-model", "8", "--set", "model.experts=false"], "and a teacher with"),
    (["distill", "RUN", "--out", "RUN", "--d-model", "8", "--overwrite"], "is the teacher's own folder"),
    (["distill", "RUN", "--out", "x", "--d-model", "8", "--set", "data.bogus=1"], "unknown key 'bogus'"),
    (["distill", "RUN", "--out", "x", "--d-model", "8", "--set", "train.optim=3"], "optim"),
    (["infill", "RUN", "--text", "a_b", "--out", "nodir/x"], "in an existing folder"),
    (["distill", "nowhere", "--out", "x"], "run folder"),
    (["train", "TEXT", "--set", "model.lambda_S=0.1", "--no-experts"], "Try --experts"),
    (["train", "TEXT", "--set", "train.telemetry=2"], "telemetry=2"),
    (["calibrate", "nowhere"], "run folder"),
    (["calibrate", "RUN", "TEXT", "--alpha", "0"], "alpha=0.0; it must be in (0, 0.5)"),
    (["calibrate", "RUN", "TINY"], "alpha=0.01 needs 132 windows, 4,224 bytes"),
    (["calibrate", "RUN", "EMPTY"], "empty file"),
    (["explain", "RUN", "--K", "0.5", "--C", "0.5", "--S", "0.5"], "was not calibrated. Try `btlm calibrate"),
    (["explain", "RUN", "--K", "1.5", "--C", "0.5", "--S", "0.5"], "K=1.5; it must be in [0, 1]"),
    (["explain", "RUN", "--K", "0.5", "--C", "nan", "--S", "0.5"], "C=nan"),
    (["generate", "RUN", "--gate", "--prompt", "said too early"], "was not calibrated"),
    (["generate", "RUN", "--gate", "--samples", "2"], "it takes one continuation"),
    (["generate", "RUN", "--gate", "--retries", "-1"], "retries=-1"),
    (["telemetry", "EMPTY"], "empty file"),
    (["telemetry", "TEXT", "--window", "0"], "at least 1 byte"),
    (["telemetry", "TEXT", "--top", "0"], "top=0"),
    (["telemetry", "TEXT", "--plot", "x.txt"], "must be a file that ends in .png"),
    (["telemetry", "TEXT", "--plot", "runs"], "must be a file that ends in .png"),
    (["score", "RUN", "TEXT", "--plot", "x.pdf"], "must be a file that ends in .png"),
    (["telemetry", "TEXT", "--run", "RUN"], "was not calibrated"),
    (["telemetry", "nowhere"], "no such file"),
    (["train", "--out", "r", "--resume"], "no run with a checkpoint"),
    (
        ["train", "--out", "runs/one", "--resume", "--steps", "9", "--epochs", "9"],
        "with --out alone, or a larger budget",
    ),
    (
        ["train", "TEXT", "--init", "runs/one", "--preset", "tiny", "--out", "r"],
        "got --init with --preset; the model keeps its shape",
    ),
    (
        ["train", "TEXT", "--init", "runs/one", "--set", "model.dropout=0.1", "--out", "r"],
        "got --init with model.dropout",
    ),
    (
        ["train", "TEXT", "--init", "runs/one", "--set", "train.progressive=true", "--out", "r"],
        "got progressive and a model",
    ),
    (
        ["train", "TEXT", "--init", "runs/one", "--out", "runs/one", "--overwrite"],
        "the folder of the run to start from",
    ),
    (["train", "TEXT", "--init", "nowhere", "--out", "r"], "it must be a run folder"),
    (["train", "TEXT", "--out", "r", "--resume"], "with --out alone, or a larger budget, or --auto-batch"),
    (["train", "TEXT", "--patch-bits", "13"], "patch_bits=13"),
    (["generate", "nowhere"], "run folder"),
    (["generate", "TEXT"], "damaged or no checkpoint"),
    (["evaluate", "RUN", "EMPTY"], "empty file"),
    (["evaluate", "RUN", "TEXT", "--overlap", "1"], "[0, 1)"),
    (["score", "RUN", "TEXT", "--window", "0"], "at least 1 byte"),
    (["generate", "RUN", "--bytes", "0"], "at least 1"),
    (["generate", "RUN", "--temperature", "-1"], "temperature"),
    (["generate", "RUN", "--prompt", "@missing"], "cannot be read"),
    (["runs", "show", "ghost"], "btlm runs list"),
    (["bench", "ghost"], "startup"),
    (["bench", "peers"], "startup"),
    (["train", "TEXT", "--out", "TEXT"], "is a file"),
    (["train", "TEXT", "--set", "train.lr=1"], "Did you mean 'optim.lr'"),
    (["train", "--out", "runs/one", "--resume"], "is finished"),
    (["generate", "RUN", "--stop", ""], "at least one byte"),
    (["train", "TEXT", "--out", "empty/below"], "Try another --out"),
    (["train", "TEXT", "--set", "train.optim=3"], "optim"),
    (["train", "TEXT", "--set", "train.optim.betas=[1,1]"], "optim.betas"),
    (["train", "TEXT", "--seed", "4294967296"], "seed=4294967296"),
    (["train", "TEXT", "--eval-bytes", "0"], "at least 1"),
    (["score", "RUN", "TEXT", "--plot", "nodir/x.png"], "in an existing folder"),
    (
        ["train", "TEXT", "--set", "model.experts.buckets=1000"],
        "must be a power of two, 1,024 or more. Try --set model.experts.buckets=1024",
    ),
    (["train", "TEXT", "--set", "model.experts.buckets=1099511627776"], "GB are free. Try experts.buckets="),
    (["train", "TEXT", "--set", "model.experts.order=3"], "Did you mean 'orders'"),
    (["train", "TEXT", "--set", "model.experts.unit_bits=9"], "Try --set model.experts.unit_bits=8"),
    (
        ["train", "TEXT", "--set", "model.experts.words=true", "--patch-bits", "12"],
        "Try --set model.experts.words=false",
    ),
    (
        [
            "train",
            "TEXT",
            "--set",
            "model.experts.numbers='<i2'",
            "--set",
            "model.experts.rich=true",
            "--set",
            "model.experts.columns=[7]",
        ],
        "Try --set 'model.experts.columns=[14]'",
    ),
    (["evaluate", "RUN", "TEXT", "--protocol", "sometimes"], "static, online, online+mixer"),
    (["generate", "RUN", "--learn", "sometimes"], "learn="),
    (["train", "TEXT", "--set", "model.chunk_size=100"], "multiple of patch_bits=8"),
    (
        ["train", "TEXT", "--set", "model.reversible=true", "--set", "model.use_checkpoint=true"],
        "reversible=True and use_checkpoint=True",
    ),
    (["estimate", "--budget", "8 potatoes"], "Try 8GB"),
    (["estimate", "--budget", "0GB"], "at least one byte"),
    (["estimate", "--budget", "8"], "Try 8GB"),
    (["estimate", "--batch-size", "6", "--world-size", "4"], "Try a batch of 8"),
    (["estimate", "--world-size", "0"], "world_size=0"),
    (["estimate", "--preset", "colossal"], "tiny, small, medium, large"),
]


def test_memory_is_estimated_before_there_is_a_model(btlm):
    flags = ["estimate", "--preset", "12", "--no-experts", "--batch-size", 16]
    found = json.loads(btlm(*flags, "--budget", "8GB", "--json").stdout)
    assert found["largest_batch"] >= 1 and found["windows"] == 16 and found["positions"] == 1024
    assert found["estimate"]["peak"] < sum(v for v in found["estimate"].values() if isinstance(v, int))
    switches = {saving["settings"]: saving["peak"] for saving in found["savings"]}
    with_it = json.loads(btlm(*flags, "--set", "model.reversible=true", "--json").stdout)
    assert with_it["estimate"]["peak"] == switches["model.reversible=true"] < found["estimate"]["peak"]
    text = btlm(*flags, "--budget", "8GB").stdout
    assert "peak" in text and "In 8.00 GB, up to" in text and "model.reversible=true" in text
    assert "no batch fits: parameters" in btlm(*flags, "--budget", "100MB").stdout
    fixed = found["estimate"]["parameters"] + found["estimate"]["optimizer"]
    assert "not one window fits" in btlm(*flags, "--budget", f"{fixed // 10**6 + 5}MB").stdout
    assert json.loads(btlm(*flags, "--budget", "2GiB", "--json").stdout)["budget"] == 2 << 30
    assert "cache" in btlm(*flags, "--in-use").stdout


def test_a_calibrated_run_judges_explains_and_guards(btlm, trained, text_file, tmp_path):
    shown = btlm("calibrate", trained, text_file, "--alpha", "0.05")
    assert shown.returncode == 0 and "limits for a false-alarm rate of 5.00%" in shown.stdout, shown.stderr
    found = json.loads(btlm("calibrate", "one", text_file, "--alpha", "0.05", "--json").stdout)
    assert found["file"].endswith("gate.safetensors") and found["lengths"][0]["bytes"] == 32
    assert all(0 < row["C_floor"] <= row["C_median"] <= 1 for row in found["lengths"])

    judged = json.loads(btlm("telemetry", text_file, "--run", trained, "--window", 128, "--json").stdout)
    odd = [w for w in judged["windows"] if w["kind"] not in ("typical", "repetitive")]
    assert len(odd) <= at_most(0.05, len(judged["windows"])) and judged["windows"][0]["S"] > 0.5
    (tmp_path / "noise").write_bytes(random.Random(1).randbytes(1280))
    noise = json.loads(btlm("telemetry", "noise", "--run", "one", "--window", 128, "--json").stdout)
    kinds = [w["kind"] for w in noise["windows"]]
    assert (
        set(kinds) <= {"noise", "off-domain"} and kinds.count("noise") >= 8
    )  # two of a hundred lie beyond what noise has
    assert f"{kinds.count('noise')} noise" in btlm("telemetry", "noise", "--run", trained, "--window", 128).stdout

    w = judged["windows"][3]
    triple = ["--K", w["K"], "--C", w["C"], "--S", w["S"], "--bytes", 128]
    said = btlm("explain", trained, *triple).stdout
    assert said.startswith("typical") and "S " in said
    loop = json.loads(
        btlm("explain", trained, "--K", 0.9, "--C", 0.001, "--S", w["S"], "--bytes", 128, "--json").stdout
    )
    assert loop["kind"] == "repetitive" and loop["ranks"]["C"] == 0
    assert "it must have 32 to " in btlm("explain", trained, *triple[:-1], 8).stderr

    blocked = btlm("generate", trained, "--gate", "--bytes", 64, "--gate-window", 64, "--temperature", 5, "--seed", 1)
    assert blocked.returncode == 4 and blocked.stdout == "" and "Blocked: window 1" in blocked.stderr
    again = btlm("generate", "one", "--gate", "--bytes", 64, "--gate-window", 64, "--retries", 9, "--temperature", 3,
                 "--seed", 1, "--json")  # fmt: skip
    result = json.loads(again.stdout)
    assert result["blocked"] == (again.returncode == 4) and result["windows"][0]["retries"] > 0
    assert result["windows"][0]["vitals"]["size"] == 64 and 0 <= result["windows"][0]["vitals"]["S"] <= 1
    assert "got 8 bytes to generate" in btlm("generate", trained, "--gate", "--bytes", 8).stderr

    more = btlm("train", text_file, *SMALL, "--steps", 5, "--out", "runs/one", "--overwrite")
    assert more.returncode == 0  # other experts: the floors do not hold for them
    assert not (trained / "gate.safetensors").exists()


def test_what_a_run_held_out_is_its_reference(btlm, text_file, tmp_path):
    long = tmp_path / "long.txt"
    long.write_bytes(TEXT * 4)
    done = btlm("train", long, *SMALL, "--steps", 3, "--out", "runs/plain", "--no-experts")
    assert done.returncode == 0, done.stderr
    found = json.loads(btlm("calibrate", "runs/plain", "--alpha", "0.05", "--json").stdout)
    assert found["reference_bytes"] == pytest.approx(len(TEXT) * 4 / 10 / 2, rel=0.01)  # the other half fitted S
    assert "fitted to the first" in found["reference"]


def test_telemetry_of_a_run_and_of_a_file(btlm, trained, text_file, tmp_path):
    done = btlm("train", text_file, *SMALL, "--steps", 30, "--out", "runs/watched", "--set", "train.telemetry=1")
    assert done.returncode == 0, done.stderr
    found = json.loads(btlm("telemetry", "watched", "--json").stdout)
    assert set(found["series"]) == {"K", "C", "S", "train_bpb"} and len(found["series"]["K"]) > 5
    assert all(0 <= value <= 1 for name in "KCS" for _, value in found["series"][name])
    shown = btlm("telemetry", "runs/watched", "--plot", "run.png")
    assert "what the model predicts" in shown.stdout and (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    silent = btlm("train", text_file, *SMALL, "--steps", 3, "--out", "runs/silent", "--set", "train.telemetry=0")
    assert silent.returncode == 0
    assert "has no telemetry" in btlm("telemetry", "silent").stderr
    of_file = btlm("telemetry", text_file, "--window", 256, "--plot", "file.png")
    assert "those least like it" in of_file.stdout and (tmp_path / "file.png").exists()
    elsewhere = btlm("train", text_file, *SMALL, "--steps", 3, "--out", "other/far", "--store", "other/records.sqlite")
    assert elsewhere.returncode == 0
    assert btlm("telemetry", "other/far").stdout.startswith("far: what the model predicts")
    tiny = json.loads(btlm("telemetry", "-", "--json", stdin=b"abc").stdout)
    assert tiny["windows"][0]["bytes"] == 3 and tiny["windows"][0]["S"] is None and tiny["file"] == "-"


DIFFUSION = [*SMALL[:8], "--batch-size", 4, "--steps", 30, "--diffusion"]


def test_a_diffusion_model_trains_is_scored_by_a_bound_fills_in_and_repairs(btlm, text_file, tmp_path):
    flags = ["--diffusion-steps", 8, "--diffusion-curriculum", "--set", "train.telemetry=1"]
    done = btlm("train", text_file, *DIFFUSION, *flags, "--out", "runs/two-way")
    assert done.returncode == 0, done.stderr
    assert "an upper bound from 8 samples per window" in done.stdout and "±" in done.stdout
    config = json.loads((tmp_path / "runs/two-way/config.json").read_text())
    assert config["model"]["diffusion_steps"] == 8 and config["train"]["curriculum"] == 0.5
    assert {"K", "C"} <= csv_rows(tmp_path / "runs/two-way/metrics.csv")[0].keys()
    found = json.loads(btlm("evaluate", "runs/two-way", text_file, "--json").stdout)
    assert 0 < found["total"]["standard_error"] < found["total"]["bpb"] < 12
    for verb in (["generate", "runs/two-way", "--prompt", "a"], ["score", "runs/two-way", text_file]):
        refused = btlm(*verb)
        assert refused.returncode == 2 and "got a diffusion model" in refused.stderr and not refused.stdout
    assert "seed=-1" in btlm("infill", "runs/two-way", "--text", "a_b", "--seed", -1).stderr

    filled = btlm("infill", "runs/two-way", "--text", "It is a ____ universally", "--seed", 1)
    assert filled.returncode == 0 and filled.stdout.startswith("It is a ") and filled.stdout.endswith(" universally")
    rows = json.loads(
        btlm("infill", "runs/two-way", text_file, "--hide", "10:20", "--hide", "18:25", "--hide-bits", "400:403",
             "--samples", 2, "--order", "confidence", "--json").stdout
    )  # fmt: skip
    assert rows["hidden_bits"] == 15 * 8 + 3 and rows["holes"] == [[10, 25]] and len(rows["hex"]) == 2
    for made in map(bytes.fromhex, rows["hex"]):
        assert made[:10] == TEXT[:10] and made[25:50] == TEXT[25:50] and made[51:] == TEXT[51:]
    assert "written to out" in btlm("infill", "runs/two-way", text_file, "--hide", "5:6", "--out", "out").stdout
    assert len((tmp_path / "out").read_bytes()) == len(TEXT)

    mended = json.loads(btlm("repair", "runs/two-way", text_file, "--out", "mended", "--rate", 1e-6, "--json").stdout)
    assert mended["bytes"] == len(TEXT) and mended["flipped_bits"] == 0 == len(mended["changes"])
    assert (tmp_path / "mended").read_bytes() == TEXT
    shown = btlm("repair", "runs/two-way", text_file, "--out", "mended")
    assert "bits changed in" in shown.stdout and shown.returncode == 0


def test_protected_bytes_are_repaired_by_a_model_with_parity(btlm, text_file, tmp_path):
    nine = ["--parity", "--patch-bits", 9, "--set", "model.max_seq_len=288", "--steps", 30, "--out", "nine"]
    done = btlm("train", text_file, *SMALL, *nine)
    assert done.returncode == 0, done.stderr
    assert "protected, written to nine.bits" in btlm("protect", text_file, "--out", "nine.bits").stdout
    packed = bytearray((tmp_path / "nine.bits").read_bytes())
    assert len(packed) == -(-9 * len(TEXT) // 8)
    assert btlm("protect", "nine.bits", "--undo", "--out", "back").returncode == 0
    assert (tmp_path / "back").read_bytes() == TEXT
    refused = btlm("repair", "nine", text_file, "--out", "never")
    assert refused.returncode == 2 and "Try `btlm protect" in refused.stderr and not (tmp_path / "never").exists()
    packed[100] ^= 4  # bit 805
    (tmp_path / "hurt.bits").write_bytes(packed)
    refused = btlm("protect", "hurt.bits", "--undo", "--out", "never")
    assert (
        refused.returncode == 2
        and "got odd parity in 1 bytes, the first at 89" in refused.stderr
        and not (tmp_path / "never").exists()
    )
    found = json.loads(btlm("repair", "nine", "hurt.bits", "--out", "mended", "--rate", 1e-5, "--json").stdout)
    (change,) = found["changes"]  # whichever of the nine bits it chose
    assert change["offset"] == 805 // 9 and found["flipped_bits"] == 1
    assert len((tmp_path / "mended").read_bytes()) == len(TEXT)


def test_a_training_grows_and_its_record_says_how(btlm, text_file, tmp_path):
    grown = [*SMALL, "--no-experts", "--set", "model.num_layers=4", "--steps", 30, "--progressive"]
    done = btlm("train", text_file, *grown, "--out", "runs/grown", "--json")
    assert done.returncode == 0, done.stderr
    assert "grown at step" in done.stderr and json.loads(done.stdout)["steps"] == 30
    shown = json.loads(btlm("runs", "show", "grown", "--json").stdout)
    assert shown["growth"][0] == [1, "1 x 8, 256 bits"] and shown["growth"][-1][1] == "4 x 16, 256 bits"
    assert "4 x 16, 256 bits" in btlm("runs", "show", "grown").stdout
    assert btlm("generate", "grown", "--bytes", 5, "--seed", 1).returncode == 0


def test_a_large_model_is_taught_to_a_small_one(btlm, trained, tmp_path):
    made = btlm("distill", trained, "--out", "runs/small", "--d-model", 8, "--steps", 15)
    assert made.returncode == 0, made.stderr
    assert "lost: " in made.stdout and "of the active parameters" in made.stdout
    found = json.loads(btlm("distill", trained, "--out", "small2", "--d-model", 8, "--steps", 5, "--json").stdout)
    assert found["parameters"] < 1 and found["flops"] < 1 and found["teacher_bpb"] > 0
    config = json.loads((tmp_path / "runs/small/config.json").read_text())
    assert config["teacher"] == str(trained / "model.safetensors") and config["model"]["d_model"] == 8


def test_drift_is_recorded_and_shown(btlm, trained):
    from bit_transformer.runs.store import RunStore

    store = RunStore("runs/runs.sqlite")
    store.add_alert("one", 7, "S", "adwin", -0.25)
    assert "drift" in btlm("runs", "show", "one").stdout and "-0.250" in btlm("runs", "show", "one").stdout
    assert json.loads(btlm("runs", "show", "one", "--json").stdout)["alerts"] == [[7, "S", "adwin", -0.25]]
    store.go_on("one", 6)
    assert store.alerts("one") == []


def test_bad_input_is_one_line_exit_code_2_and_nothing_written(btlm, trained, text_file, tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "tiny").write_bytes(b"tiny")
    names = {"TEXT": text_file, "EMPTY": "empty", "TINY": "tiny", "RUN": trained}
    before = sorted(tmp_path.rglob("*"))
    for args, text in BAD:
        done = btlm(*[names.get(a, a) for a in args])
        assert done.returncode == 2, (args, done.stdout, done.stderr)
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("btlm: ") and text in lines[0], (args, done.stderr)
        assert done.stdout == "", args
        assert sorted(tmp_path.rglob("*")) == before, args


def test_a_run_and_files_that_are_swapped_come_back_in_order(btlm, trained, tmp_path):
    for name in ("a text", "other"):
        (tmp_path / name).write_bytes(TEXT[:5000])
    for args in (
        ["score", "a text", trained],
        ["score", "a text", "one"],
        ["score", "a text", trained / "model.safetensors"],
        ["evaluate", "a text", "other", trained],
        ["evaluate", "a text", trained, "other"],
        ["calibrate", "other", trained],
    ):
        done = btlm(*args)
        said = f"btlm: got {args[1]!r} as the run and {str(args[-1 if args[-1] != 'other' else 2])!r} as a file; they look swapped. Try "
        assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith(said), done.stderr
        program, *right = shlex.split(done.stderr.removeprefix(said).strip().strip("`"))
        assert program == "btlm" and sorted(right) == sorted(map(str, args)) and right[0] == args[0]
        assert btlm(*right).returncode == 0
    # A name that is neither a run nor data is no sign of that, and any file can be scored, a checkpoint too.
    assert "swapped" not in btlm("score", "nowhere", trained).stderr
    assert btlm("score", trained, trained / "model.safetensors").returncode == 0


def test_the_earlier_name_of_distill_still_does_the_same(btlm, trained):
    made = json.loads(btlm("collapse", trained, "--out", "small", "--d-model", 8, "--steps", 3, "--json").stdout)
    assert made["training"]["steps"] == 3 and made["parameters"] < 1
    assert "collapse" not in btlm("--help").stdout


def test_experts_learn_what_they_are_told_to(btlm, trained, text_file, tmp_path):
    (tmp_path / "other").write_bytes(b"unheard-of words, again and again; " * 40)
    bpb = {
        how: json.loads(btlm("evaluate", trained, "other", "--protocol", how, "--json").stdout)["total"]
        for how in ("static", "online", "online+mixer")
    }
    assert bpb["online"]["bpb"] < 0.7 * bpb["static"]["bpb"] and bpb["online+mixer"]["bpb"] < bpb["static"]["bpb"]
    assert bpb["static"]["protocol"].startswith("static weights")
    assert all(bpb[how]["protocol"].startswith(f"{how} (") for how in ("online", "online+mixer"))
    prompt = "zebras zoom; " * 20
    said = btlm("generate", trained, "--prompt", prompt, "--learn", "prompt", "--bytes", 13, "--temperature", 0)
    assert said.stdout == prompt + "zebras zoom; "

    alone = btlm("train", text_file, *SMALL[:-6], "--no-experts", "--batch-size", 4, "--steps", 3, "--out", "alone")
    assert alone.returncode == 0, alone.stderr
    assert not any(name.startswith("bank.") for name in read_tensors(tmp_path / "alone" / "model.safetensors")[0])
    for refused in (
        btlm("evaluate", "alone", "other", "--protocol", "online"),
        btlm("generate", "alone", "--learn", "all"),
    ):
        assert refused.returncode == 2 and "needs experts; the model has none" in refused.stderr
        assert refused.stdout == ""


def test_a_short_budget_does_not_wait_for_the_experts(btlm, text_file):
    done = btlm("train", text_file, *SMALL, "--seconds", 0.1, "--out", "short")
    assert done.returncode == 0 and "read the data during training" in done.stderr


def test_a_run_is_not_replaced_by_accident(btlm, trained, text_file):
    kept = (trained / "model.safetensors").read_bytes()
    refused = btlm("train", text_file, *SMALL, "--steps", 2, "--out", trained)
    assert refused.returncode == 2 and "--overwrite" in refused.stderr
    assert (trained / "model.safetensors").read_bytes() == kept
    assert btlm("train", text_file, *SMALL, "--steps", 2, "--out", trained, "--overwrite").returncode == 0
    assert len(csv_rows(trained / "metrics.csv")) == 2


def test_files_that_train_did_not_make_are_not_deleted(btlm, trained, text_file, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"precious")
    refused = btlm("train", text_file, *SMALL, "--steps", 1, "--out", "mine")
    assert refused.returncode == 2 and "already holds model.safetensors" in refused.stderr
    assert (tmp_path / "mine" / "model.safetensors").read_bytes() == b"precious"
    taken = btlm("train", text_file, *SMALL, "--steps", 1, "--out", "elsewhere/one")  # runs/one has the name
    assert taken.returncode == 2 and "Try another --out, or another --store" in taken.stderr
    assert json.loads(btlm("runs", "list", "--json").stdout)[0]["step"] == 20


def test_patience_without_anything_held_out_keeps_the_last_weights(btlm, text_file, tmp_path):
    done = btlm("train", text_file, *SMALL, "--steps", 30, "--set", "data.holdout=0", "--set", "train.patience=2",
                "--set", "train.checkpoint_seconds=0.001", "--out", "all")  # fmt: skip
    assert done.returncode == 0, done.stderr
    model, _ = read_tensors(tmp_path / "all" / "model.safetensors")
    training, _ = read_tensors(tmp_path / "all" / "training.safetensors")
    assert all(
        bool((training[f"model.{name}"] == weight).all())
        for name, weight in model.items()
        if not name.startswith("bank.")
    )


def test_the_reader_of_a_pipe_may_go_away(trained, tmp_path):
    call = f"{sys.executable} -m bit_transformer.cli generate {trained} --bytes 1000000 | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", call], cwd=tmp_path, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_run_is_trained_further_with_its_experts_and_optimizers(btlm, trained, tmp_path):
    other = tmp_path / "other.txt"
    other.write_bytes(prose(1, 2000))
    budget = ["--steps", 10, "--batch-size", 4, "--set", "train.amp=false"]
    done = btlm("train", other, "--init", "runs/one", *budget, "--out", "runs/more")
    assert done.returncode == 0, done.stderr
    one, more = (load_checkpoint(tmp_path / "runs" / name) for name in ("one", "more"))
    assert (
        more.config == one.config
        and more.bank.count == one.bank.count + config_of(tmp_path / "runs" / "more")["data"]["train_bytes"]
    )
    assert "start anew" not in done.stderr  # the optimizers went on
    moments = [read_tensors(tmp_path / "runs" / name / "training.safetensors")[0] for name in ("one", "more")]
    assert [int(tensors["optim.head.weight.step"]) for tensors in moments] == [20, 30]
    assert (tmp_path / "runs" / "more" / "start.safetensors").read_bytes() == (
        trained / "model.safetensors"
    ).read_bytes()
    again = btlm("train", "--init", "runs/one", *budget, "--out", "runs/again")  # the run's own data
    assert again.returncode == 0 and "learned from these bytes before" in again.stderr
    assert load_checkpoint(tmp_path / "runs" / "again").bank.digest() == one.bank.digest()
    shutil.copy(trained / "model.safetensors", tmp_path / "alone.safetensors")
    alone = btlm("train", other, "--init", "alone.safetensors", *budget, "--out", "runs/alone")
    assert alone.returncode == 0 and "the optimizers start anew" in alone.stderr


def test_a_further_training_that_was_killed_ends_where_it_would_have(btlm, trained, tmp_path):
    other = tmp_path / "other.txt"
    other.write_bytes(prose(1, 2000))
    common = ["train", other, "--init", "runs/one", "--steps", 300, "--batch-size", 4, "--set", "train.amp=false",
              "--set", "train.checkpoint_seconds=0.2"]  # fmt: skip
    assert btlm(*common, "--out", "whole").returncode == 0
    process = start(*common, "--out", "killed", cwd=tmp_path)
    wait_for(tmp_path / "killed" / "training.safetensors", process)
    process.kill()
    process.communicate()
    shutil.rmtree(trained)  # it is not needed any more
    done = btlm("train", "--out", "killed", "--resume")
    assert done.returncode == 0, done.stderr
    whole, killed = (read_tensors(tmp_path / name / "model.safetensors")[0] for name in ("whole", "killed"))
    assert all(bool((killed[name] == tensor).all()) for name, tensor in whole.items())


def test_a_run_that_was_moved_or_forgotten_goes_on(btlm, trained, tmp_path):
    trained.rename(tmp_path / "moved")
    done = btlm("train", "--out", "moved", "--resume", "--steps", 25)
    assert done.returncode == 0, done.stderr
    assert btlm("runs", "rm", "moved").returncode == 0
    done = btlm("train", "--out", "moved", "--resume", "--steps", 30)
    assert done.returncode == 0, done.stderr
    assert json.loads(btlm("runs", "show", "moved", "--json").stdout)["status"] == "finished"


def test_a_further_training_is_validated_on_what_its_model_was_not_trained_on(btlm, trained, text_file):
    for setting in ("train.eval_bytes=500", "data.holdout=0.2"):
        refused = btlm(
            "train", "--init", "runs/one", "--steps", 3, "--batch-size", 4, "--set", setting, "--out", "more"
        )
        assert (
            refused.returncode == 2 and "validation needs the bytes that the earlier run held out" in refused.stderr
        ), refused.stderr


def test_a_run_that_patience_ended_goes_on_with_a_larger_budget(btlm, text_file, tmp_path):
    flags = [
        *SMALL,
        "--steps",
        200,
        "--set",
        "train.patience=1",
        "--set",
        "train.eval_every=0.01",
        "--set",
        "train.optim.lr=0.5",
    ]
    assert btlm("train", text_file, *flags, "--out", "short").returncode == 0
    steps = json.loads(btlm("runs", "show", "short", "--json").stdout)["validation"][-1][0]
    assert steps < 200
    assert btlm("train", "--out", "short", "--resume", "--steps", 400).returncode == 0
    assert json.loads(btlm("runs", "show", "short", "--json").stdout)["validation"][-1][0] > steps


def test_a_finished_run_goes_on_with_a_larger_budget(btlm, trained, tmp_path):
    for budget in (["--steps", 20], ["--bytes", 100]):
        spent = btlm("train", "--out", "runs/one", "--resume", *budget)
        assert spent.returncode == 2 and "is already spent: 20 updates" in spent.stderr, spent.stderr
    done = btlm("train", "--out", "runs/one", "--resume", "--steps", 35)
    assert done.returncode == 0, done.stderr
    assert json.loads((trained / "config.json").read_text())["train"]["steps"] == 35
    shown = json.loads(btlm("runs", "show", "one", "--json").stdout)
    assert shown["status"] == "finished" and csv_rows(trained / "metrics.csv")[-1]["step"] == "35"


def test_kill_nine_and_resume_ends_where_an_uninterrupted_run_does(btlm, text_file, tmp_path):
    common = [text_file, *SMALL, "--steps", 400, "--set", "train.checkpoint_seconds=0.2", "--set", "model.dropout=0.1"]
    assert btlm("train", *common, "--out", "whole").returncode == 0
    process = start("train", *common, "--out", "killed", cwd=tmp_path)
    wait_for(tmp_path / "killed" / "training.safetensors", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _, document = read_tensors(tmp_path / "killed" / "training.safetensors")
    assert 0 < document["progress"]["step"] < 400
    done = btlm("train", "--out", "killed", "--resume")
    assert done.returncode == 0, done.stderr
    whole, _ = read_tensors(tmp_path / "whole" / "training.safetensors")
    killed, _ = read_tensors(tmp_path / "killed" / "training.safetensors")
    assert whole.keys() == killed.keys()
    assert all(bool((whole[name] == killed[name]).all()) for name in whole)
    assert len(csv_rows(tmp_path / "killed" / "metrics.csv")) == 400


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_exits_130(btlm, text_file, tmp_path, number):
    process = start(
        "train",
        text_file,
        *SMALL,
        "--steps",
        100_000,
        "--set",
        "train.checkpoint_seconds=0.2",
        "--out",
        "cut",
        cwd=tmp_path,
    )
    wait_for(tmp_path / "cut" / "training.safetensors", process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err.decode()
    assert "--resume" in out.decode() and "Traceback" not in err.decode()
    step = read_tensors(tmp_path / "cut" / "training.safetensors")[1]["progress"]["step"]
    assert step > 0 and load_checkpoint(tmp_path / "cut")
    assert json.loads(btlm("runs", "list", "--json").stdout)[0]["status"] == "stopped"


FULL_DISK = """
import resource, sys
from bit_transformer.checkpoint import save_checkpoint
from bit_transformer.errors import CheckpointError
from bit_transformer.model import BitTransformerLM
import torch
model = BitTransformerLM(d_model=64, nhead=2, num_layers=2)
save_checkpoint("m.safetensors", model)
torch.nn.init.ones_(model.head.weight)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))   # the disk takes 100 kB more, then no more
try:
    save_checkpoint("m.safetensors", model)
except CheckpointError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK], cwd=tmp_path, capture_output=True, text=True)
    assert "The one before is untouched" in done.stdout, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    assert float(load_checkpoint(tmp_path / "m.safetensors").head.weight.detach().abs().sum()) == 0.0


def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_last_checkpoint(btlm, text_file, tmp_path):
    done = btlm("train", text_file, *SMALL, "--steps", 500, "--set", "train.optim.lr=1e30", "--set", "train.clip_norm=1e30",
                "--set", "train.optim.table_lr=1e30", "--set", "train.optim.matrix_lr=1e30",
                "--set", "train.checkpoint_seconds=0.001", "--out", "wild")  # fmt: skip
    assert done.returncode == 2 and "at step" in done.stderr.splitlines()[-1], done.stderr
    run = json.loads(btlm("runs", "list", "--json").stdout)[0]
    assert run["status"] == "failed"
    assert (tmp_path / "wild" / "metrics.csv").exists()
    if (tmp_path / "wild" / "training.safetensors").exists():
        tensors, _ = read_tensors(tmp_path / "wild" / "training.safetensors")
        assert all(bool(t.isfinite().all()) for t in tensors.values())


def test_recipes_are_legal(btlm, text_file):
    for recipe in sorted((ROOT / "recipes").glob("*.toml")):
        done = btlm(
            "train", text_file, "--recipe", recipe, "--steps", 1, "--set", "train.batch_size=1", "--out", recipe.stem,
            "--set", "model.ngram_rows=1024",
            *(("--set", "model.experts.buckets=1024") if "experts" in recipe.stem else ()),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_the_workflow_runs_its_phases(tmp_path, text_file):
    call = [sys.executable, str(ROOT / "unified_workflow.py"), "--corpus", str(text_file)]
    done = subprocess.run(
        [*call, "--dataset-size", "20000", "--batch-size", "2"],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    assert done.returncode == 0 and "held-out bytes" in done.stdout and "def " in done.stdout, done.stderr
    two_way = ["--diffusion", "--diffusion-steps", "8", "--diffusion-curriculum", "--progressive", "--epochs", "0.5"]
    done = subprocess.run(
        [*call, *two_way, "--dataset-size", "20000", "--batch-size", "2", "--out", "two-way"],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    assert done.returncode == 0 and "an upper bound" in done.stdout and "def " in done.stdout, done.stderr


def test_help_names_every_verb_and_the_exit_codes(btlm):
    text = btlm("--help").stdout
    for word in (
        "train",
        "generate",
        "infill",
        "repair",
        "protect",
        "distill",
        "evaluate",
        "score",
        "telemetry",
        "calibrate",
        "explain",
        "runs",
        "bench",
        "130",
    ):
        assert word in text
    assert "no tokenizer" in text
    from bit_transformer.cli.main import version

    assert btlm("--version").stdout == f"btlm {version('bit-transformer')}\n"
