"""What is said of memory before training, and what happens where it does not suffice."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.footprint import saved_for_backward
from bit_transformer.config import ModelConfig, TrainConfig
from bit_transformer.data.sources import bytes_corpus
from bit_transformer.decoding.session import Session
from bit_transformer.errors import ConfigError, OutOfMemory
from bit_transformer.experts.bank import ExpertBank
from bit_transformer.machine import free_memory
from bit_transformer.memory import estimate_memory, largest_batch, savings
from bit_transformer.model import BitTransformerLM
from bit_transformer.objectives import losses
from bit_transformer.service.settings import read_settings
from bit_transformer.training import Trainer
from bit_transformer.training.out_of_memory import is_out_of_memory
from tests.conftest import ROOT, TEXT, random_bits

SHAPE = {"d_model": 64, "nhead": 4, "num_layers": 3, "max_seq_len": 8 * 96}
SWITCHES = [
    {},
    {"dropout": 0.1},
    {"reversible": True},
    {"reversible": True, "dropout": 0.1, "num_layers": 6},
    {"use_checkpoint": True},
    {"use_checkpoint": True, "checkpoint_every": 2},
    {"chunk_size": 8 * 16},
    {"chunk_size": 8 * 40},
    {"chunk_size": 8 * 96},
    {"patch_bits": 1, "max_seq_len": 256},
    {"patch_bits": 9, "parity": True, "max_seq_len": 9 * 60, "dim_feedforward": 100},
    {"ngram_orders": (2, 3), "ngram_words": True, "ngram_rows": 64, "ngram_dropout": (0.1, 0.1, 0.2, 0.2)},
    {"experts": {"orders": (1, 2), "buckets": 1024, "history": 1024}},
]


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_what_is_kept_for_the_backward_pass_is_counted(switches, amp):
    model = BitTransformerLM(**{**SHAPE, **switches}).train()
    bits_BT = random_bits(4, model.config.max_seq_len)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        counted = saved_for_backward(lambda: model.nll(bits_BT).mean())
    guess = estimate_memory(model.config, TrainConfig(steps=1, batch_size=4, amp=amp))
    assert math.isclose(guess.activations + guess.logits // 2, counted, rel_tol=0.01)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_parameters_optimizer_cache_and_bank_are_those_of_the_model(switches):
    model = BitTransformerLM(**{**SHAPE, **switches})
    guess = estimate_memory(model.config, TrainConfig(steps=1, batch_size=2))
    assert guess.parameters == sum(p.nbytes for p in model.parameters())
    trainer = Trainer(model, _windows(model), TrainConfig(steps=1, batch_size=2))
    trainer.update()
    states = [value for state in trainer.optimizers.state_dict().values() for value in state.values()]
    moments = sum(v.nbytes for v in states if isinstance(v, torch.Tensor) and v.ndim > 0)
    assert guess.optimizer == moments
    session = Session(model, 3, engine="torch")
    used = estimate_memory(model.config, training=False, batch=3)
    assert used.cache == sum(layer.key_BHSK.nbytes + layer.value_BHSK.nbytes for layer in session.engine.cache.layers)
    if model.config.experts:
        assert used.experts == ExpertBank.of(model.config).memory


@pytest.mark.parametrize("noise", ["hidden", "flips"])
def test_a_diffusion_model_is_counted(noise):
    model = BitTransformerLM(**{**SHAPE, "causal": False, "noise": noise}).train()
    bits_BT = random_bits(4, model.config.max_seq_len)
    counted = saved_for_backward(lambda: losses(model, bits_BT)[0])
    guess = estimate_memory(model.config, TrainConfig(steps=1, batch_size=4, amp=False))
    assert math.isclose(guess.activations + guess.logits // 2, counted, rel_tol=0.02)
    assert guess.parameters == sum(p.nbytes for p in model.parameters())
    assert estimate_memory(model.config, training=False).cache == 0
    assert all("chunk_size" not in saving.settings for saving in savings(model.config, TrainConfig(steps=1)))


def _windows(model: BitTransformerLM):
    from bit_transformer.training import build_windows

    return build_windows(model, random_bits(2, model.config.max_seq_len), TrainConfig(steps=1))


def test_attention_maps_are_counted():
    model = BitTransformerLM(**SHAPE, full_attn_logging=True)
    maps = model(random_bits(2, model.config.max_seq_len)).telemetry["attention"]
    assert estimate_memory(model.config, training=False, batch=2).attention_maps == maps.nbytes


def test_the_largest_batch_fits_and_one_more_does_not():
    model, train = ModelConfig(**SHAPE), TrainConfig(steps=1)
    for budget in (20_000_000, 200_000_000):
        for world_size in (1, 2):
            most = largest_batch(model, train, budget, world_size=world_size)
            peaks = [
                estimate_memory(model, train.model_copy(update={"batch_size": most + more}), world_size=world_size).peak
                for more in (0, world_size)
            ]
            assert most % world_size == 0 and peaks[0] <= budget < peaks[1]
    assert largest_batch(model, train, 1_000_000) == 0
    assert largest_batch(model, train, 20_000_000, training=False) > largest_batch(model, train, 20_000_000)


def test_savings_are_sorted_true_and_leave_out_what_is_on():
    model, train = ModelConfig(**{**SHAPE, "num_layers": 12}), TrainConfig(steps=1, batch_size=64)
    found = savings(model, train)
    assert [saving.peak for saving in found] == sorted(saving.peak for saving in found)
    assert found[0].peak == estimate_memory(model, train, reversible=True).peak < estimate_memory(model, train).peak
    assert {saving.settings for saving in found} >= {"model.reversible=true", "train.accum_steps=2", "train.amp=true"}
    reversible = savings(ModelConfig(**SHAPE, reversible=True), train)
    assert not {"model.reversible=true", "model.use_checkpoint=true"} & {saving.settings for saving in reversible}


@pytest.mark.parametrize(
    "switches", [{}, {"use_checkpoint": True}, {"use_checkpoint": True, "checkpoint_every": 2}, {"reversible": True}]
)
def test_savings_are_settings_that_can_be_set_and_save_what_they_say(switches):
    model = ModelConfig(**{**SHAPE, "num_layers": 12, **switches})
    for saving in savings(model, TrainConfig(steps=1, batch_size=64)):
        set_ = read_settings(None, saving.settings.split())
        changed = ModelConfig.of(model.model_dump() | set_["model"])
        train = TrainConfig.of({"steps": 1, "batch_size": 64, **set_["train"]})
        assert (changed, train) != (model, TrainConfig(steps=1, batch_size=64))
        assert estimate_memory(changed, train).peak == saving.peak


def test_micro_batches_are_doubled_until_they_fit(monkeypatch):
    from bit_transformer.service import memory

    model, cpu = ModelConfig(**SHAPE), torch.device("cpu")
    train = TrainConfig(steps=1, batch_size=7, amp=False)

    def needs(rows: int, parts: int) -> int:
        found = estimate_memory(model, TrainConfig(steps=1, batch_size=rows * parts, accum_steps=parts))
        return found.peak - found.parameters

    for rows, parts in ((7, 1), (4, 2), (2, 4), (1, 7)):
        free = needs(rows, parts)
        monkeypatch.setattr(memory, "free_memory", lambda free=free: free)
        assert memory.micro_batches_that_fit(model, train, cpu) == parts
    monkeypatch.setattr(memory, "free_memory", lambda: needs(1, 7) - 1)
    assert memory.micro_batches_that_fit(model, train, cpu) is None
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    assert memory.micro_batches_that_fit(model, train, cpu) == 1


def test_a_resumed_training_keeps_its_micro_batches_and_may_get_more(tmp_path):
    def trainer(auto_batch: bool) -> Trainer:
        torch.manual_seed(0)
        model = BitTransformerLM(**SHAPE, dropout=0.1)
        return Trainer(model, _windows(model), TrainConfig(steps=3, batch_size=2, auto_batch=auto_batch, amp=False))

    first = trainer(auto_batch=False)
    first.update()
    first.progress.micro_batches = 2
    first.save(tmp_path / "state")
    second = trainer(auto_batch=True)
    second.load(tmp_path / "state")
    assert second.micro_batches == 2
    for each in (first, second):
        each.update()
    assert all(map(torch.equal, first.model.parameters(), second.model.parameters()))


def test_no_memory_for_validation_is_said_too(monkeypatch):

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr("bit_transformer.training.validation.cost_of", full)
    model = BitTransformerLM(**SHAPE)
    trainer = Trainer(model, _windows(model), TrainConfig(steps=1, batch_size=2), bytes_corpus(TEXT[:500]))
    with pytest.raises(OutOfMemory, match="Try"):
        trainer.run()


def test_devices_share_parameters_and_batch():
    model, train = ModelConfig(**SHAPE), TrainConfig(steps=1, batch_size=8)
    alone, shared = estimate_memory(model, train), estimate_memory(model, train, world_size=4)
    assert math.isclose(shared.activations, alone.activations / 4, rel_tol=0.01)
    assert shared.optimizer == alone.optimizer // 4
    with pytest.raises(ConfigError, match="not shared evenly by world_size=3"):
        estimate_memory(model, train, world_size=3)
    with pytest.raises(ConfigError, match="world_size=0"):
        estimate_memory(model, train, world_size=0)
    used, halves = (estimate_memory(model, training=False, batch=4, world_size=size) for size in (1, 2))
    assert halves.cache == used.cache // 2
    with pytest.raises(ConfigError, match="Try a batch of 4"):
        estimate_memory(model, training=False, batch=3, world_size=2)
    with pytest.raises(ConfigError, match=r"Try model\.config"):
        estimate_memory(BitTransformerLM(**SHAPE))
    each = TrainConfig(steps=1, batch_size=4)  # one window for each of four devices: no more micro-batches to offer
    assert not any("accum_steps" in saving.settings for saving in savings(model, each, world_size=4))


def test_free_memory_is_what_the_system_or_the_control_group_says(tmp_path: Path):
    from bit_transformer import machine

    free = free_memory()
    assert free is None or 0 < free < 1 << 50
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 300\n")
    assert machine._control_group(tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert machine._control_group(tmp_path) is None


def test_errors_of_memory_are_known_from_others():
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("no"))
    with pytest.raises(RuntimeError) as real:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(real.value)
    assert not is_out_of_memory(RuntimeError("shape mismatch")) and not is_out_of_memory(
        ValueError("can't allocate memory")
    )


# In a process whose address space is limited once it is warm: allocations then fail as they do where memory is full.
LIMITED = """
import json, resource, sys
import torch
from bit_transformer.errors import OutOfMemory
from bit_transformer.model import BitTransformerLM
from bit_transformer.training import train_loop
torch.set_num_threads(1)
shape = dict(d_model=64, nhead=2, num_layers=4, max_seq_len=8 * 256)
text = b"a line of some text. " * 4000
train_loop(BitTransformerLM(**shape), text, steps=1, batch_size=1, amp=False)
size = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + 150_000_000, resource.RLIM_INFINITY))
parts = []
torch.manual_seed(0)
try:
    history = train_loop(
        BitTransformerLM(**shape), text, steps=2, batch_size=64, amp=False, auto_batch=sys.argv[1] == "auto",
        observers=[lambda trainer, record: parts.append(trainer.micro_batches)],
    )
    print(json.dumps({"parts": parts, "bpb": [record["train_bpb"] for record in history]}))
