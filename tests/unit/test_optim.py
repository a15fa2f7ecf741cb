from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from bit_transformer.config import OptimConfig
from bit_transformer.training.optim import Muon, Optimizers, clip_gradients, orthogonalize, schedule, split_parameters
from tests.conftest import random_bits, random_model


@pytest.mark.parametrize("shape", [(8, 8), (12, 5), (5, 12)])
def test_orthogonalize_keeps_directions_and_levels_singular_values(shape):
    g = torch.randn(3, *shape, dtype=torch.float64)
    got = orthogonalize(g, steps=5)
    for before, after in zip(g, got, strict=True):
        u, s, vt = torch.linalg.svd(before, full_matrices=False)
        inner = u.T @ after @ vt.T  # diagonal where the directions are kept
        assert_close(inner, torch.diag(inner.diagonal()), rtol=0, atol=1e-9)
        levelled = inner.diagonal()[s > 0.1 * s[0]]
        assert levelled.min() > 0.6 and levelled.max() < 1.3


def test_muon_makes_the_update_of_its_formula():
    p = torch.nn.Parameter(torch.randn(6, 4, dtype=torch.float64))
    grads = [torch.randn(6, 4, dtype=torch.float64) for _ in range(3)]
    optimizer = Muon([p], lr=0.1, momentum=0.9, weight_decay=0.01)
    want, average = p.detach().clone(), torch.zeros(6, 4, dtype=torch.float64)
    for grad in grads:
        p.grad = grad.clone()
        optimizer.step()
        average = 0.9 * average + 0.1 * grad
        nesterov = 0.1 * grad + 0.9 * average
        want = want * (1 - 0.1 * 0.01) - 0.1 * math.sqrt(6 / 4) * orthogonalize(nesterov[None])[0]
        assert_close(p.detach(), want, rtol=1e-12, atol=1e-12)


def test_every_parameter_has_one_optimizer():
    model = random_model(max_seq_len=64, ngram_orders=(2, 3), ngram_rows=16)
    kinds = split_parameters(model)
    placed = [id(p) for group in kinds.values() for p in group]
    assert sorted(placed) == sorted(id(p) for p in model.parameters())
    assert {p.ndim for p in kinds["matrix"]} == {2} and len(kinds["matrix"]) == 8
    assert len(kinds["table"]) == 1
    without = Optimizers(model, OptimConfig(muon=False))
    assert set(without.parts) == {"table", "adam"}


def test_the_schedule_rises_stays_and_falls():
    config = OptimConfig(warmup=0.1, decay=0.5, final_lr=0.2)
    at = [schedule(x, config) for x in (0, 0.05, 0.1, 0.3, 0.5, 0.75, 1.0, 1.5)]
    assert_close(torch.tensor(at), torch.tensor([0.1, 0.55, 1, 1, 1, 0.6, 0.2, 0.2]))
    assert schedule(0.0, OptimConfig(warmup=0)) == 1


def test_clipping_counts_every_gradient_once():
    model = random_model(max_seq_len=64, ngram_orders=(1, 2), ngram_rows=16)
    bits_BT = random_bits(2, 64)
    model.nll(bits_BT).sum().backward()
    dense = [p.grad.to_dense() if p.grad.is_sparse else p.grad for p in model.parameters()]
    want = math.sqrt(sum(float((g.double() ** 2).sum()) for g in dense))
    assert math.isclose(clip_gradients(model, 0), want, rel_tol=1e-5)
    assert math.isclose(clip_gradients(model, 0.5), want, rel_tol=1e-5)
    assert math.isclose(clip_gradients(model, 0), 0.5, rel_tol=1e-5)
