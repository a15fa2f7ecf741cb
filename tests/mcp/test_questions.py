"""The questions that people ask: each by a client of the protocol, with a structured answer that can be checked."""

from __future__ import annotations

import json
import random
import re
import shlex
import subprocess
import sys
from typing import Any

import pytest

from bit_transformer.config import ModelConfig, TrainConfig
from bit_transformer.memory import estimate_memory
from bit_transformer.presets import preset
from bit_transformer.server.mcp.prompts import QUESTIONS
from bit_transformer.server.mcp.tools import TOOLS
from tests.conftest import ROOT
from tests.mcp.conftest import Agent

OOM = """Traceback (most recent call last):
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB of which 1.21 GiB is free."""


def test_set_up_on_my_system(trained: Agent) -> None:
    machine = trained.ask("hardware")
    assert machine["works"] and machine["cores"] >= 1 and machine["versions"]["torch"]
    assert not any(check["needed"] for check in machine["checks"])  # what is listed failed; extras may be missing
    advice = trained.ask("suggest_config", seconds=60, measure=0)
    assert (
        shlex.split(advice["command"])[:2] == ["btlm", "train"]
        and advice["memory"]["peak"] < advice["memory"]["budget"]
    )


def test_configure_for_training_on_a_gpu(trained: Agent) -> None:
    advice = trained.ask("suggest_config", parameters=100_000_000, device="cuda", memory=24_000_000_000, measure=0)
    assert advice["fits"] and "--device cuda" in advice["command"] and 0.7e8 < advice["parameters"] < 1.4e8
    assert any("not timed" in text or "no updates were timed" in text for text in advice["warnings"])
    assert any(reason["setting"] == "train.amp=true" for reason in advice["reasons"])


def test_a_minimal_training_script_runs(trained: Agent, tmp_path) -> None:
    advice = trained.ask(
        "suggest_config", train={"steps": 3, "batch_size": 2, "feature_cache": 0, "amp": False}, measure=0, script=True
    )
    script = advice["script"].replace("DATA", str(ROOT / "README.md"))
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "bits per byte" in done.stdout, done.stderr
    assert (tmp_path / "runs/new/model.safetensors").is_file()


@pytest.mark.parametrize(
    ("task", "causal"), [("generate", True), ("compress", True), ("score", True), ("infill", False), ("repair", True)]
)
def test_causal_or_diffusion(trained: Agent, task: str, causal: bool) -> None:
    advice = trained.ask("suggest_config", task=task, measure=0)
    assert advice["causal"] is causal and advice["reasons"][0]["setting"] == f"model.causal={str(causal).lower()}"
    if task in ("generate", "score", "repair"):  # measured; docs/results.md has the same figures
        assert advice["reasons"][0]["numbers"]


@pytest.mark.parametrize("parameters", [30_000_000, 200_000_000, 1_000_000_000])
def test_hyper_parameters_for_a_size(trained: Agent, parameters: int) -> None:
    advice = trained.ask("suggest_config", parameters=parameters, memory=80_000_000_000, measure=0)
    assert 0.75 < advice["parameters"] / parameters < 1.34
    rate = next(reason for reason in advice["reasons"] if reason["setting"].startswith("train.optim.lr"))
    assert rate["numbers"]["lr"] == pytest.approx(0.003 * (128 / rate["numbers"]["width"]) ** 0.5)


def test_enable_reversible_layers_and_checkpointing(trained: Agent) -> None:
    model = {"num_layers": 12, "experts": None}
    found = trained.ask("estimate_memory", preset="medium", model=model, train={"batch_size": 32, "amp": False})
    saved = {saving["settings"]: saving["peak"] for saving in found["savings"]}
    now, how = preset("medium", **model), {"steps": 1, "batch_size": 32, "amp": False}
    for setting in ("reversible", "use_checkpoint"):
        wanted = estimate_memory(ModelConfig.of(now.model_dump() | {setting: True}), TrainConfig.of(how)).peak
        assert saved[f"model.{setting}=true"] == wanted < found["estimate"]["peak"]


def test_set_up_fsdp_on_four_gpus(trained: Agent) -> None:
    advice = trained.ask(
        "suggest_config", parameters=1_000_000_000, devices=4, device="cuda", memory=24_000_000_000, measure=0
    )
    assert advice["distributed"] == {"nproc": 4, "shard": True} and advice["fits"]
    assert "--nproc 4 --fsdp" in advice["command"]
    (reason,) = [reason for reason in advice["reasons"] if reason["setting"] == "fsdp"]
    assert reason["numbers"]["peak"] < reason["numbers"]["peak_with_all_weights"]


