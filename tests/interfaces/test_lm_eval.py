"""Models on tasks of the evaluation harness: every figure is computed a second way."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.checkpoint import save_checkpoint
from bit_transformer.config import Sampling
from bit_transformer.decoding.generation import generate_bytes
from bit_transformer.errors import BitTransformerError, Cancelled, ConfigError
from bit_transformer.evaluation.metrics import Protocol, bits_per_byte
from bit_transformer.model import BitTransformerLM
from bit_transformer.service.jobs import Job, Reading
from bit_transformer.service.operations import call
from bit_transformer.service.workspace import Workspace
from tests.conftest import ROOT, random_bits, random_model

pytest.importorskip("lm_eval")
datasets = pytest.importorskip("datasets")

from bit_transformer.adapters.lm_eval import HarnessLM, _begun, _how, _windows  # noqa: E402

SHAPES = {
    "bytes": {"patch_bits": 8, "max_seq_len": 512},
    "bits": {"patch_bits": 1, "max_seq_len": 512},
    "parity": {"patch_bits": 9, "parity": True, "max_seq_len": 576},
    "words": {"patch_bits": 12, "max_seq_len": 480},
    "experts": {"patch_bits": 8, "max_seq_len": 512, "experts": True},
}


def model_of(kind: str) -> BitTransformerLM:
    model = random_model(**SHAPES[kind])
    if model.config.experts:
        model.learn(random_bits(2, 512))
    return model


def asks(*args: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=one) for one in args]


def texts(seed: int, *sizes: int) -> list[str]:
    random = np.random.default_rng(seed)
    return ["".join(chr(code) for code in random.integers(97, 123, size)) for size in sizes]


def nats_of_bytes(model: BitTransformerLM, text: bytes) -> np.ndarray:
    """The cost of each byte of a text that fits a window, by `nll` alone."""
    c = model.config
    padded = text + bytes(-len(text) % c.align_bytes)
    bits_BT = torch.from_numpy(bytes_to_bits(padded, parity=c.parity))[None]
    with torch.inference_mode():
        return model.nll(bits_BT).double().view(-1, c.byte_bits).sum(-1).numpy()[: len(text)]


# ---- log-likelihoods ----


@pytest.mark.parametrize("kind", SHAPES)
def test_log_likelihoods_are_sums_of_the_models_own_costs(kind):
    model = model_of(kind)
    context, other, *continuations = texts(1, 20, 7, 3, 1, 9)
    pairs = [(one, two) for one in (context, other, "") for two in (*continuations, "ä€")] + [(context, "")]
    got = HarnessLM(model=model, batch_size=4).loglikelihood(asks(*pairs))
    for (one, two), (nats, _) in zip(pairs, got, strict=True):
        costs = nats_of_bytes(model, one.encode() + two.encode())
        assert nats == pytest.approx(-costs[len(one.encode()) :].sum(), abs=2e-4), (one, two)
    assert got[-1] == (0.0, True)


@pytest.mark.parametrize("kind", SHAPES)
def test_the_greedy_flag_says_what_greedy_decoding_gives(kind):
    model = model_of(kind)
    how = Sampling(temperature=0.0)
    lm = HarnessLM(model=model)
    for context in texts(2, 12, 5, 90):
        (made,) = generate_bytes(model, [context.encode()], 6, how)
        right = [made[:size] for size in (1, 2, 6)]
        wrong = [made[:2] + bytes([made[2] ^ 1]), bytes([made[0] ^ 128])]
        pairs = [(context, one.decode("utf-8", "surrogateescape")) for one in (*right, *wrong)]
        flags = [greedy for _, greedy in lm.loglikelihood(asks(*pairs))]
        assert flags == [True, True, True, False, False]


def test_a_long_context_and_a_long_continuation_are_scored_in_windows_each_byte_once():
    model = model_of("bytes")  # windows of 64 bytes
    context, continuation = texts(3, 200, 150)
    lm = HarnessLM(model=model, overlap=0.5, batch_size=3)
    text = (context + continuation).encode()
    wanted, done = 0.0, 200
    while done < 350:
        stop = min(350, done + 32)
        wanted += nats_of_bytes(model, text[stop - 64 : stop])[64 - (stop - done) :].sum()
        done = stop
    (long, _), (short, _) = lm.loglikelihood(asks((context, continuation), (context, continuation[:5])))
    assert long == pytest.approx(-wanted, abs=1e-3)
    assert short == pytest.approx(-nats_of_bytes(model, text[141:205])[-5:].sum(), abs=1e-4)


def test_experts_have_read_the_whole_context_not_only_the_window():
    model = model_of("experts")
    context, continuation = texts(3, 200, 5)
    text = (context + continuation).encode()
    ((nats, _),) = HarnessLM(model=model).loglikelihood(asks((context, continuation)))
    units = np.frombuffer(text, np.uint8)
    features = model.bank.read(units, model.bank.stream(), learn=False).reshape(1, 8 * len(text), -1)
    window = slice(len(text) - 64, len(text))
    bits_BT = torch.from_numpy(bytes_to_bits(text[window]))[None]
    with torch.inference_mode():
        cost = model.nll(bits_BT, torch.from_numpy(features[:, 8 * window.start :])).view(64, 8).sum(-1)
    assert nats == pytest.approx(-float(cost[-5:].sum()), abs=1e-4)


def test_sampled_answers_to_one_question_differ():
    how = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12}
    made = HarnessLM(model=model_of("bytes"), batch_size=1).generate_until(asks(*[("the", how)] * 4))
    assert len(set(made)) == 4


@pytest.mark.parametrize("align", [1, 3])
def test_windows_score_every_byte_once_with_at_least_the_overlap(align):
    protocol = Protocol(window=12 * align, stride=6 * align)
    for first in range(0, 80, 7):
        for size in range(first, 120, 11):
            found = list(_windows(0, first, size, protocol, align))
            done = first
            for window in found:
                assert (
                    window.first == done and window.start % align == 0 and window.stop - window.start <= protocol.window
                )
                assert window.start == 0 or done - window.start >= protocol.stride - align + 1
                done = window.stop
            assert done == size or (first == size and not found)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("size", [1, 50, 300])
def test_rolling_log_likelihoods_are_our_bits_per_byte(kind, size):
    model = model_of(kind)
    (text,) = texts(4, size)
    lm = HarnessLM(model=model)
    (nats,) = lm.loglikelihood_rolling(asks((text,)))
    assert -nats / size / math.log(2) == pytest.approx(bits_per_byte(model, text.encode(), lm.protocol).bpb, rel=1e-12)
    if size <= 50:
        ((whole, _),) = lm.loglikelihood(asks(("", text)))
        assert whole == pytest.approx(nats, abs=1e-3)
    assert lm.loglikelihood_rolling(asks(("",))) == [0.0]


def test_experts_learn_only_where_that_is_asked_for():
    model = model_of("experts")
    before = {name: table.copy() for name, table in model.bank.state_dict().items()}
    (text,) = texts(5, 40)
    text *= 5
    frozen, online = (HarnessLM(model=model, learning=learning) for learning in ("static", "online"))
    asked = asks((text,))
    assert frozen.loglikelihood_rolling(asked) == frozen.loglikelihood_rolling(asked)
    learned = online.loglikelihood_rolling(asked)
    assert learned == online.loglikelihood_rolling(asked) and learned != frozen.loglikelihood_rolling(asked)
    pair = asks((text[:150], text[150:]))
    assert online.loglikelihood(pair)[0][0] != frozen.loglikelihood(pair)[0][0]
    online.generate_until(asks((text, {"max_gen_toks": 4})))
    assert all(np.array_equal(table, before[name]) for name, table in model.bank.state_dict().items())


def test_any_bytes_can_be_scored_and_generated():
    model = model_of("bytes")
    data = bytes(range(256))[200:250]
    ((nats, _),) = HarnessLM(model=model).loglikelihood(asks(("", data.decode("utf-8", "surrogateescape"))))
    assert nats == pytest.approx(-nats_of_bytes(model, data).sum(), abs=1e-3)
    (made,) = HarnessLM(model=model).generate_until(
        asks((data.decode("utf-8", "surrogateescape"), {"max_gen_toks": 9}))
    )
    assert made.encode()  # what is no UTF-8 is marked, so that records of it can be written


# ---- generation ----


@pytest.mark.parametrize("kind", SHAPES)
def test_generation_stops_at_its_strings_and_equals_our_own(kind):
    model = model_of(kind)
    prompts = [*texts(6, 9, 3, 14), ""]
    greedy = [generate_bytes(model, [prompt.encode()], 12, Sampling(temperature=0.0))[0] for prompt in prompts]
    lm = HarnessLM(model=model, batch_size=3)
    whole = lm.generate_until(asks(*((prompt, {"max_gen_toks": 12, "do_sample": False}) for prompt in prompts)))
    assert whole == [made.decode("utf-8", "replace") for made in greedy]
    stops = [made[5:7].decode("utf-8", "surrogateescape") for made in greedy]
    cut = lm.generate_until(
        asks(*((p, {"max_gen_toks": 12, "until": [s]}) for p, s in zip(prompts, stops, strict=True)))
    )
    ends = [made[: made.find(made[5:7])].decode("utf-8", "replace") for made in greedy]
    assert cut == ends


def test_settings_of_a_generation_are_understood_or_refused():
    assert _how({}) == ((), 256, 0.0, 1.0)
    assert _how({"until": "ä", "max_new_tokens": 5, "temperature": 0.7}) == (("ä".encode(),), 5, 0.0, 1.0)
    sampled = {"until": ["a", ""], "do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_gen_toks": 3}
    assert _how(sampled) == ((b"a",), 3, 0.7, 0.9)
    with pytest.raises(ConfigError, match="'num_beams'"):
        _how({"num_beams": 4})


def test_a_stream_is_read_no_further_than_needed():
    read: list[bytes] = []

    def stream():
        for piece in (b"a", b"bc", b"d", b"e"):
            read.append(piece)
            yield piece

    assert _begun({b"", b"ab", b"abx", b"b"}, stream()) == {b"", b"ab"} and read == [b"a", b"bc"]
    assert _begun(set(), iter(())) == set()


# ---- tasks ----

DOCUMENTS = [
    {
        "question": "the cat sat on the",
        "choices": [" mat", " sea", " of"],
        "answer": 0,
        "page": "the cat sat on the mat " * 9,
    },
    {"question": "bits are", "choices": [" enough", " few", " x"], "answer": 1, "page": "bits are enough, ä €"},
    {"question": "", "choices": ["no", "yes", "maybe"], "answer": 2, "page": "a"},
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
{more}
metadata:
  version: 1.0
"""
TASKS = {
    "choices": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
""",
    "pages": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{page}}"
metric_list:
  - metric: bits_per_byte
  - metric: byte_perplexity
""",
    "completions": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{page}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 8
metric_list:
  - metric: exact_match
""",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three tasks on three documents."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "library"))
    made = tmp_path / "my-tasks"
    made.mkdir()
    (made / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in DOCUMENTS))
    for name, more in TASKS.items():
        (made / f"{name}.yaml").write_text(TASK.format(name=name, data=made / "data.jsonl", more=more))
    return made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    save_checkpoint(path / "model.safetensors", model_of("experts"))
    return path


def test_tasks_of_a_folder_give_the_figures_of_our_own_measures(btlm, folder, run):
    done = btlm("harness", run, "--include", folder, "--json", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    scores = {task["task"]: task for task in found["tasks"]}
    assert scores.keys() == TASKS.keys() and all(task["documents"] == task["of"] == 3 for task in scores.values())
    assert "static" in found["protocol"] and found["harness"]
    model = model_of("experts")
    pages = [one["page"].encode() for one in DOCUMENTS]
    protocol = HarnessLM(model=model).protocol
    bits = sum(bits_per_byte(model, page, protocol).bits for page in pages)
    assert {"acc"} <= {name for task in scores.values() for name in task["errors"]}
    metrics = scores["pages"]["metrics"]
    assert metrics["bits_per_byte"] == pytest.approx(bits / sum(map(len, pages)), rel=1e-9)
    assert metrics["byte_perplexity"] == pytest.approx(2 ** metrics["bits_per_byte"], rel=1e-9)
    right = 0
    for one in DOCUMENTS:
        costs = []
        for choice in one["choices"]:
            text = one["question"] + " " * bool(one["question"] and choice[0] != " ") + choice
            costs.append(nats_of_bytes(model, text.encode())[len(text) - len(choice) :].sum())
        right += int(np.argmin(costs) == one["answer"])
    assert scores["choices"]["metrics"]["acc"] == pytest.approx(right / 3)
    assert scores["completions"]["metrics"]["exact_match"] == 0.0
    shown = btlm("harness", run, "--include", folder, "--tasks", "pages,choices", "--limit", 1)
    assert shown.returncode == 0 and "bits_per_byte" in shown.stdout and "1 of 3" in shown.stdout
    assert "exact_match" not in shown.stdout and "tokens are bytes" in shown.stdout


def test_what_cannot_be_asked_of_the_harness_is_one_line(btlm, folder, run, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = "task: broken\ndataset_path: json\ndataset_kwargs:\n  data_files: /no/such/file\ntest_split: test\noutput_type: multiple_choice\n"
    (folder / "broken.yaml").write_text(broken)
    for flags, said in (
        ([], "got no tasks; names of tasks or a folder of task files is needed. Try --include my-tasks"),
        (["--include", tmp_path / "none"], "a folder with task files (.yaml) is needed"),
        (["--include", empty], "which holds no task"),
        (["--tasks", "/etc/passwd"], "the name of a task is needed, and no path"),
        (["--include", folder, "--tasks", "broken"], "a task cannot be answered ("),
        (["--include", folder, "--tasks", "pages", "--protocol", "never"], "static or online is needed"),
    ):
        done = btlm("harness", run, *flags)
        assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    with pytest.raises(ConfigError, match="diffusion model"):
        HarnessLM(model=random_model(causal=False, max_seq_len=256))


def test_the_harness_says_how_far_it_is_and_can_be_stopped(folder, run, tmp_path):
    seen: list[Reading] = []
    asked = {"run": str(run), "include": folder, "tasks": ("choices",)}
    call("harness", asked, Workspace(tmp_path / "s.sqlite", "cpu"), Job(lambda one: seen.append(one)))
    assert seen and seen[-1].doing.startswith("harness") and seen[-1].done == seen[-1].total
    job = Job()
    job.cancel()
    with pytest.raises(Cancelled):
        call("harness", asked, Workspace(tmp_path / "s.sqlite", "cpu"), job)


@pytest.mark.slow
def test_a_task_that_is_nearly_one_of_the_harness_is_answered_with_it(btlm, run):
    """It reads the thousands of task files of the library."""
    done = btlm("harness", run, "--tasks", "arc_eesy")
    assert "got task 'arc_eesy'; the harness has none of that name. Try --tasks arc_easy" in done.stderr


def test_the_harness_finds_the_model_by_its_name_and_arguments(folder, run):
    evaluators, tasks = (importlib.import_module(f"lm_eval.{name}") for name in ("evaluator", "tasks"))
    manager = tasks.TaskManager(include_path=str(folder), include_defaults=False)
    arguments = f"run={run},overlap=0.25"
    lm = (
        importlib.import_module("lm_eval.api.registry")
        .get_model("btlm")
        .create_from_arg_string(arguments, {"device": "cpu"})
    )
    assert lm.protocol.stride == 48 and lm.get_model_info()["token"] == "byte" and lm.tokenizer_name == "bytes"
    found = evaluators.evaluate(lm, manager.load(["pages"]), bootstrap_iters=0)
    pages = [one["page"].encode() for one in DOCUMENTS]
    wanted = sum(bits_per_byte(lm.model, page, lm.protocol).bits for page in pages) / sum(map(len, pages))
    assert found["results"]["pages"]["bits_per_byte,none"] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.slow
def test_the_harness_own_command_knows_the_model(folder, run, tmp_path):
    arguments = [
        "--model",
        "btlm",
        "--model_args",
        f"run={run}",
        "--tasks",
        "pages",
        "--include_path",
        str(folder),
    ]
    command = [
        sys.executable,
        "-m",
        "bit_transformer.adapters.lm_eval",
        "run",
        *arguments,
        "--output_path",
        str(tmp_path / "out"),
    ]
    environment = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }

    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(written.read_text())["results"]["pages"]["bits_per_byte,none"]
    model = model_of("experts")
    pages = [one["page"].encode() for one in DOCUMENTS]
    protocol = HarnessLM(model=model).protocol
    wanted = sum(bits_per_byte(model, page, protocol).bits for page in pages) / sum(map(len, pages))
    assert found == pytest.approx(wanted, rel=1e-9)


def test_a_run_is_needed():
    for fields in ({}, {"run": "no-such-run"}):
        with pytest.raises(BitTransformerError):
            HarnessLM(**fields)