except OutOfMemory as error:
    print(json.dumps({"error": str(error)}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_out_of_memory_is_met_with_advice_or_with_smaller_micro_batches():
    import json

    def run(how: str) -> dict[str, object]:
        done = subprocess.run([sys.executable, "-c", LIMITED, how], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    advice = str(run("plain")["error"])
    assert len(advice.splitlines()) == 1
    for part in (
        "out of memory at step 1",
        "64 windows in 1 micro-batch",
        "model.reversible=true",
        "train.auto_batch=true",
    ):
        assert part in advice
    found = run("auto")
    assert found["parts"][0] >= 2 and found["parts"][0] == found["parts"][-1]
    torch.manual_seed(0)
    whole = _losses(accum_steps=found["parts"][0])
    assert found["bpb"] == pytest.approx(whole, rel=1e-5)


def _losses(accum_steps: int) -> list[float]:
    from bit_transformer.training import train_loop

    model = BitTransformerLM(d_model=64, nhead=2, num_layers=4, max_seq_len=8 * 256)
    history = train_loop(
        model, b"a line of some text. " * 4000, steps=2, batch_size=64, accum_steps=accum_steps, amp=False
    )
    return [record["train_bpb"] for record in history]


def test_a_training_that_outgrows_memory_says_so_and_other_errors_pass(monkeypatch):
    model = BitTransformerLM(**SHAPE)
    trainer = Trainer(model, _windows(model), TrainConfig(steps=1, batch_size=2))

    def fail(error: Exception):
        def step() -> None:
            raise error

        return step

    monkeypatch.setattr(trainer.optimizers, "step", fail(torch.OutOfMemoryError("no")))
    with pytest.raises(OutOfMemory, match="out of memory at step 1"):
        trainer.run()
    monkeypatch.setattr(trainer.optimizers, "step", fail(RuntimeError("another")))
    with pytest.raises(RuntimeError, match="another"):
        trainer.run()


def test_a_training_that_will_not_fit_is_noticed_before_it_starts(btlm, text_file, monkeypatch):
    from bit_transformer.service import memory

    monkeypatch.setattr(memory, "free_memory", lambda: 30_000_000)
    text_file.write_bytes(TEXT * 4)
    flags = ["train", str(text_file), "--no-experts", "--steps", "1", "--batch-size", "64"]
    flags += ["--set", "model.ngram_rows=1024", "--set", "model.max_seq_len=512", "--set", "model.num_layers=1"]
    done = btlm(*flags, "--out", "runs/a")
    assert done.returncode == 0 and "memory may be too small" in " ".join(done.stderr.split())
    done = btlm(*flags, "--out", "runs/b", "--auto-batch")
    assert done.returncode == 0 and "updates now use" in " ".join(done.stderr.split()), done.stderr
