"""Updates that wait for no device: nothing asks for a number unless an observer does."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bit_transformer.config import TrainConfig
from bit_transformer.errors import NonFiniteLoss
from bit_transformer.model import BitTransformerLM
from bit_transformer.training import Trainer, build_windows
from tests.conftest import prose

TEXT = prose(1, 1000)


class Asked(TorchDispatchMode):
    """Counts how often a number is fetched from a tensor, which on an accelerator waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, call, kinds, given=(), more=None):
        self.count += call is torch.ops.aten._local_scalar_dense.default
        return call(*given, **(more or {}))


def trainer_of(fields: dict, **config) -> Trainer:
    torch.manual_seed(0)
    model = BitTransformerLM(d_model=16, nhead=2, num_layers=2, max_seq_len=128, **fields)
    how = TrainConfig(steps=8, batch_size=8, accum_steps=2, **config)
    return Trainer(model, build_windows(model, TEXT, how), how)


def without_waiting(trainer: Trainer, monkeypatch) -> Trainer:
    """The way of accelerators, here."""
    trainer._on_processor = False
    monkeypatch.setattr(
        "bit_transformer.nn.reversible.Coupling.waits", property(lambda _: False, lambda *_: None), raising=False
    )
    return trainer


@pytest.mark.parametrize("fields", [{}, {"reversible": True}, {"lambda_K": 0.1, "lambda_C": 0.1}], ids=str)
def test_an_update_asks_for_no_number(fields: dict, monkeypatch) -> None:
    trainer = without_waiting(trainer_of(fields), monkeypatch)
    trainer.update()  # what is made once
    with Asked() as asked:
        record = trainer.update()
    assert asked.count == 0
    with asked:
        float(record["train_bpb"])
    assert asked.count == 1


@pytest.mark.parametrize("fields", [{}, {"reversible": True}], ids=str)
def test_updates_are_the_same_with_and_without_waiting(fields: dict, monkeypatch) -> None:
    plain = trainer_of(fields)
    want = [plain.update() for _ in range(8)]
    other = without_waiting(trainer_of(fields), monkeypatch)
    got = [other.update() for _ in range(8)]
    other.settle()
    for name in ("train_bpb", "grad_norm"):
        assert [float(r[name]) for r in got] == pytest.approx([r[name] for r in want], rel=1e-5)
    assert other.progress.train_bpb == pytest.approx(plain.progress.train_bpb, rel=1e-5)


@pytest.mark.parametrize("fields", [{}, {"reversible": True}], ids=str)
def test_a_loss_that_is_not_finite_is_noticed_later_and_leaves_finite_weights(fields: dict, monkeypatch) -> None:
    trainer = without_waiting(trainer_of(fields), monkeypatch)
    trainer.update()
    kept = trainer.model.head.weight.detach().clone()
    trainer.model.head.weight.data.fill_(math.nan)
    trainer.update()
    trainer.model.head.weight.data.copy_(kept)
    trainer.update()
    with pytest.raises(NonFiniteLoss, match="at step 2") as failed:
        trainer.settle()
    assert failed.value.step == 2
    assert all(p.isfinite().all() for name, p in trainer.model.named_parameters() if name != "head.weight")
    assert trainer.model.head.weight.isfinite().all()
