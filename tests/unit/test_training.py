from __future__ import annotations

import gzip
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bit_transformer.checkpoint import load_checkpoint
from bit_transformer.compression import compress_bits
from bit_transformer.config import RECORDED, TrainConfig
from bit_transformer.data.sources import bytes_corpus
from bit_transformer.errors import BitStreamError, CheckpointError, ConfigError, NonFiniteLoss
from bit_transformer.evaluation.metrics import Protocol, Score, bits_per_byte
from bit_transformer.model import BitTransformerLM, set_dropout, set_sparse
from bit_transformer.objectives import NextBit
from bit_transformer.tensor_file import read_tensors, write_tensors
from bit_transformer.training import (
    Record,
    StopTraining,
    Trainer,
    autocast,
    build_windows,
    cpu_autocast,
    losses,
    train_loop,
)
from bit_transformer.training.optim import split_parameters
from bit_transformer.training.run_lengths import RunLengths, coded
from tests.conftest import TEXT, prose, random_bits, random_model

SHAPE = {
    "d_model": 32, "nhead": 2, "num_layers": 2, "max_seq_len": 256, "dropout": 0.1,
    "ngram_orders": (2, 3), "ngram_rows": 256, "ngram_dropout": (0.3, 0.5),
}  # fmt: skip
HELD_OUT = bytes_corpus(TEXT[-2000:])


def new_trainer(**fields: object) -> Trainer:
    config = TrainConfig.of({"steps": 12, "batch_size": 4, "seed": 7, "eval_every": 0.25, **fields})
    torch.manual_seed(config.seed)
    model = BitTransformerLM(**SHAPE)
    return Trainer(model, build_windows(model, bytes_corpus(TEXT[:-2000]), config), config, HELD_OUT)


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_training_learns_a_text_it_can_learn():
    model = BitTransformerLM(**{**SHAPE, "dropout": 0.0})
    history = train_loop(model, TEXT, steps=60, batch_size=8, validation=TEXT[:1000], optim={"table_lr": 0.02})
    assert math.isclose(history[0]["train_bpb"], 8.0, rel_tol=1e-6)
    assert history[-1]["val_bpb"] < 3.0
    assert [r["step"] for r in history] == list(range(1, 61))
    assert not model.training


def test_two_runs_of_one_seed_are_equal_bit_for_bit_and_of_two_are_not():
    first, second, other = new_trainer(), new_trainer(), new_trainer(seed=8)
    for trainer in (first, second, other):
        trainer.run()
    assert same(weights(first.model), weights(second.model))
    assert not same(weights(first.model), weights(other.model))


@pytest.mark.parametrize("stop_at", [1, 5, 11])
def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(tmp_path, stop_at):
    whole = new_trainer()
    whole.run()
    broken = new_trainer()

    def stop(trainer, record):
        if record["step"] == stop_at:
            raise StopTraining("interrupted")

    broken.observers = [stop]
    broken.run()
    broken.save(tmp_path / "t.safetensors")
    torch.manual_seed(999)
    resumed = new_trainer()
    resumed.load(tmp_path / "t.safetensors")
    assert resumed.progress.step == stop_at
    resumed.run()
    assert same(weights(whole.model), weights(resumed.model))
    for name, part in whole.optimizers.parts.items():
        theirs = resumed.optimizers.parts[name].state_dict()["state"]
        for index, state in part.state_dict()["state"].items():
            assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(theirs[index][k])) for k, v in state.items())
    assert resumed.progress.best_bpb == whole.progress.best_bpb
    for kept in ("best", "average"):
        theirs = getattr(resumed.kept, kept)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in getattr(whole.kept, kept).items())


