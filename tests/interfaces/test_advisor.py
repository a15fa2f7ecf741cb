"""The advisor: what it finds in runs of which it is known how they went, in logs, on this machine; and its commands."""

from __future__ import annotations

import json
import math
import shlex
import sys
from pathlib import Path

import pytest

from bit_transformer.config import ModelConfig, TrainConfig
from bit_transformer.errors import BitTransformerError, ConfigError
from bit_transformer.memory import estimate_memory
from bit_transformer.presets import preset
from bit_transformer.runs.store import Live
from bit_transformer.service.advisor.configuring import CHOICES, ROOM
from bit_transformer.service.advisor.kinds import MEASURED
from bit_transformer.service.home import Home
from bit_transformer.service.operations import OPERATIONS, call
from bit_transformer.service.workspace import Workspace
from tests.conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))
from seeded_store import falling, seed


@pytest.fixture(scope="module")
def seeded(tmp_path_factory) -> Workspace:
    home = Home(tmp_path_factory.mktemp("seeded") / "home")
    seed(home)
    return home.workspace("cpu")


# ---- runs ----


@pytest.mark.parametrize(
    ("run", "verdict", "also"),
    [
        ("plain-0", "converging", "speed"),
        ("diverged", "diverging", "speed"),
        ("overfitted", "over-fitting", "speed"),
        ("not-a-number", "not a number", "speed"),
        ("gated", "converging", "gate"),
        ("slow", "converging", "too slow"),
        ("fast", "converging", "speed"),
        ("killed", "converging", "killed"),
        ("drifted", "converging", "drift"),
    ],
)
def test_runs_are_diagnosed(seeded: Workspace, run: str, verdict: str, also: str) -> None:
    found = call("diagnose", {"run": run}, seeded)
    kinds = [finding.kind for finding in found.findings]
    assert found.verdict == verdict and verdict in kinds and also in kinds
    problems = [finding.problem for finding in found.findings]
    assert problems == sorted(problems, reverse=True)
    for finding in found.findings:
        assert finding.numbers or finding.kind == "killed"
        assert all(math.isfinite(value) for value in finding.numbers.values())


def test_a_run_that_has_levelled_off(tmp_path) -> None:
    home = Home(tmp_path)
    home.open_store()
    config = {"model": {}, "train": {}, "data": {}}
    home.store.begin("flat", home.runs / "flat", config)
    curve = [2.0 + 0.01 * ((i * 7919) % 13 - 6) for i in range(300)]
    home.store.add_metrics("flat", [(i, "train_bpb", value) for i, value in enumerate(curve, 1)], Live(300, 1.0))
    home.store.end("flat", "finished", "")
    assert call("diagnose", {"run": "flat"}, home.workspace()).verdict == "levelled off"
    home.store.begin("new", home.runs / "new", config)
    home.store.add_metrics("new", [(1, "train_bpb", 8.0)])
    home.store.end("new", "stopped", "")
    assert call("diagnose", {"run": "new"}, home.workspace()).verdict == "too early"


def test_gradients_that_jump_and_predictions_that_are_too_sure(tmp_path) -> None:
    home = Home(tmp_path)
    home.open_store()
    home.store.begin("a", home.runs / "a", {"model": {}, "train": {}, "data": {}})
    rows = [(i, "train_bpb", value) for i, value in enumerate(falling(100, 3.0), 1)]
    rows += [(i, "grad_norm", 500.0 if i == 95 else 1.0) for i in range(1, 101)] + [
        (i, "K", 0.9) for i in range(10, 101, 10)
    ]
    home.store.add_metrics("a", rows)
    home.store.end("a", "finished", "")
    kinds = {finding.kind: finding for finding in call("diagnose", {"run": "a"}, home.workspace()).findings}
    assert kinds["gradient spikes"].numbers["largest"] == 500
    assert kinds["over-confident"].numbers["expected_bpb"] == pytest.approx(0.8)


# ---- logs ----


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB", "out of memory"),
        (
            "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 123 bytes",
            "out of memory",
        ),
        ("Killed", "killed"),
        ("got loss nan and gradient norm nan at step 3; both must be finite", "not a number"),
        ("AssertionError: Torch not compiled with CUDA enabled", "no GPU"),
        ("RuntimeError: Error(s) in loading state_dict: size mismatch for head.weight", "another checkpoint"),
        ("ModuleNotFoundError: No module named 'nicegui'", "missing library"),
        ("OSError: [Errno 98] Address already in use", "address in use"),
        ("OSError: [Errno 28] No space left on device", "disk full"),
        ("[rank1]: Watchdog caught collective operation timeout: NCCL", "process group"),
        ("something else", "unknown"),
        ("btlm: got preset='huge'; tiny or small is needed. Try small", "invalid input"),
    ],
)
def test_errors_are_recognised(tmp_path, log: str, kind: str) -> None:
    found = call("diagnose_error", {"log": f"Traceback\n{log}\n"}, Workspace(tmp_path / "x.sqlite"))
    assert found.kind == kind and (found.tries or kind == "unknown")


