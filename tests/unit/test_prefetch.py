"""Batches that a thread draws ahead: the same ones, in the same order, from the same state on."""

from __future__ import annotations

import pytest
import torch

from bit_transformer.config import TrainConfig
from bit_transformer.data.prefetch import Prefetched
from bit_transformer.data.sources import bytes_corpus
from bit_transformer.data.windows import CorpusWindows
from bit_transformer.model import BitTransformerLM
from bit_transformer.training import Trainer
from bit_transformer.training.loop import _resized
from tests.conftest import prose

TEXT = prose(1, 1500)


def windows(seed: int = 0) -> CorpusWindows:
    return CorpusWindows(bytes_corpus(TEXT), 16, seed=seed)


def test_batches_drawn_ahead_are_those_drawn_at_once() -> None:
    plain, ahead = windows(), Prefetched(windows(), pin=False)
    assert len(ahead) == len(plain) and ahead.window_bytes == 16
    for count in (4, 4, 4, 7, 7, 1, 400):  # another size throws away what was drawn ahead, and draws it again
        assert torch.equal(ahead.draw(count).bits_BT, plain.draw(count).bits_BT)
        assert ahead.state_dict() == plain.state_dict()


def test_the_state_is_that_of_the_last_batch_given_and_a_training_goes_on_from_there() -> None:
    first = Prefetched(windows(), pin=False)
    for _ in range(5):
        first.draw(4)
    again, other = Prefetched(windows(), pin=False), Prefetched(windows(), pin=False)
    other.draw(9)
    for taken in (again, other):
        taken.load_state_dict(first.state_dict(), {})
    want = first.draw(4).bits_BT
    assert torch.equal(again.draw(4).bits_BT, want) and torch.equal(other.draw(4).bits_BT, want)


def test_an_error_of_the_thread_is_raised_where_the_batch_is_asked_for(monkeypatch) -> None:
    ahead = Prefetched(windows(), pin=False)
    ahead.draw(2)
    ahead._ahead.result()  # type: ignore[union-attr]  # the next one is drawn
    monkeypatch.setattr(ahead.windows, "draw", lambda count: 1 / 0)
    ahead.draw(2)  # was drawn before
    with pytest.raises(ZeroDivisionError):
        ahead.draw(2)


def test_windows_of_another_size_begin_with_the_next_epoch_as_without_a_thread() -> None:
    plain, ahead = windows(), Prefetched(windows(), pin=False)
    plain.draw(3), ahead.draw(3)
    larger = _resized(ahead, 32)
    assert isinstance(larger, Prefetched)
    assert torch.equal(larger.draw(3).bits_BT, plain.resized(32).draw(3).bits_BT)


def test_a_training_that_draws_ahead_is_the_same_training() -> None:
    losses = []
    for draw_ahead in (False, True):
        torch.manual_seed(0)
        model = BitTransformerLM(d_model=16, nhead=2, num_layers=1, max_seq_len=128)
        source = Prefetched(windows(), pin=False) if draw_ahead else windows()
        trainer = Trainer(model, source, TrainConfig(steps=6, batch_size=4))
        losses.append([trainer.update()["train_bpb"] for _ in range(6)])
    assert losses[0] == losses[1]
