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
from bit_transformer.decoding.generation import generate
from bit_transformer.decoding.session import Session
from bit_transformer.diffusion import diffusion_inference, likelihood_bound, repair
from bit_transformer.diffusion.denoiser import masked_nll, restored
from bit_transformer.diffusion.noise import (
    SCHEDULES,
    flip_bits,
    hide_exactly,
    hide_some,
    noise_rate,
    noise_share,
    stratified_times,
)
from bit_transformer.errors import BitStreamError, ConfigError
from bit_transformer.model import BitTransformerLM
from bit_transformer.nn.patching import bit_chances, leaf_log_probs, pack_patches, unpack_patches
from bit_transformer.objectives import losses
from bit_transformer.training import train_loop
from tests.conftest import TEXT, at_most, random_bits, random_model

SMALL = {"causal": False, "patch_bits": 2, "max_seq_len": 6}


def nats_of_order(model: BitTransformerLM, patches: list[int], order: tuple[int, ...]) -> float:
    """What a window costs if its patches are revealed in one order."""
    total, hidden = 0.0, [True] * len(patches)
    for place in order:
        nats = masked_nll(model, torch.tensor([patches]), torch.tensor([hidden]))
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
    share = noise_share(t, schedule)
    assert_close(share[[0, -1]], torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-12)
    assert (share.diff() > 0).all()
    step = 1e-6
    slope = (noise_share(t[1:-1] + step, schedule) - noise_share(t[1:-1] - step, schedule)) / (2 * step)
    assert_close(noise_rate(t[1:-1], schedule), slope, rtol=1e-6, atol=1e-6)


def test_times_are_stratified_and_hiding_hides_what_it_says() -> None:
    t = stratified_times(100)
    assert ((t * 100).long() == torch.arange(100)).all()
    patches = torch.randint(0, 4, (2000, 9))
    hidden = hide_some(patches.shape, torch.full((2000,), 0.3))
    assert abs(hidden.float().mean().item() - 0.3) < 0.015
    hidden = hide_exactly(patches.shape, torch.arange(2000) % 10)
    assert (hidden.sum(1) == torch.arange(2000) % 10).all()
    assert (hidden.float().mean(0) - 0.5).abs().max() < 0.05  # every place alike
    flipped = unpack_patches(flip_bits(patches, torch.full((2000,), 0.2), 2) ^ patches, 2)
    assert (flipped.float().mean((0, 1)) - 0.2).abs().max() < 0.015


# ---- the bound ----


@pytest.mark.parametrize("fields", [{}, {"ngram_orders": (2, 3), "ngram_rows": 64}])
def test_hidden_patches_are_predicted_from_both_sides_and_not_from_themselves(fields: dict[str, object]) -> None:
    model = random_model(causal=False, patch_bits=4, max_seq_len=32, **fields)
    patches = torch.randint(0, 16, (1, 8))
    hidden = torch.zeros(1, 8, dtype=torch.bool)
    hidden[0, 3] = True
    before = masked_nll(model, patches, hidden)
    assert (before[0, [0, 1, 2, 4, 5, 6, 7]] == 0).all()
    for place in (0, 7):
        other = patches.clone()
        other[0, place] ^= 5
        assert masked_nll(model, other, hidden)[0, 3] != before[0, 3]
    total = sum(math.exp(-masked_nll(model, patches.masked_fill(hidden, v), hidden)[0, 3].item()) for v in range(16))
    assert total == pytest.approx(1, abs=1e-5)


def test_n_grams_of_a_diffusion_reach_as_far_to_both_sides() -> None:
    model = random_model(causal=False, patch_bits=4, max_seq_len=32, ngram_orders=(3,), ngram_rows=1 << 12)
    assert model.trunk.ngrams is not None and model.trunk.ngrams.contexts == 3
    symbols = torch.randint(0, 16, (1, 8))
    pad = torch.full((1, 2), model.trunk.start)
    rows = model.trunk.ngrams.rows_of(torch.cat((pad, symbols, pad), dim=1))
    for place in range(8):
        other = symbols.clone()
        other[0, place] ^= 5
        changed = rows != model.trunk.ngrams.rows_of(torch.cat((pad, other, pad), dim=1))
        before, after, both = ({n for n in range(8) if changed[0, n, kind]} for kind in range(3))
        assert before == {n for n in range(8) if place <= n <= place + 2}
        assert after == {n for n in range(8) if place - 2 <= n <= place}
        assert both == before | after