def test_our_own_error_of_memory_is_recognised_and_its_advice_fits(tmp_path) -> None:
    fields = {
        "preset": "12",
        "train": {"batch_size": 64},
        "log": "CUDA out of memory. GPU 0 has a total capacity of 24.00 GiB",
    }
    found = call("diagnose_error", fields, Workspace(tmp_path / "x.sqlite"))
    how = TrainConfig.of({"steps": 1, "batch_size": 64, "amp": False})
    assert found.peak == estimate_memory(preset("12"), how).peak
    for saving, fits in zip(found.savings, found.fits, strict=True):
        assert fits == (saving.peak <= 0.95 * 24 * 2**30)


# ---- settings ----


def test_proposed_settings_are_those_of_the_command(btlm, tmp_path) -> None:
    """The command that is shown trains the model whose memory and size are told."""
    for fields in (
        {"task": "generate", "seconds": 30.0},
        {"task": "infill", "preset": "3"},
        {"task": "repair"},
        {"parameters": 40_000_000, "train": {"steps": 7, "batch_size": 6}},
        {"parameters": 60_000_000, "memory": 900_000_000, "model": {"experts": None}, "train": {"bytes": 100_000}},
    ):
        found = call("advise", {**fields, "measure": 0}, Workspace(tmp_path / "x.sqlite", "cpu"))
        words = shlex.split(found.command)
        assert words[:3] == ["btlm", "train", "DATA"]
        sized = [*words[3 : words.index("--out")]]
        for flag in ("--seconds", "--steps", "--epochs"):
            if flag in sized:
                at = sized.index(flag)
                sized[at : at + 2] = ["--set", f"train.{flag[2:]}={sized[at + 1]}"]
        diffusion = "--diffusion" in sized
        sized = [word for word in sized if word != "--diffusion"] + (
            ["--set", "model.causal=false"] if diffusion else []
        )
        told = json.loads(btlm("estimate", *sized, "--device", "cpu", "--json").stdout)
        assert told["model_parameters"] == found.parameters, fields
        assert told["estimate"]["peak"] == found.memory.peak, fields


def test_what_is_proposed_fits_or_says_what_would(tmp_path) -> None:
    for memory in (2_000_000_000, 6_000_000_000, 40_000_000_000):
        found = call(
            "advise", {"parameters": 300_000_000, "memory": memory, "measure": 0}, Workspace(tmp_path / "x", "cpu")
        )
        assert found.fits == (found.memory.peak <= ROOM * memory)
        assert found.fits or found.smaller["parameters"] < found.parameters
        assert not found.fits or found.largest_batch >= 16


def test_time_is_timed_and_seconds_are_kept(tmp_path) -> None:
    fields = {
        "preset": "1",
        "model": {"experts": None, "d_model": 32, "nhead": 2},
        "seconds": 20.0,
        "measure": 0.3,
        "data_bytes": 1_000_000,
    }
    found = call("advise", fields, Workspace(tmp_path / "x", "cpu"))
    assert found.seconds == 20 and found.time.measured_updates >= 2 and found.passes > 0


def test_choices_quote_the_results() -> None:
    results = (ROOT / "docs" / "results.md").read_text()
    for _, why, numbers in CHOICES.values():
        for value in numbers.values():
            shown = (f"{value:.3f}", f"{value:.0%}".replace("%", " %"), f"{100 * value:.1f} %")
            assert any(text in results for text in shown), value
        assert not numbers or "`btlm bench" in why


def test_trade_offs_are_those_of_the_estimator(tmp_path) -> None:
    found = call("trade", {"preset": "2", "seconds": 0, "train": {"batch_size": 8}}, Workspace(tmp_path / "x", "cpu"))
    assert [row.settings for row in found] == [[], ["model.use_checkpoint=true"], ["model.reversible=true"]]
    how = TrainConfig.of({"steps": 1, "batch_size": 8, "amp": False})
    assert found[2].peak == estimate_memory(ModelConfig.of(preset("2").model_dump() | {"reversible": True}), how).peak


# ---- commands ----