def test_the_best_weights_are_kept_the_average_among_them(monkeypatch):
    values = iter(
        [5.0, 4.0, 4.5, 3.0, 3.5, 3.2]
    )  # of the latest weights, then of the average, validation by validation
    monkeypatch.setattr(
        "bit_transformer.training.validation.cost_of", lambda *_, **__: Score(next(values), 1, Protocol(1, 1))
    )
    trainer = new_trainer(steps=50, eval_every=0.34)
    seen = []

    def look(trainer, record):
        if "val_bpb" in record:
            seen.append((record["val_bpb"], {name: t.clone() for name, t in trainer.kept.average.items()}))

    trainer.observers = [look]
    trainer.run()
    assert [bpb for bpb, _ in seen] == [4.0, 3.0, 3.2] and trainer.progress.best_bpb == 3.0
    last = weights(trainer.model)
    assert all(torch.equal(tensor, trainer.best[name]) for name, tensor in seen[1][1].items())
    trainer.take_best()
    assert not same(last, weights(trainer.model))
    assert all(torch.equal(tensor, trainer.best[name]) for name, tensor in trainer.model.weights().items())


def test_the_average_forgets_exponentially():
    trainer = new_trainer(steps=100, average=0.1)  # entered every second update, with a weight of 1/50 / 0.1
    want, seen = None, []

    def follow(trainer, record):
        nonlocal want
        now = trainer.model.head.weight.detach().clone()
        if record["step"] % 2 == 0:
            want = now if want is None else torch.lerp(want, now, 0.2)
            seen.append(torch.allclose(trainer.kept.average["head.weight"], want, rtol=1e-6, atol=1e-7))

    trainer.observers = [follow]
    trainer.run()
    assert len(seen) == 50 and all(seen)
    without = new_trainer(average=0, keep_best=False)
    without.run()
    assert without.kept.average is None and without.best is None


def test_a_longer_budget_does_not_make_it_worse():
    """A short text is over-fitted in 50 passes; with the best weights kept they are worth what 20 passes are, and it is said."""
    test, found = bytes_corpus(prose(9, 400)), {}
    for epochs, keep_best in ((20, True), (50, True), (50, False)):
        torch.manual_seed(0)
        model = BitTransformerLM(d_model=48, nhead=2, num_layers=2, max_seq_len=256)
        config = TrainConfig(epochs=epochs, batch_size=4, amp=False, keep_best=keep_best, eval_every=0.1)
        trainer = Trainer(model, build_windows(model, prose(1, 250), config), config, bytes_corpus(prose(2, 200)))
        trainer.run()
        trainer.take_best()
        found[epochs, keep_best] = bits_per_byte(model, test).bpb
        assert 0 < trainer.progress.overfit_since < trainer.progress.step or epochs == 20
    assert found[50, True] < found[20, True] * 1.05  # the scatter between seeds is about 2 %
    assert found[50, True] < found[50, False] - 0.2


def test_a_training_of_another_config_is_not_resumed(tmp_path):
    trainer = new_trainer()
    trainer.save(tmp_path / "t.safetensors")
    with pytest.raises(CheckpointError, match="another train config"):
        new_trainer(batch_size=8).load(tmp_path / "t.safetensors")
    tensors, document = read_tensors(tmp_path / "t.safetensors")
    for key in ("progress", "windows"):
        write_tensors(tmp_path / "t.safetensors", tensors, {k: v for k, v in document.items() if k != key})
        with pytest.raises(CheckpointError, match="holds no training to resume"):
            new_trainer().load(tmp_path / "t.safetensors")


def test_accumulation_gives_the_gradient_of_the_whole_batch():
    grads = []
    for accum_steps in (1, 4):
        trainer = new_trainer(accum_steps=accum_steps)
        set_dropout(trainer.model, 0.0)
        trainer.model.trunk.ngrams.dropout = ()
        trainer.model.double()
        trainer.optimizers.step = lambda: None
        trainer.optimizers.zero_grad = lambda: None
        trainer.config = trainer.config.model_copy(update={"clip_norm": 0.0})
        trainer.model.train()
        trainer.update()
        grads.append([p.grad.to_dense() for p in trainer.model.parameters()])
    for one, four in zip(*grads, strict=True):
        torch.testing.assert_close(one, four, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("budget", "steps"), [({"steps": 3}, 3), ({"bytes": 3 * 4 * 32}, 3), ({"epochs": 0.01}, 2), ({"seconds": 5.0}, 5)]
)
def test_every_budget_ends_a_training_and_anneals_to_it(budget, steps):
    trainer = new_trainer(**{"steps": None, **budget})
    ticks = itertools.count()
    trainer.clock = lambda: next(ticks) / 2  # two looks at the clock an update
    rates = []
    trainer.observers = [lambda _, record: rates.append(record["rate"])]
    trainer.run()
    assert abs(len(rates) - steps) <= 1
    assert trainer.progress.share == 1.0
    assert trainer.progress.stopped == "budget spent"
    assert rates[-1] < max(rates) or steps < 4


