"""Diffusion: the bound against every order written out, two estimators against it, samplers against the exact distribution."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from bit_transformer.bit_io import bits_to_bytes, bytes_to_bits, find_parity_errors
from bit_transformer.data.sources import bytes_corpus
from bit_transformer.diffusion import diffusion_inference, likelihood_bound
from bit_transformer.errors import BitStreamError, ConfigError
from bit_transformer.generation import generate
from bit_transformer.model import BitTransformerLM
from bit_transformer.nn.masking import SCHEDULES, hidden_share, hide_exactly, hide_some, hiding_rate, stratified_times
from bit_transformer.nn.patching import pack_patches
from bit_transformer.training import train_loop
from tests.conftest import TEXT, random_bits, random_model

SMALL = {"causal": False, "patch_bits": 2, "max_seq_len": 6}


def nats_of_order(model: BitTransformerLM, patches: list[int], order: tuple[int, ...]) -> float:
    """What a window costs if its patches are revealed in one order."""
    total, hidden = 0.0, [True] * len(patches)
    for place in order:
        nats = model.hidden_nll(torch.tensor([patches]), torch.tensor([hidden]))
        total += nats[0, place].item()
        hidden[place] = False
    return total


def exact_bound(model: BitTransformerLM, patches: list[int]) -> float:
    """Bits, averaged over all orders."""
    orders = list(itertools.permutations(range(len(patches))))
    return sum(nats_of_order(model, patches, order) for order in orders) / len(orders) / math.log(2)


# ---- noise ----


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_run_from_nothing_to_all_at_the_rate_they_say(schedule) -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    share = hidden_share(t, schedule)
    assert_close(share[[0, -1]], torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-12)
    assert (share.diff() > 0).all()
    step = 1e-6
    slope = (hidden_share(t[1:-1] + step, schedule) - hidden_share(t[1:-1] - step, schedule)) / (2 * step)
    assert_close(hiding_rate(t[1:-1], schedule), slope, rtol=1e-6, atol=1e-6)


def test_times_are_stratified_and_hiding_hides_what_it_says() -> None:
    t = stratified_times(100)
    assert ((t * 100).long() == torch.arange(100)).all()
    patches = torch.randint(0, 4, (2000, 9))
    seen, hidden = hide_some(patches, torch.full((2000,), 0.3), 4)
    assert abs(hidden.float().mean().item() - 0.3) < 0.015
    assert (seen[hidden] == 4).all() and (seen[~hidden] == patches[~hidden]).all()
    _, hidden = hide_exactly(patches, torch.arange(2000) % 10, 4)
    assert (hidden.sum(1) == torch.arange(2000) % 10).all()
    assert (hidden.float().mean(0) - 0.5).abs().max() < 0.03  # every place alike


# ---- the bound ----


def test_hidden_patches_are_predicted_from_both_sides_and_not_from_themselves() -> None:
    model = random_model(causal=False, patch_bits=4, max_seq_len=32)
    patches = torch.randint(0, 16, (1, 8))
    hidden = torch.zeros(1, 8, dtype=torch.bool)
    hidden[0, 3] = True
    before = model.hidden_nll(patches, hidden)
    assert (before[0, [0, 1, 2, 4, 5, 6, 7]] == 0).all()
    for place in (0, 7):
        other = patches.clone()
        other[0, place] ^= 5
        assert model.hidden_nll(other, hidden)[0, 3] != before[0, 3]
    total = sum(math.exp(-model.hidden_nll(patches.masked_fill(hidden, v), hidden)[0, 3].item()) for v in range(16))
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("estimator", ["continuous", "exact"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_both_estimators_give_the_mean_over_all_orders(estimator, schedule) -> None:
    model = random_model(**SMALL, schedule=schedule)
    bits = random_bits(3, 6)
    want = sum(exact_bound(model, row) for row in pack_patches(bits, 2).tolist())
    found = likelihood_bound(model, bits, samples=6000, estimator=estimator)
    assert abs(found.bits - want) < 4 * found.standard_error, (found, want)
    assert found.standard_error < (2.0 if estimator == "continuous" else 0.1) and found.windows == 3
    assert likelihood_bound(model, bits, samples=50, estimator=estimator, seed=3) == likelihood_bound(
        model, bits, samples=50, estimator=estimator, seed=3
    )


def test_the_training_loss_is_the_bound_on_average() -> None:
    model = random_model(**SMALL)
    bits = random_bits(1, 6)
    want = exact_bound(model, pack_patches(bits, 2)[0].tolist()) * math.log(2) / 6
    torch.manual_seed(0)
    with torch.no_grad():
        losses = torch.stack([model.losses(bits.expand(64, -1))[0] for _ in range(300)])
    assert abs(losses.mean().item() - want) < 4 * losses.std().item() / math.sqrt(300)


# ---- filling in ----


@pytest.mark.parametrize("order", ["first-hitting", "ancestral"])
def test_samples_have_the_distribution_of_revealing_in_random_order(order) -> None:
    model = random_model(causal=False, patch_bits=2, max_seq_len=4)
    p = np.zeros((4, 4))
    for a, b in itertools.product(range(4), range(4)):
        p[a, b] = np.mean([math.exp(-nats_of_order(model, [a, b], o)) for o in ((0, 1), (1, 0))])
    assert p.sum() == pytest.approx(1, abs=1e-5)
    count = 4000
    bits = diffusion_inference(
        model,
        torch.zeros(count, 4, dtype=torch.long),
        order=order,
        steps=None if order == "first-hitting" else 400,
        seed=1,
    )
    found = np.zeros((4, 4))
    for a, b in pack_patches(bits, 2).tolist():
        found[a, b] += 1 / count
    if order == "ancestral":  # of two patches, both are revealed at once in half of two steps: independent draws
        return
    assert np.abs(found - p).max() < 4 * math.sqrt(0.25 / count)


@pytest.mark.parametrize("order", ["first-hitting", "ancestral", "confidence"])
@pytest.mark.parametrize("patch_bits, parity", [(8, False), (9, True), (1, False), (4, False)])
def test_fixed_bits_stay(order, patch_bits: int, parity: bool) -> None:
    model = random_model(causal=False, patch_bits=patch_bits, parity=parity, max_seq_len=144)
    known = torch.from_numpy(bytes_to_bits(TEXT[:32], parity=parity)).view(2, -1).long()
    before, fixed = known.clone(), torch.rand(known.shape) < 0.7
    if parity:
        fixed[:, 8::9] = False
    made = diffusion_inference(model, known, fixed, order=order, steps=5, seed=1)
    assert (made[fixed] == known[fixed]).all() and (made != known).any()
    assert torch.equal(known, before)
    if parity:
        assert all(len(find_parity_errors(row)) == 0 for row in made)
    everything = diffusion_inference(model, known, torch.ones_like(fixed))
    assert torch.equal(everything.long(), known)
    again = diffusion_inference(model, known, fixed, order=order, steps=5, seed=1)
    assert torch.equal(made, again)


def test_a_trained_model_fills_the_middle_from_both_sides() -> None:
    torch.manual_seed(0)
    model = BitTransformerLM(d_model=48, nhead=2, num_layers=2, max_seq_len=128, patch_bits=8, causal=False)
    text = b"abcdefghijklmnop" * 400
    history = train_loop(model, bytes_corpus(text), steps=250, batch_size=16, window=128)
    assert history[-1]["train_bpb"] < history[0]["train_bpb"] / 2
    known = torch.from_numpy(bytes_to_bits(text[:16]))[None].long()
    fixed = torch.ones_like(known, dtype=torch.bool)
    fixed[:, 5 * 8 : 11 * 8] = False
    made = diffusion_inference(model, known.masked_fill(~fixed, 0), fixed, order="confidence", temperature=0)
    assert bits_to_bytes(made[0]) == text[:16]


# ---- what cannot be ----


def test_what_cannot_be_is_refused() -> None:
    two_way, one_way = random_model(causal=False, max_seq_len=64), random_model(max_seq_len=64)
    bits = random_bits(1, 64)
    for call in (
        lambda: two_way(bits),
        lambda: two_way.nll(bits),
        lambda: two_way.new_cache(),
        lambda: generate(two_way, bits[:, :8], 8),
    ):
        with pytest.raises(ConfigError, match="got a diffusion model"):
            call()
    for call in (lambda: diffusion_inference(one_way, bits), lambda: likelihood_bound(one_way, bits)):
        with pytest.raises(ConfigError, match="got an autoregressive model"):
            call()
    for fields in ({"experts": {}}, {"ngram_orders": (2,)}, {"ngram_words": True}, {"chunk_size": 64}):
        with pytest.raises(ConfigError, match="goes with causal=True"):
            BitTransformerLM(causal=False, **fields)
    with pytest.raises(ConfigError, match="steps=0"):
        diffusion_inference(two_way, bits, steps=0)
    with pytest.raises(ConfigError, match="schedule"):
        BitTransformerLM(causal=False, schedule="sometimes")
    with pytest.raises(BitStreamError, match="boolean and of the bits' shape"):
        diffusion_inference(two_way, bits, torch.ones(1, 63, dtype=torch.bool))
    with pytest.raises(BitStreamError, match="multiple of patch_bits"):
        diffusion_inference(two_way, bits[:, :60])
    odd = random_model(causal=False, patch_bits=9, parity=True, max_seq_len=18)
    known = torch.from_numpy(bytes_to_bits(b"ab", parity=True).copy())[None].long()
    known[0, 3] ^= 1
    with pytest.raises(BitStreamError, match="odd parity in window 0, patch 0"):
        diffusion_inference(odd, known, torch.ones_like(known, dtype=torch.bool))