def test_interpret_three_values(recorded: Agent) -> None:
    found = recorded.ask("explain_telemetry", K=0.3, C=0.6, S=0.4)
    assert found["verdict"] == "structured" and found["similarity"] == "against the reference"
    assert found["nearest"][0]["kind"] == "an executable" and found["divergence"] == pytest.approx(0.36)


def test_explain_three_values_of_a_training(recorded: Agent) -> None:
    found = recorded.ask("explain_telemetry", K=0.2, C=0.8, S=0.3, source="predictions")
    assert found["expected_bpb"] == pytest.approx(6.4) and found["divergence"] == pytest.approx(0.49)
    assert recorded.ask("explain_telemetry", K=0.2, C=0.05)["verdict"] == "repetitive"
    assert recorded.ask("explain_telemetry", K=0.001, C=0.99)["verdict"] == "noise"


def test_explain_by_a_calibrated_run(trained: Agent) -> None:
    found = trained.ask("explain_telemetry", K=0.2, C=0.01, S=0.6, run="one", size=256)
    assert found["verdict"] == "repetitive" and found["ranks"]["C"] == 0


def test_debug_this_out_of_memory_error(recorded: Agent) -> None:
    found = recorded.ask("diagnose_error", log=OOM, preset="12", train={"batch_size": 64})
    assert found["kind"] == "out of memory"
    assert found["numbers"] == pytest.approx({"tried": 2 * 2**30, "total": 23.64 * 2**30, "free": 1.21 * 2**30})
    assert (
        found["peak"] > found["numbers"]["total"]
        and found["savings"][0]["peak"] < 0.5 * found["peak"]
        and any(found["fits"])
    )
    assert recorded.ask("diagnose_error", log="all is well")["kind"] == "unknown"


def test_half_a_billion_parameters_run_out_of_memory(trained: Agent) -> None:
    advice = trained.ask("suggest_config", parameters=500_000_000, memory=16_000_000_000, device="cuda", measure=0)
    assert advice["fits"] and advice["memory"]["peak"] <= 0.85 * 16e9
    peaks = [reason["numbers"]["peak"] for reason in advice["reasons"] if "peak_before" in reason.get("numbers", {})]
    assert peaks and peaks == sorted(peaks, reverse=True)
    small = trained.ask("suggest_config", parameters=500_000_000, memory=4_000_000_000, device="cuda", measure=0)
    assert not small["fits"] and small["smaller"]["parameters"] < 500_000_000


def test_my_output_is_repetitive(trained: Agent) -> None:
    found = trained.ask("measure_text", text="the cat sat on the mat. " * 40)
    assert (
        found["verdict"] == "repetitive"
        and found["C"] < 0.2
        and found["loop_period"] == 24
        and found["distinct"] < 0.05
    )
    assert any("temperature" in text for text in found["tries"])
    assert trained.ask("measure_text", text=(ROOT / "README.md").read_text()[:4000])["verdict"] == "structured"
    assert set(trained.ask("measure_text", text="the cat sat on the mat. " * 40, run="one", window=256)["kinds"]) <= {
        "repetitive",
        "off-domain",
    }


def test_why_does_my_gate_fire_all_the_time(trained: Agent) -> None:
    assert trained.ask("gate_status", run="one")["calibrated"]
    draw = random.Random(0)
    noise = "".join(chr(draw.randint(33, 126)) for _ in range(6000))
    found = trained.ask("diagnose_gate", run="one", text=noise, windows=16)
    assert found["blocked"] > 0.5 and found["verdict"] in ("off-domain", "noise") and found["tries"]
    assert found["medians"]["S"] < found["floors"]["S"]
    own = trained.ask("diagnose_gate", run="one", data=trained.data, windows=100)  # type: ignore[attr-defined]
    assert own["verdict"] == "as calibrated" and own["blocked"] <= own["expected"][1] + 0.02
    samples = trained.ask(
        "diagnose_gate", run="one", temperature=0.0, windows=4
    )  # a model that says one thing over and over
    assert samples["verdict"] == "repetitive" and samples["blocked"] == 1


def test_set_thresholds_for_production(trained: Agent) -> None:
    job = trained.done("calibrate_gate", run="one", data=[trained.data], alpha=0.05)  # type: ignore[attr-defined]
    assert job["result"]["alpha"] == 0.05
    for row in job["result"]["lengths"]:
        low, high = row["alarms"]
        assert low <= 0.05 <= high and 0 <= row["C_floor"] < row["C_median"]