@pytest.mark.parametrize("estimator", ["continuous", "discrete"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_both_estimators_give_the_mean_over_all_orders(estimator, schedule) -> None:
    model = random_model(**SMALL, schedule=schedule)
    bits = random_bits(3, 6)
    want = sum(exact_bound(model, row) for row in pack_patches(bits, 2).tolist())
    found = likelihood_bound(model, bits, samples=6000, estimator=estimator)
    assert abs(found.bits - want) < 4 * found.standard_error, (found, want)
    assert found.standard_error < 0.2 and len(found.costs) == 3
    assert likelihood_bound(model, bits, samples=50, estimator=estimator, seed=3) == likelihood_bound(
        model, bits, samples=50, estimator=estimator, seed=3
    )


def test_the_training_loss_is_the_bound_on_average() -> None:
    model = random_model(**SMALL)
    bits = random_bits(1, 6)
    want = exact_bound(model, pack_patches(bits, 2)[0].tolist()) * math.log(2) / 6
    torch.manual_seed(0)
    with torch.no_grad():
        found = torch.stack([losses(model, bits.expand(64, -1))[0] for _ in range(300)])
    assert abs(found.mean().item() - want) < 4 * found.std().item() / math.sqrt(300)


# ---- flips ----

FLIPS = {"causal": False, "noise": "flips", "patch_bits": 2, "max_seq_len": 4}
WORDS = list(itertools.product((0, 1), repeat=4))  # all windows


def posterior(model: BitTransformerLM, chance: float) -> np.ndarray:
    """What the model makes of every window that it may see: (seen, patch, V)."""
    seen = pack_patches(torch.tensor(WORDS), 2)
    with torch.no_grad():
        z = restored(model, seen, torch.full((len(seen),), chance)).double().numpy()
    return np.exp(leaf_log_probs(z.reshape(-1, 4))).reshape(16, 2, 4)


def chance_of_flips(t: float) -> float:
    return (1 - math.cos(math.pi * t / 2)) / 2


def seen_given(word: tuple[int, ...], chance: float) -> list[float]:
    """Chance of every window that may be seen of one."""
    return [math.prod(chance if a != b else 1 - chance for a, b in zip(word, seen, strict=True)) for seen in WORDS]


def flips_bound(model: BitTransformerLM, word: tuple[int, ...], points: int = 400) -> float:
    """The bound in bits by loops: an integral over time, a sum over all that may be seen, bit by bit."""
    total = 0.0
    for t in (np.arange(points) + 0.5) / points:
        a = chance_of_flips(t)
        rate = math.pi / 4 * math.sin(math.pi * t / 2) / (1 - 2 * a)
        leaf = posterior(model, a)
        for z, (seen, weight) in enumerate(zip(WORDS, seen_given(word, a), strict=True)):
            for place in range(4):
                patch, inside = divmod(place, 2)
                same = sum(leaf[z, patch, v] for v in range(4) if (v >> (1 - inside) & 1) == seen[place])
                odds = a / (1 - a)
                guess = same * odds + (1 - same) / odds
                true = odds if seen[place] == word[place] else 1 / odds
                total += weight * rate * (guess - true + true * math.log(true / guess)) / points
    return total / math.log(2)


def chain(model: BitTransformerLM, steps: int) -> np.ndarray:
    """Chance of each window as what comes out of so many steps back, by the chain over all windows."""
    state = np.full(16, 1 / 16)
    for step in reversed(range(steps)):
        before, after = chance_of_flips(step / steps), chance_of_flips((step + 1) / steps)
        leaf, between = posterior(model, after), (after - before) / (1 - 2 * before)
        then = np.zeros(16)
        for z, seen in enumerate(WORDS):
            for true in WORDS:
                p = state[z] * leaf[z, 0, 2 * true[0] + true[1]] * leaf[z, 1, 2 * true[2] + true[3]]
                ways = []
                for a, b in zip(true, seen, strict=True):
                    joint = [
                        (before if was != a else 1 - before) * (between if was != b else 1 - between) for was in (0, 1)
                    ]
                    ways.append([x / sum(joint) for x in joint])
                then += p * np.array([math.prod(way[bit] for way, bit in zip(ways, w, strict=True)) for w in WORDS])
        state = then
    return state


@pytest.fixture(scope="module")
def flips_model() -> BitTransformerLM:
    torch.manual_seed(0)
    model = random_model(**FLIPS)
    with torch.no_grad():
        model.head.weight.mul_(0.5)
    return model


def test_chances_of_single_bits_are_those_of_the_leaves() -> None:
    z = torch.randn(3, 5, 16, dtype=torch.float64)
    leaf = np.exp(leaf_log_probs(z.numpy().reshape(-1, 16)))
    bits = unpack_patches(torch.arange(16), 4).numpy()
    assert_close(bit_chances(z).numpy().reshape(-1, 4), leaf @ bits)


@pytest.mark.parametrize("estimator", ["continuous", "discrete"])
def test_both_estimators_of_flips_give_the_integral_by_loops(flips_model: BitTransformerLM, estimator) -> None:
    word = (1, 0, 1, 1)
    want = flips_bound(flips_model, word)
    found = likelihood_bound(flips_model, torch.tensor([word]), samples=20_000, estimator=estimator)
    assert abs(found.bits - want) < 4 * found.standard_error, (found, want)
    assert found.standard_error < 0.02 * want


def test_the_discrete_bound_is_no_less_than_what_the_chain_gives(flips_model: BitTransformerLM) -> None:
    p = chain(flips_model, 3)
    assert p.sum() == pytest.approx(1)
    for z in (0, 5, 13):
        found = likelihood_bound(flips_model, torch.tensor([WORDS[z]]), samples=3000, estimator="discrete", steps=3)
        assert -math.log2(p[z]) < found.bits + 3 * found.standard_error


def test_samples_through_flips_have_the_chain_s_distribution(flips_model: BitTransformerLM) -> None:
    count = 6000
    made = diffusion_inference(flips_model, torch.zeros(count, 4, dtype=torch.long), steps=3, seed=1)
    found = np.zeros(16)
    for a, b in pack_patches(made, 2).tolist():
        found[4 * a + b] += 1 / count
    assert np.abs(found - chain(flips_model, 3)).max() < 4 * math.sqrt(0.25 / count)


def test_the_loss_of_flips_lowers_the_bound_it_reports() -> None:
    torch.manual_seed(0)
    model = BitTransformerLM(
        d_model=32, nhead=2, num_layers=2, max_seq_len=128, causal=False, noise="flips", schedule="log-linear"
    )
    text = b"abcdefghijklmnop" * 400
    history = train_loop(model, bytes_corpus(text), steps=300, batch_size=16, amp=False)
    first, last = (sum(r["train_bpb"] for r in part) / 20 for part in (history[:20], history[-20:]))
    assert last < 0.6 * first
    bits = torch.from_numpy(bytes_to_bits(text[:32])).view(2, 128)
    a, b = (likelihood_bound(model, bits, samples=400, estimator=e) for e in ("continuous", "discrete"))
    assert abs(a.bits - b.bits) < 4 * math.hypot(a.standard_error, b.standard_error) + 0.01 * a.bits


@pytest.mark.parametrize("noise", ["hidden", "flips"])
def test_flipped_bits_are_set_right_and_their_rate_is_found(noise) -> None:
    torch.manual_seed(0)
    model = BitTransformerLM(
        d_model=48,
        nhead=2,
        num_layers=2,
        max_seq_len=144,
        patch_bits=9,
        parity=True,
        causal=False,
        noise=noise,
    )
    text = b"abcdefghijklmnop" * 400
    train_loop(model, bytes_corpus(text), steps=250, batch_size=16, amp=False)
    clean = torch.from_numpy(bytes_to_bits(text[:320], parity=True)).view(20, 144)
    flipped = torch.rand(clean.shape, generator=torch.Generator().manual_seed(1)) < 0.02
    for rate in (0.02, None):
        mended = repair(model, clean ^ flipped, rate=rate)
        left = 0.1 if noise == "hidden" else 0.6  # flips are the weaker kind of training
        assert (mended.bits_BT != clean).sum() <= at_most(left, flipped.sum().item())
        assert mended.doubt_BN.shape == (20, 16) and abs(mended.rate - 0.02) < 0.01
        sure = mended.doubt_BN <= 0.5
        bytes_B = mended.bits_BT.view(20, 16, 9).sum(-1).numpy()
        assert (bytes_B[sure] % 2 == 0).all()  # what is doubtful stays as it was received
    before = clean.clone()
    assert torch.equal(repair(model, clean, rate=0.001).bits_BT, before) and torch.equal(clean, before)


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
    assert np.abs(found - p).max() < 4 * math.sqrt(0.25 / count)


@pytest.mark.parametrize("order", ["first-hitting", "ancestral", "confidence", "flips"])
@pytest.mark.parametrize("patch_bits, parity", [(8, False), (9, True), (1, False), (4, False), (8, True), (3, True)])
def test_fixed_bits_stay(order, patch_bits: int, parity: bool) -> None:
    noise, order = ("flips", "ancestral") if order == "flips" else ("hidden", order)
    model = random_model(causal=False, noise=noise, patch_bits=patch_bits, parity=parity, max_seq_len=144)
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
    history = train_loop(model, bytes_corpus(text), steps=250, batch_size=16, window=128, amp=False)
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
        lambda: Session(two_way),
        lambda: generate(two_way, bits[:, :8], 8),
    ):
        with pytest.raises(ConfigError, match="got a diffusion model"):
            call()
    flips = random_model(causal=False, noise="flips", max_seq_len=64)
    for call in (
        lambda: diffusion_inference(one_way, bits),
        lambda: likelihood_bound(one_way, bits),
        lambda: repair(one_way, bits),
        lambda: masked_nll(one_way, bits, bits > 0),
    ):
        with pytest.raises(ConfigError, match="got an autoregressive model"):
            call()
    for call, said in (
        (lambda: diffusion_inference(flips, bits, order="confidence"), "order='confidence'; with noise='flips'"),
        (lambda: diffusion_inference(two_way, bits, order="backwards"), "order='backwards'"),
        (lambda: diffusion_inference(two_way, bits, temperature=-1), "temperature=-1"),
        (lambda: likelihood_bound(two_way, bits, estimator="other"), "estimator='other'"),
        (lambda: likelihood_bound(two_way, bits, samples=1), "samples=1"),
        (lambda: likelihood_bound(flips, bits, steps=0), "steps=0"),
        (lambda: repair(flips, bits, rate=0.5), "rate=0.5"),
        (lambda: restored(flips, bits[:, :8]), "got no chance_B and noise='flips'"),
        (lambda: diffusion_inference(two_way, bits, temperature=math.nan), "temperature=nan"),
        (lambda: masked_nll(flips, bits[:, :8], bits[:, :8] > 0), "got a model of flips"),
        (lambda: BitTransformerLM(causal=False, diffusion_steps=0), "diffusion_steps=0"),
        (lambda: BitTransformerLM(noise="flips"), "noise='flips' goes with causal=False"),
        (lambda: BitTransformerLM(diffusion_steps=5), "diffusion_steps=5 goes with causal=False"),
    ):
        with pytest.raises(ConfigError, match=said):
            call()
    for fields in ({"experts": {}}, {"ngram_words": True}, {"chunk_size": 64}):
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
    with pytest.raises(BitStreamError, match="odd parity in window 0, byte 0"):
        diffusion_inference(odd, known, torch.ones_like(known, dtype=torch.bool))
