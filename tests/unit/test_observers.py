"""What a training's observers measure and draw, and that they change nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bit_transformer.bit_io import bytes_to_bits, find_parity_errors
from bit_transformer.config import Sampling, TrainConfig
from bit_transformer.data.sources import bytes_corpus
from bit_transformer.decoding.generation import generate_bytes
from bit_transformer.model import BitTransformerLM
from bit_transformer.service import observers
from bit_transformer.service.observers import PROBED, Probe, Samples
from bit_transformer.training import Trainer, build_windows
from tests.conftest import TEXT

SHAPE = {"d_model": 24, "nhead": 2, "num_layers": 2, "max_seq_len": 288, "dropout": 0.1}
EXPERTS = {"buckets": 1024, "history": 4096}


def new_trainer(model: dict[str, object] | None = None, **fields: object) -> Trainer:
    config = TrainConfig.of({"steps": 12, "batch_size": 4, "seed": 7, "eval_every": 0.25, "amp": False, **fields})
    torch.manual_seed(config.seed)
    made = BitTransformerLM(**{**SHAPE, "experts": None, **(model or {})})
    return Trainer(made, build_windows(made, TEXT[:-2000], config), config, bytes_corpus(TEXT[-2000:]))


@pytest.mark.parametrize(
    "model", [{}, {"patch_bits": 9, "parity": True}, {"patch_bits": 4, "parity": True}, {"experts": EXPERTS}]
)
def test_a_probe_measures_costs_by_position_as_a_slow_loop_does(model) -> None:
    trainer = new_trainer(model, telemetry=1)
    trainer.run()
    found, batch = Probe().measure(trainer), trainer.latest
    bits = batch.bits_BT[:PROBED]
    features = None if batch.features_BTF is None else batch.features_BTF[:PROBED]
    with torch.no_grad():
        nats = trainer.model.nll(bits, features).double().numpy()
    width = trainer.model.config.byte_bits
    assert {key for key in found if key.startswith("bit_")} == {f"bit_{place}" for place in range(width)}
    for place in range(width):
        costs = [cost / math.log(2) for row in nats for cost in row[place::width]]
        assert found[f"bit_{place}"] == pytest.approx(sum(costs) / len(costs), rel=1e-5, abs=1e-6)
    if not trainer.model.config.parity:
        assert "parity_errors" not in found
        return
    wrong = []
    for row, costs in zip(bits.numpy(), nats, strict=True):
        for at in range(0, len(row), 9):
            byte, right = row[at : at + 9].copy(), math.exp(-costs[at + 8])
            assert not len(find_parity_errors(byte))
            byte[8] ^= 1
            assert len(find_parity_errors(byte))  # what is sampled with the rest of the probability
            wrong.append(1 - right)
    assert found["parity_errors"] == pytest.approx(np.mean(wrong), rel=1e-5)


def test_a_diffusion_model_has_wrong_parity_but_no_costs_by_position() -> None:
    for noise in ("hidden", "flips"):
        trainer = new_trainer({"causal": False, "noise": noise, "patch_bits": 9, "parity": True}, telemetry=1, steps=4)
        trainer.run()
        found = Probe().measure(trainer)
        assert not any(key.startswith("bit_") for key in found) and 0 <= found["parity_errors"] <= 1


@pytest.mark.parametrize(
    "model, train",
    [
        ({}, {}),
        ({"experts": EXPERTS}, {}),
        ({"experts": EXPERTS}, {"feature_cache": 0}),  # the experts learn while they train
        ({"patch_bits": 9, "parity": True, "reversible": True}, {}),
        ({"d_model": 32, "dim_feedforward": 64}, {"qat": 8}),
    ],
)
def test_samples_change_nothing(monkeypatch, model, train) -> None:
    monkeypatch.setattr(observers, "SAMPLES_SHARE", 1e9)
    quiet, drawn = [], []
    one = new_trainer(model, **train)
    one.observers = [lambda _, record: quiet.append((record["train_bpb"], record.get("val_bpb")))]
    one.run()
    two, losses = new_trainer(model, sample_bytes=20, **train), []
    two.observers = [
        Samples(lambda step, data: drawn.append((step, data))),
        lambda _, record: losses.append((record["train_bpb"], record.get("val_bpb"))),
    ]
    two.run()
    assert losses == quiet and [step for step, _ in drawn] == [3, 6, 9, 12]
    assert all(len(data) == 20 for _, data in drawn)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    last = generate_bytes(two.model, [b""], 20, Sampling(seed=0), engine="torch")  # of the current weights
    assert drawn[-1][1] == last[0]


def test_samples_keep_to_their_share_of_the_time(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(observers.time, "perf_counter", lambda: now[0])

    def slow(*_: object, **__: object) -> list[bytes]:
        now[0] += 5
        return [b"abc"]

    monkeypatch.setattr(observers, "generate_bytes", slow)
    trainer, drawn = new_trainer(sample_bytes=3), []
    samples = Samples(lambda step, data: drawn.append(step))
    for step in range(1, 1001):
        trainer.progress.seconds = float(step)
        samples(trainer, {"step": step, "val_bpb": 1.0})
        samples(trainer, {"step": step})  # no validation
    # The first is not counted; then one each time five seconds are at most 2 % of what has passed.
    assert drawn[:4] == [1, 2, 251, 501] and samples.spent <= 0.02 * 1000 + 5


def test_no_samples_where_there_are_none_to_draw() -> None:
    drawn: list[int] = []
    for model, count in (({}, 0), ({"causal": False}, 8)):
        trainer = new_trainer(model, sample_bytes=count, steps=4)
        trainer.observers = [Samples(lambda step, data: drawn.append(step))]
        trainer.run()
    broken = new_trainer(sample_bytes=4)
    with torch.no_grad():
        broken.model.head.weight.fill_(math.nan)
    Samples(lambda step, data: drawn.append(step))(broken, {"step": 1, "val_bpb": 1.0})  # the loop raises the error
    assert not drawn


def test_bits_of_the_windows_are_those_of_bytes() -> None:
    """Position 0 is the first bit of a byte, whatever the patches are."""
    trainer = new_trainer({"patch_bits": 12}, steps=1)
    trainer.run()
    row = trainer.latest.bits_BT[0].numpy()
    assert bytes_to_bits(TEXT).tobytes().find(row.tobytes()) % 8 == 0