def test_validation_comes_at_shares_of_the_budget_and_at_the_end():
    trainer = new_trainer()
    seen = []
    trainer.observers = [lambda _, r: seen.append(r["step"]) if "val_bpb" in r else None]
    trainer.run()
    assert seen == [3, 6, 9, 12]


def test_patience_stops_a_training_that_no_longer_improves(monkeypatch):
    values = iter([5.0, 4.0, 4.5, 4.2, 1.0])
    monkeypatch.setattr(
        "bit_transformer.training.validation.cost_of", lambda *_, **__: Score(next(values), 1, Protocol(1, 1))
    )
    trainer = new_trainer(steps=100, patience=2, eval_every=0.01, average=0)
    trainer.run()
    assert trainer.progress.stopped == "no better validation in the last 2"
    assert trainer.progress.best_bpb == 4.0 and trainer.progress.step == 4


def test_a_loss_that_is_not_finite_stops_before_the_update():
    trainer = new_trainer()
    with torch.no_grad():
        trainer.model.head.weight.fill_(float("nan"))
    before = weights(trainer.model)
    with pytest.raises(NonFiniteLoss, match="at step 1") as caught:
        trainer.run()
    assert caught.value.step == 1
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, weights(trainer.model), strict=True))


def test_gradients_of_an_interrupted_update_do_not_leak_into_the_next():
    clean, dirty = new_trainer(), new_trainer()
    for p in dirty.model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    for trainer in (clean, dirty):
        trainer.model.train()
        trainer.update()
    assert same(weights(clean.model), weights(dirty.model))


def test_no_clipping_means_no_clipping():
    models = []
    for clip_norm in (0.0, 1e9, 1e-3):
        torch.manual_seed(0)
        models.append(BitTransformerLM(**SHAPE))
        train_loop(models[-1], TEXT, TrainConfig(steps=2, batch_size=2, clip_norm=clip_norm))
    assert same(weights(models[0]), weights(models[1])) and not same(weights(models[0]), weights(models[2]))


def test_a_validation_that_is_not_finite_stops_too(monkeypatch):
    monkeypatch.setattr(
        "bit_transformer.training.validation.cost_of", lambda *_, **__: Score(float("nan"), 1, Protocol(1, 1))
    )
    with pytest.raises(NonFiniteLoss, match="validation"):
        new_trainer().run()


def test_what_a_byte_costs_is_counted():
    model = BitTransformerLM(d_model=128, nhead=4, num_layers=4, max_seq_len=2048)
    block, attention, head = 12 * 128**2, 2 * 128 * 257 / 2, 128 * 256
    assert math.isclose(model.flops_per_byte(training=False), 2 * (4 * (block + attention) + head))
    assert model.flops_per_byte() == 3 * model.flops_per_byte(training=False)
    total, active = model.num_parameters()
    assert total == sum(p.numel() for p in model.parameters()) and active == total - 256 * 128


def test_bit_windows_train_too():
    model = BitTransformerLM(d_model=16, nhead=2, num_layers=1, max_seq_len=64)
    history = train_loop(model, random_bits(20, 64), epochs=2, batch_size=5)
    assert len(history) == 8 and abs(history[0]["train_bpb"] - 8) < 1e-4


