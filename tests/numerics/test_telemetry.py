"""K, C and S against slow twins, their ranges, and what a gradient of them does to a training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.data.sources import bytes_corpus
from bit_transformer.data.windows import CorpusWindows
from bit_transformer.errors import BitStreamError
from bit_transformer.model import BitTransformerLM, as_pair
from bit_transformer.objectives import losses
from bit_transformer.telemetry import bit_negentropy, lz_complexity, negentropy, penalties, symbiosis
from bit_transformer.telemetry.lempel_ziv import count_phrases
from bit_transformer.telemetry.measures import fair_coin_phrases
from bit_transformer.training import train_loop
from tests.conftest import TEXT, random_bits, random_model
from tests.reference import telemetry as slow

LENGTHS = [64, 128, 200, 256, 512, 1024, 3000, 4096, 16_384, 65_536]


# ---- against the twins ----


def test_negentropy_of_predictions_is_its_formula() -> None:
    z = torch.randn(3, 40, dtype=torch.float64) * 4
    want = [slow.negentropy(row.tolist()) for row in z]
    assert_close(negentropy(as_pair(z)), torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert negentropy(as_pair(torch.zeros(1, 5))).item() == 0
    assert negentropy(as_pair(torch.full((1, 5), math.inf))).item() == 1
    shifted = torch.stack((z + 3, 2 * z + 3), dim=-1)  # only the difference counts
    assert_close(negentropy(shifted), negentropy(as_pair(z)))


@pytest.mark.parametrize("k", [1, 3, 5, None])
def test_negentropy_of_bits_is_its_formula(k: int | None) -> None:
    bits = random_bits(4, 150)
    bits[1] = 0
    bits[2] = torch.arange(150) % 3 == 0
    want = [slow.bit_negentropy(row.tolist(), k or 4) for row in bits]
    assert_close(bit_negentropy(bits, k), torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=70), st.integers(1, 4))
def test_phrases_are_counted_as_the_slow_twin_counts_them(bits: list[int], copies: int) -> None:
    bits = bits * copies
    assert count_phrases(np.array([bits], dtype=np.uint8))[0] == slow.lz76_phrases(bits)


def test_known_phrase_counts() -> None:
    """Kaspar and Schuster's example, 0001101001000101, has six: 0 001 10 100 1000 101."""
    example = [int(c) for c in "0001101001000101"]
    assert count_phrases(np.array([example], dtype=np.uint8))[0] == 6
    assert count_phrases(np.zeros((1, 1000), dtype=np.uint8))[0] == 2
    assert count_phrases(np.zeros((2, 0), dtype=np.uint8)).tolist() == [0, 0]


def test_phrases_of_long_rows_do_not_depend_on_their_company() -> None:
    bits = random_bits(3, 20_000).numpy().astype(np.uint8)
    bits[1] = np.resize(bits[1, :777], 20_000)
    together = count_phrases(bits)
    assert together.tolist() == [count_phrases(row[None])[0] for row in bits]
    assert together[1] < together[0] / 5


