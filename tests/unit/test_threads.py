"""Choosing threads by measuring."""

from __future__ import annotations

import pytest
import torch

from bit_transformer.config import TrainConfig
from bit_transformer.model import BitTransformerLM
from bit_transformer.service import threads
from bit_transformer.service.jobs import Job, Notice
from bit_transformer.service.threads import measured, threads_that_pay
from bit_transformer.training import Trainer, build_windows
from tests.conftest import TEXT


def new_trainer(**fields: object) -> Trainer:
    torch.manual_seed(0)
    model = BitTransformerLM(
        d_model=16, nhead=2, num_layers=1, max_seq_len=256, dropout=0.1, experts={"buckets": 1024, "history": 1024}
    )
    config = TrainConfig.of({"steps": 4, "batch_size": 4, **fields})
    return Trainer(model, build_windows(model, TEXT[:4000], config), config)


@pytest.fixture
def four_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(4)


def test_all_halvings_are_measured_and_the_least_counts(four_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []
    monkeypatch.setattr(threads.time, "perf_counter", lambda: clock[0])

    def call() -> None:
        calls.append(torch.get_num_threads())
        clock[0] += torch.get_num_threads() + (5 if len(calls) < 5 else 0)  # the first ones are disturbed

    assert measured(call, 4) == {4: 4.0, 2: 2.0, 1: 1.0}
    assert calls[:4] == [1, 4, 2, 1]


def test_no_memory_for_measuring_is_left_to_the_training(four_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(trainer: Trainer) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr(threads, "_pass", full)
    trainer = new_trainer()
    with threads_that_pay(trainer, Job()):
        assert torch.get_num_threads() == 4


@pytest.mark.parametrize(
    "seconds, used", [({4: 1.0, 2: 0.5, 1: 0.1}, 1), ({4: 1.0, 2: 0.5, 1: 0.6}, 2), ({4: 1.0, 2: 0.95, 1: 3.0}, 4)]
)
def test_the_fastest_number_is_used_and_said(
    four_threads: None, monkeypatch, seconds: dict[int, float], used: int
) -> None:
    monkeypatch.setattr(threads, "measured", lambda call, most: seconds)
    trainer, said = new_trainer(), []
    with threads_that_pay(trainer, Job(said.append)):
        assert torch.get_num_threads() == used == trainer.progress.threads
    assert torch.get_num_threads() == 4
    assert len(said) == (used < 4) and all(isinstance(n, Notice) and "OMP_NUM_THREADS" in n.text for n in said)


def test_measuring_changes_nothing_of_the_training(four_threads: None, tmp_path) -> None:
    measured_one, plain = new_trainer(), new_trainer()
    with threads_that_pay(measured_one, Job()):
        chosen = torch.get_num_threads()
        measured_one.run()
    torch.set_num_threads(chosen)
    plain.run()
    assert all(
        torch.equal(a, b) for a, b in zip(measured_one.model.parameters(), plain.model.parameters(), strict=True)
    )
    measured_one.save(tmp_path / "t")
    again = new_trainer()
    again.load(tmp_path / "t")
    torch.set_num_threads(3)
    with threads_that_pay(again, Job()):  # sums round differently with other threads
        assert torch.get_num_threads() == chosen


def test_what_the_user_chose_stays(four_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    trainer = new_trainer()
    with threads_that_pay(trainer, Job()):
        assert torch.get_num_threads() == 4 == trainer.progress.threads
    torch.set_num_threads(2)
    said: list[Notice] = []
    with threads_that_pay(trainer, Job(said.append)):  # of a training that goes on
        assert torch.get_num_threads() == 2
    assert "had 4 threads, and now has 2" in said[0].text