def test_commands(btlm, tmp_path, seeded: Workspace) -> None:
    store = str(seeded.store_path)
    doctor = json.loads(btlm("doctor", "--json").stdout)
    assert all(check["ok"] for check in doctor["checks"] if check["needed"])
    assert "✓" in btlm("doctor").stdout
    shown = btlm("diagnose", "diverged", "--store", store).stdout
    assert (
        shown.startswith("diverged: diverging (stopped)")
        and "`btlm runs branch diverged --set train.optim.lr=0.05 --set train.optim.matrix_lr=0.25`" in shown
    )
    (tmp_path / "log").write_text("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert "out of memory" in btlm("diagnose", "--log", tmp_path / "log", "--preset", "tiny").stdout
    assert "nearest to an executable" in btlm("explain", "--K", 0.3, "--C", 0.6, "--S", 0.4).stdout
    assert "6.40 bits per byte" in btlm("explain", "--K", 0.2, "--C", 0.8, "--predictions").stdout
    assert "seeds of each" in btlm("plan", "ours", "gpt2", "--store", store).stdout
    runs = [",".join(f"{name}-{i}" for i in range(6)) for name in ("wide", "plain")]
    assert "p 0.0312" in btlm("significance", *runs, "--store", store).stdout
    assert json.loads(btlm("significance", "1,2,3", "2,3,5", "--json").stdout)["n"] == 3
    assert "written to" in btlm("report", "--store", store, "--out", tmp_path / "report.md", "--title", "Widths").stdout
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# Widths") and "wide-0 is better" in text and "not-a-number: failed" in text
    assert "time x" in btlm("trade", "model.reversible=true", "--preset", "tiny", "--measure", 0).stdout
    advice = btlm("advise", "--measure", 0, "--task", "infill").stdout
    assert "btlm train DATA --preset tiny --diffusion" in advice.replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("diagnose",), "got no run and no log"),
        (("diagnose", "nobody"), "got run 'nobody'"),
        (("diagnose", "--log", "missing.txt"), "missing.txt"),
        (("advise", "--parameters", "many"), "got size"),
        (("advise", "--task", "dream"), "task"),
        (("advise", "--preset", "tiny", "--parameters", "5M"), "one is needed"),
        (("explain", "--K", "2", "--C", "0"), "K"),
        (("trade", "reversible"), "section.key=value"),
        (("plan", "ours"), "models"),
        (("significance", "1,2", "1"), "two rows"),
        (("significance", "a,b", "c,d"), "got run"),
        (("report",), "no run with a result"),
    ],
)
def test_bad_input_is_one_line(btlm, words: tuple[str, ...], says: str) -> None:
    done = btlm(*words)
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_kinds_of_data_are_told_apart(seeded: Workspace) -> None:
    for kind, (k, c, _) in MEASURED.items():
        found = call("interpret", {"K": k[1], "C": c[1]}, seeded)
        assert found.nearest[0].kind == kind or kind in ("noise", "compressed data")
    with pytest.raises(BitTransformerError, match="K"):
        call("interpret", {"K": 1.5, "C": 0.1}, seeded)


def test_a_model_whose_updates_take_long_is_not_timed(tmp_path) -> None:
    found = call(
        "advise", {"parameters": 500_000_000, "measure": 1, "memory": 10**12}, Workspace(tmp_path / "x", "cpu")
    )
    assert found.time is None and any("by its operations" in text for text in found.warnings)


def test_runs_that_are_there_twice_are_named(tmp_path) -> None:
    home = Home(tmp_path)
    seed(home)
    again = home.store.get("plain-0")
    home.store.begin("zz", home.runs / "zz", again.config)
    home.store.end("zz", "finished", "", {**again.result, "bpb": 1.5})
    found = call("report", {}, home.workspace())
    assert any(text.startswith("zz: settings and seed of a run that is shown; 1.500") for text in found.not_shown)


def test_a_report_of_one_run_claims_nothing(seeded: Workspace) -> None:
    found = call("report", {"names": ["gated"]}, seeded)
    assert found.claims == [] and found.groups[0].low is None and any("one seed" in text for text in found.not_shown)
    with pytest.raises(ConfigError, match="no run with a result"):
        call("report", {"names": ["diverged"]}, seeded)


def test_plans_learn_the_deviation_from_the_store(seeded: Workspace, tmp_path: Path) -> None:
    found = call("plan", {}, seeded)
    assert "12 runs of the store in 2 groups" in found.deviation_from
    assert call("plan", {}, Workspace(tmp_path / "x")).deviation_from.startswith("`btlm bench")
    many = call("plan", {"models": ["a", "b", "c", "d"], "seeds": 6}, seeded)
    assert many.alpha_each == pytest.approx(0.05 / 3) and any("flipping signs" in text for text in many.warnings)


def test_questions_to_the_advisor_are_reads() -> None:
    for name in (
        "doctor",
        "advise",
        "trade",
        "diagnose",
        "diagnose_error",
        "diagnose_gate",
        "measure",
        "interpret",
        "plan",
        "significance",
        "report",
    ):
        assert not OPERATIONS[name].writes