def test_symbiosis_is_its_formula() -> None:
    p, q = torch.rand(3, 30, dtype=torch.float64), torch.rand(3, 30, dtype=torch.float64)
    p[0, :2] = torch.tensor([0.0, 1.0])
    q[0, :2] = torch.tensor([1.0, 1.0])
    want = [slow.symbiosis(a.tolist(), b.tolist()) for a, b in zip(p, q, strict=True)]
    assert_close(symbiosis(p, q), torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert_close(symbiosis(p, p), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-7)
    assert_close(symbiosis(p, q), symbiosis(q, p))
    bits = random_bits(2, 8)
    assert symbiosis(bits, 1 - bits).tolist() == [0, 0]
    of_bit = 1 + (0.3 * math.log2(0.3) - 1.3 * math.log2(1.3)) / 2  # the docstring's formula
    assert slow.divergence(1.0, 0.3) == pytest.approx(of_bit)


# ---- ranges ----


@pytest.mark.parametrize("length", LENGTHS)
def test_fair_coins_have_complexity_one_and_order_zero_at_every_length(length: int) -> None:
    rows = max(8, min(400, (1 << 20) // length))
    bits = np.random.default_rng(length).integers(0, 2, (rows, length), dtype=np.uint8)
    ratio = count_phrases(bits) / fair_coin_phrases(length)
    error = 4 * ratio.std() / math.sqrt(rows) + 0.003  # interpolation between powers of two
    assert abs(ratio.mean() - 1) < error
    assert 0.94 < lz_complexity(bits).mean().item() <= 1  # cut at 1, so that half of the scatter is missing
    assert bit_negentropy(bits).mean().item() < 0.02


@pytest.mark.parametrize("length", [8, *LENGTHS])
def test_constants_have_complexity_zero_and_order_one_at_every_length(length: int) -> None:
    for bit in (0, 1):
        bits = torch.full((1, length), bit)
        assert lz_complexity(bits).item() == 0
        assert bit_negentropy(bits).item() == 1


@pytest.mark.parametrize("length", [8, 16, 32, 64, 1024, 65_536])
def test_an_alternation_is_order_at_every_length(length: int) -> None:
    bits = (torch.arange(length) % 2)[None]
    assert bit_negentropy(bits).item() > 0.35
    assert lz_complexity(bits).item() < 0.55


def test_text_lies_between_whatever_its_share_of_ones() -> None:
    bits = torch.from_numpy(bytes_to_bits(TEXT[:63]))[None]  # one sentence, which repeats after that
    assert 0.5 < lz_complexity(bits).item() < 0.95
    looped = torch.from_numpy(bytes_to_bits(TEXT[:1000]))[None]
    assert lz_complexity(looped).item() < 0.25
    assert 0.02 < bit_negentropy(looped).item() < 0.9


@pytest.mark.slow
def test_the_table_of_fair_coins_is_what_fair_coins_have() -> None:
    random = np.random.default_rng(7)
    for power in range(3, 23):
        rows = max(6, min(100_000, (1 << 23) >> power))
        counts = np.concatenate(
            [count_phrases(random.integers(0, 2, (1, 1 << power), dtype=np.uint8)) for _ in range(rows)]
        )
        standard_error = counts.std() / math.sqrt(rows) / counts.mean()
        assert counts.mean() / fair_coin_phrases(1 << power) == pytest.approx(1, abs=4 * standard_error + 4e-4), power


# ---- what cannot be ----


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: lz_complexity(torch.zeros(1, 0, dtype=torch.long)), "at least 8"),
        (lambda: lz_complexity(torch.ones(1, 1, dtype=torch.long)), "at least 8"),
        (lambda: bit_negentropy(torch.zeros(16, dtype=torch.long)), "bits[None]"),
        (lambda: lz_complexity(torch.full((1, 9), 2)), "from 2 to 2"),
        (lambda: bit_negentropy(torch.full((1, 9), 0.5)), "float32"),
        (lambda: bit_negentropy(torch.zeros(1, 9, dtype=torch.long), 13), "1 to 9"),
        (lambda: bit_negentropy(torch.zeros(1, 9, dtype=torch.long), 0), "got word_bits=0"),
        (lambda: negentropy(torch.zeros(1, 0, 2)), "(1, 0, 2)"),
        (lambda: negentropy(torch.zeros(4, 2)), "(batch, bits, 2)"),
        (lambda: negentropy(torch.full((1, 4, 2), math.nan)), "NaN"),
        (lambda: negentropy(torch.full((1, 4, 2), math.inf)), "NaN"),
        (lambda: symbiosis(torch.rand(1, 4), torch.rand(1, 5)), "got q of shape (1, 5)"),
        (lambda: symbiosis(torch.full((1, 4), math.nan), torch.rand(1, 4)), "without NaN"),
        (lambda: symbiosis(torch.full((1, 4), 1.5), torch.rand(1, 4)), "got p"),
        (lambda: symbiosis(torch.rand(1, 0), torch.rand(1, 0)), "got p of shape (1, 0)"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(call, said: str) -> None:
    with pytest.raises(BitStreamError) as refused:
        call()
    assert said in str(refused.value) and "Try" in str(refused.value) and "\n" not in str(refused.value)


# ---- of a forward pass ----


def test_telemetry_of_a_pass_is_that_of_its_predictions() -> None:
    model = random_model(max_seq_len=256, experts={"buckets": 1024, "history": 1024}, full_attn_logging=True)
    bits = random_bits(2, 83)
    logits, telemetry = model(bits)
    assert set(telemetry) == {"K", "C", "S", "attention", "activations"}
    assert_close(telemetry["K"], negentropy(logits))
    assert_close(telemetry["C"], lz_complexity(bits))
    assert telemetry["activations"].shape == (2, 2, 2, 11) and telemetry["activations"].min() > 0
    z, q = model._all_bit_logits(bits, None)
    said = model._features(torch.nn.functional.pad(bits, (0, 5)))[..., -1] / 12
    assert_close(q, torch.sigmoid(said.float())[:, :84])
    assert_close(telemetry["S"], symbiosis(torch.sigmoid(z.double()), q))


@pytest.mark.parametrize("reversible", [False, True])
def test_activations_are_what_the_branches_add(reversible: bool) -> None:
    model = random_model(max_seq_len=128, full_attn_logging=True, reversible=reversible)
    bits = random_bits(1, 64)
    added: list[torch.Tensor] = []
    hook = model.trunk.blocks[1].feed_forward.register_forward_hook(lambda m, i, o: added.append(o))
    telemetry = model(bits).telemetry
    hook.remove()
    assert_close(telemetry["activations"][1, 1], added[0].square().mean(-1).sqrt())
    assert not any(branch._forward_hooks for block in model.trunk.blocks for branch in block.children())


def test_nothing_is_measured_that_nobody_reads(monkeypatch) -> None:
    import bit_transformer.model as module

    monkeypatch.setattr(module, "negentropy", lambda logits: pytest.fail("measured"))
    telemetry = random_model(max_seq_len=64)(random_bits(1, 4)).telemetry
    assert "S" not in telemetry and "K" in telemetry and "C" in telemetry and len(telemetry) == 2
    with pytest.raises(BitStreamError, match="at least 8"):
        telemetry["C"]


# ---- penalties ----


@pytest.mark.parametrize("P", [1, 4, 8, 9, 12])
def test_penalties_are_their_formulas(P: int) -> None:
    B, N = 3, 60
    generator = torch.Generator().manual_seed(P)
    patch = torch.randint(0, min(1 << P, 3), (B, N), generator=generator)
    patch[0, 30:] = patch[0, :30]
    z = torch.randn(B, N, P, generator=generator, dtype=torch.float64) * 2
    context = {1: 16, 4: 4, 8: 2, 9: 2, 12: 2}[P]
    assert penalties.followers(patch, context).tolist() == [slow.followers(row.tolist(), context) for row in patch]
    p = torch.sigmoid(z)
    odds = [row for rows in z.tolist() for row in rows]
    certain = sum(slow.negentropy(row) for row in odds) / len(odds)
    assert penalties.uncertainty(z).item() == pytest.approx(1 - certain, rel=1e-5)
    by_hand = [slow.repetition(c.tolist(), row.tolist(), context) for c, row in zip(p, patch, strict=True)]
    found = [slow.followers(row.tolist(), context) for row in patch]
    assert any(f >= 0 for row in found for f in row)
    one_by_one = [penalties.repetition(z[b : b + 1], patch[b : b + 1]).item() for b in range(B)]
    assert one_by_one == pytest.approx(by_hand, rel=1e-5)
    q = torch.rand(B, N, P, generator=generator, dtype=torch.float64)
    pairs = zip(p.flatten().tolist(), q.flatten().tolist(), strict=True)
    want = sum(slow.divergence(a, b) for a, b in pairs) / p.numel()
    assert penalties.disagreement(z, q).item() == pytest.approx(want, rel=1e-4)


def test_penalties_have_the_gradients_of_finite_differences() -> None:
    """In single precision, which they compute in: by the direction of steepest ascent."""
    patch = torch.randint(0, 3, (2, 40))
    q = torch.rand(2, 40, 8)
    for penalty in (
        penalties.uncertainty,
        lambda z: penalties.repetition(z, patch),
        lambda z: penalties.disagreement(z, q),
    ):
        z = torch.randn(2, 40, 8, requires_grad=True)
        penalty(z).backward()
        slope = z.grad.norm().item()
        step = z.grad / slope * 0.05
        with torch.no_grad():
            measured = (penalty(z + step) - penalty(z - step)).item() / 0.1
        assert measured == pytest.approx(slope, rel=0.02)
        saturated = torch.full((2, 40, 8), 200.0, requires_grad=True)
        penalty(saturated).backward()
        assert saturated.grad.isfinite().all()


def test_without_lambdas_the_loss_is_the_likelihood() -> None:
    model = random_model(max_seq_len=128)
    bits = random_bits(2, 128)
    loss, nats = losses(model, bits)
    assert loss is nats
    assert_close(nats, model.nll(bits).mean(), rtol=0, atol=0)


@pytest.mark.parametrize("name, metric", [("lambda_K", "K"), ("lambda_C", "C"), ("lambda_S", "S")])
def test_raising_a_lambda_raises_its_metric(name: str, metric: str) -> None:
    """And costs bits per byte, which is said in the guide."""
    found = {}
    for value in (0.0, 1.0):
        torch.manual_seed(0)
        fields = {"experts": {"buckets": 1024, "history": 4096}} if metric == "S" else {}
        model = BitTransformerLM(d_model=32, nhead=2, num_layers=1, max_seq_len=512, **fields, **{name: value})
        data = b"".join(bytes([97 + i * i % 23, 32, 97 + i % 7]) for i in range(3000)) + TEXT[:4000]
        train_loop(model, data, steps=40, batch_size=8, seed=1, amp=False)
        windows = CorpusWindows(bytes_corpus(data), 64, seed=2).draw(16).bits_BT
        with torch.no_grad():
            z, patch, said = model.window_logits(windows)
            if metric == "K":
                found[value] = negentropy(as_pair(z.flatten(1))).mean().item()
            elif metric == "C":
                found[value] = 1 - penalties.repetition(z, patch).item()
            else:
                q = model.experts_probability(said)
                found[value] = symbiosis(torch.sigmoid(z.flatten(1)), q).mean().item()
    assert found[1.0] > found[0.0] + 0.004, found