@pytest.mark.parametrize(
    ("data", "fields", "error", "text"),
    [
        (b"too short", {}, BitStreamError, "one window"),
        (random_bits(4, 300), {}, BitStreamError, "windows of 300 bits"),
        (random_bits(4, 64) * 2, {}, BitStreamError, "0 and 1"),
        (random_bits(1, 64)[0], {}, BitStreamError, "shape"),
        (TEXT, {"window": 1000}, ConfigError, "at most model.max_seq_len=256"),
        (TEXT, {"window": 4}, ConfigError, "first meet"),
        (3.5, {}, ConfigError, "float"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(data, fields, error, text):
    with pytest.raises(error, match=text):
        train_loop(BitTransformerLM(**SHAPE), data, steps=1, **fields)


def test_autocast_is_on_where_asked_for():
    assert isinstance(cpu_autocast(True), torch.autocast)
    assert not isinstance(cpu_autocast(False), torch.autocast)
    assert isinstance(autocast(torch.device("cpu"), True), torch.autocast)
    model = BitTransformerLM(**SHAPE)
    history = train_loop(model, TEXT, steps=3, batch_size=2, amp=True)
    assert all(math.isfinite(r["train_bpb"]) for r in history)
    assert model.head.weight.dtype == torch.float32


@pytest.mark.parametrize("patch_bits,parity", [(1, False), (1, True), (4, False), (9, True), (12, False)])
def test_every_kind_of_patch_trains(patch_bits, parity):
    model = BitTransformerLM(
        d_model=16, nhead=2, num_layers=1, patch_bits=patch_bits, parity=parity, max_seq_len=patch_bits * 72
    )
    history = train_loop(model, TEXT, steps=3, batch_size=2, validation=TEXT[:500])
    assert math.isclose(history[0]["train_bpb"], 9.0 if parity else 8.0, rel_tol=1e-5)
    assert history[-1]["val_bpb"] < history[0]["train_bpb"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # inductor warns about what it leaves to eager
@pytest.mark.parametrize("reversible", [False, True])
def test_a_compiled_trunk_trains_as_an_eager_one(reversible):
    histories = []
    for compile_model in (False, True):
        torch.manual_seed(0)
        model = BitTransformerLM(**{**SHAPE, "dropout": 0.0}, reversible=reversible)
        histories.append(train_loop(model, TEXT, steps=5, batch_size=4, compile_model=compile_model, seed=1))
    for eager, compiled in zip(*histories, strict=True):
        assert math.isclose(eager["train_bpb"], compiled["train_bpb"], rel_tol=1e-4)


def test_golden_losses():
    """Twenty float64 losses of a fixed training; a change here is a change of the mathematics."""
    torch.manual_seed(0)
    model = BitTransformerLM(**{**SHAPE, "dropout": 0.0, "ngram_dropout": ()}).double()
    history = train_loop(model, bytes_corpus(TEXT), steps=20, batch_size=4, seed=1, amp=False)
    got = [record["train_bpb"] for record in history]
    golden = Path(__file__).parents[1] / "golden" / "losses.txt"
    want = [float(line) for line in golden.read_text().split()]
    torch.testing.assert_close(
        torch.tensor(got, dtype=torch.float64), torch.tensor(want, dtype=torch.float64), rtol=1e-7, atol=0
    )


@pytest.mark.filterwarnings("ignore:.*older")
def test_a_training_from_before_the_trunk_was_a_module_goes_on_as_it_would_have(tmp_path):
    """The file names parameters without `trunk.`, and optimizer state by number. It was written at step 8 of 12, with the losses to come."""
    golden = Path(__file__).parents[1] / "golden"
    path = tmp_path / "training.safetensors"
    path.write_bytes(gzip.decompress((golden / "format-2-training.safetensors.gz").read_bytes()))
    want = json.loads((golden / "format-2-losses.json").read_text())
    text = b"".join(b"%d bottles of beer on the wall, %d bottles of beer. " % (n, n) for n in range(99, 9, -1))
    shape = {"d_model": 16, "nhead": 2, "num_layers": 2, "max_seq_len": 128, "ngram_orders": (2,), "ngram_rows": 256}
    model = BitTransformerLM(**shape, ngram_words=True)
    config = TrainConfig(steps=12, batch_size=4, eval_every=0.25, seed=3, amp=False)
    got = []
    trainer = Trainer(model, build_windows(model, text, config), config, bytes_corpus(text[:600]))
    trainer.observers = (lambda _, record: got.append(record["train_bpb"]),)
    trainer.load(path)
    assert trainer.progress.step == 8 and trainer.kept.average.keys() == model.weights().keys()
    trainer.run()
    assert got == pytest.approx(want["losses"], rel=1e-4)
    assert trainer.progress.best_bpb == pytest.approx(want["bpb"], rel=1e-4)
    older = load_checkpoint(golden / "format-2-plain.safetensors")
    assert older.weights().keys() == model.weights().keys()
    trainer.save(path)
    names = [name for name in read_tensors(path)[0] if name.startswith("optim.")]
    assert "optim.trunk.blocks.0.attend.out.weight.momentum" in names


def test_gradients_of_tables_are_dense_on_request_and_any_optimizer_takes_them():
    torch.manual_seed(0)
    models = [BitTransformerLM(**{**SHAPE, "dropout": 0.0, "ngram_dropout": ()}) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    set_sparse(models[1], False)
    bits = random_bits(2, 64)
    for model in models:
        losses(model, bits)[0].backward()
    sparse, dense = (model.trunk.ngrams.table.weight.grad for model in models)
    assert sparse.is_sparse and not dense.is_sparse and torch.equal(sparse.to_dense(), dense)
    torch.optim.AdamW(models[1].parameters()).step()
    assert not split_parameters(models[1])["table"] and split_parameters(models[0])["table"]


def test_windows_and_their_run_length_codes_are_learned_together():
    runs = np.repeat(np.arange(4000) % 2, np.random.default_rng(0).integers(1, 90, 4000)).astype(np.uint8)
    data = np.packbits(runs[: len(runs) // 8 * 8]).tobytes()
    model = random_model(max_seq_len=512)
    history = train_loop(model, data, steps=30, batch_size=8, compress_prob=0.5, amp=False)
    coded = [record["coded_bpb"] for record in history if "coded_bpb" in record]
    assert len(coded) > 20 and coded[-1] < coded[0] - 1
    assert history[-1]["train_bpb"] < history[0]["train_bpb"]
    plain = train_loop(random_model(max_seq_len=512), data, steps=2, batch_size=8, amp=False)
    assert "coded_bpb" not in plain[0]


def test_the_loss_of_codes_is_that_of_their_bits_alone():
    model = random_model(max_seq_len=512)
    bits_BT = torch.zeros(3, 512, dtype=torch.uint8)
    bits_BT[1, 100:] = 1
    code_BT, real_BT = coded(bits_BT, model)
    assert real_BT.sum(1).tolist() == [8 * len(code) for code in compress_bits(bits_BT)]
    made = RunLengths(NextBit(), 1.0)(model, bits_BT)
    nats, fraction = made.coded
    whole = model.nll(code_BT)
    expected = sum(whole[row][real_BT[row]].mean() for row in (1, 2)) / 2
    first = code_BT.clone(), real_BT.clone()
    assert fraction == pytest.approx(2 / 3) and torch.equal(first[0], coded(bits_BT, model)[0])
    torch.testing.assert_close(nats, expected.detach())
    torch.testing.assert_close(made.loss, model.nll(bits_BT[:1]).mean() / 3 + expected * 2 / 3)


def test_codes_need_company_and_a_model_that_reads_forwards():
    with pytest.raises(ConfigError, match="compress_prob"):
        train_loop(random_model(max_seq_len=64), b"abcd" * 100, steps=1, batch_size=1, compress_prob=0.5)


def test_the_metrics_that_doors_know_are_those_of_records():
    assert set(RECORDED) == Record.__annotations__.keys() - {"step"}