def test_drift(recorded: Agent) -> None:
    found = recorded.ask("drift", run="drifted")
    assert found["alerts"] == [{"step": 150, "metric": "C", "detector": "page-hinkley", "size": -0.12}]
    assert recorded.ask("drift", run="plain-0")["alerts"] == []


def test_a_curriculum(trained: Agent) -> None:
    started = trained.done(
        "start_run",
        name="grown",
        data=[trained.data],
        model={**_small(), "num_layers": 2},
        train={"steps": 30, "batch_size": 2, "amp": False, "eval_bytes": 512, "progressive": {}},
    )  # type: ignore[attr-defined]
    assert started["result"]["status"] == "finished"
    assert trained.ask("show_run", run="grown")["config"]["train"]["progressive"]["patience"] == 1


def _small() -> dict[str, Any]:
    from tests.mcp.conftest import TINY

    return TINY


def test_an_evaluation_against_gpt2(recorded: Agent) -> None:
    found = recorded.ask("plan_comparison", models=["ours", "gpt2"], difference=0.02, deviation=0.02, power=0.8)
    assert found["seeds"] in (10, 11) and found["power"] >= 0.8  # d = 1: ten pairs by a t-test
    assert found["rows"][0]["command"].startswith("btlm train") and "not per token" in " ".join(found["rules"])
    few = recorded.ask("plan_comparison", models=["ours", "gpt2"], seeds=3)
    assert few["smallest_p"] == 0.25 and few["warnings"]


def test_significance(recorded: Agent) -> None:
    rows = {name: [f"{name}-{i}" for i in range(6)] for name in ("wide", "plain")}
    found = recorded.ask("test_significance", runs_a=rows["wide"], runs_b=rows["plain"])
    assert found["p"] == 2 / 64 and found["high"] < 0 and found["n"] == 6
    assert recorded.ask("test_significance", a=[1.0, 2.0, 3.0], b=[1.1, 1.9, 3.2], comparisons=4)["p_corrected"] == 1


def test_write_up_my_findings_honestly(recorded: Agent) -> None:
    found = recorded.ask("draft_report")
    assert len(found["claims"]) == 1 and "wide-0 is better" in found["claims"][0] and "Holm" in found["claims"][0]
    assert "not-a-number: failed" in found["failed"]
    assert (
        any("one seed" in text for text in found["not_shown"])
        and "## What is not shown" in found["markdown"]["untrusted_data"]
    )
    assert any("does not beat xz" in text for text in found["not_shown"])


def test_reversible_against_standard_layers(trained: Agent) -> None:
    fields = {"preset": "tiny", "train": {"batch_size": 32, "amp": False}}
    found = trained.ask(
        "compare_settings",
        **fields,
        seconds=0,
        variants=[["model.num_layers=24"], ["model.num_layers=24", "model.reversible=true"]],
    )
    plain, reversible = found["variants"]
    assert reversible["peak_ratio"] < 0.7 and reversible["activations"] < 0.2 * plain["activations"]
    assert "no difference shown" in reversible["says"]
    timed = trained.ask(
        "compare_settings",
        preset="1",
        seconds=0.2,
        variants=[[], ["model.num_layers=2"]],
    )
    assert timed["variants"][1]["time_ratio"] > 0


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_is_a_prompt_that_names_tools_that_there_are(recorded: Agent, name: str) -> None:
    async def get() -> Any:
        return await recorded.client.get_prompt(name, {})

    text = recorded.portal.call(get).messages[0].content.text
    named = set(re.findall(r"\b[a-z]+_[a-z_]+\b|\bdrift\b|\bhardware\b", text)) & set(TOOLS)
    assert named and "{" not in text.split("Answer with")[0].replace("{}", "")


def test_prompts_take_their_arguments(recorded: Agent) -> None:
    async def get(name: str, arguments: dict[str, str]) -> Any:
        return await recorded.client.get_prompt(name, arguments)

    assert "K=0.9" in recorded.portal.call(get, "interpret", {"K": "0.9"}).messages[0].content.text
    hostile = "{0.__class__} {log}"
    assert hostile in recorded.portal.call(get, "out_of_memory", {"log": hostile}).messages[0].content.text
    for name, arguments in (("nothing", {}), ("interpret", {"X": "1"})):
        with pytest.raises(Exception, match="Try"):
            recorded.portal.call(get, name, arguments)


def test_the_evaluation_set_is_answered_in_few_calls_and_tokens(recorded: Agent) -> None:
    import agents

    for question in json.loads(agents.QUESTIONS.read_text()):
        found = recorded.portal.call(agents.ask, recorded.client, question)
        assert found["right"] and found["calls"] <= 3 and found["tokens"] < 2000, (question, found)
