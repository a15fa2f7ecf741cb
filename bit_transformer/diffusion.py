"""Diffusion over patches of bits: bounds on the likelihood, samplers that fill in what is hidden wherever it is, and repair.

A diffusion model reads a window that has lost something and gives an exact distribution over each of its patches, bit by bit down
the prefix tree. Noise of one kind hides patches, the other flips bits (`nn/noise.py`). Undoing the noise in small steps gives a sample;
what the steps cost is a bound on the likelihood. Two estimators of that bound share nothing but the model: one takes time as
continuous, the other counts steps.

Draws are made in float64. What is known of a patch (fixed bits, even parity) is a mask over its exact distribution.

Sources: Sahoo et al. 2024, arXiv:2406.07524 (MDLM); Ou et al. 2024, arXiv:2406.03736 (equality with any-order models); Zheng et al.
2024, arXiv:2409.02908 (first-hitting sampler; draws in float64); Nie et al. 2025, arXiv:2502.09992 (confidence order); Austin et al.
2021, arXiv:2107.03006 (steps back through flips, section 3 and appendix A).
"""

# Shapes: B windows, S samples of one, T bits, N patches, P bits of a patch, V = 2^P symbols, K places that are asked for.
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bit_transformer.bit_io import Bits
from bit_transformer.errors import BitStreamError, ConfigError
from bit_transformer.model import BitTransformerLM, in_use
from bit_transformer.nn.noise import (
    flip_bits,
    flips_cost,
    hide_exactly,
    hide_some,
    noise_levels,
    noise_share,
    stratified_times,
)
from bit_transformer.nn.patching import bit_chances, draw_patches, leaf_log_probs, pack_patches, unpack_patches

Estimator = Literal["continuous", "discrete"]
Order = Literal["first-hitting", "ancestral", "confidence"]
FLIP_STEPS = 64  # of a sample, unless told otherwise
BOUND_STEPS = 1024  # of the discrete estimator, through flips
TURNS, SWEEPS = 8, 3  # of repair with hidden patches: every eighth is hidden at a time, and all in turn so often
FIRST_RATE, RATE_ROUNDS = (
    0.01,
    4,
)  # of bits flipped, where that is not known: a first guess, and how often it is bettered


@dataclass(frozen=True)
class Bound:
    """An upper bound on what windows cost, estimated by sampling.

    Attributes:
        bits: of all windows together.
        standard_error: of that.
        costs: bits of each window.
    """

    bits: float
    standard_error: float
    costs: tuple[float, ...]


@torch.inference_mode()
def likelihood_bound(
    model: BitTransformerLM,
    bits_BT: Tensor,
    *,
    samples: int = 16,
    estimator: Estimator = "discrete",
    steps: int = BOUND_STEPS,
    seed: int = 0,
) -> Bound:
    """Estimate the bound on the bits that windows cost under a diffusion model.

    continuous: a time for each sample of a window, stratified over its samples; what is lost at it costs its rate in continuous time.
    discrete: so many patches hidden as a stratified draw from 1 .. N says, every choice equally likely, and the mean cost of those
    times N, which is the same bound; or, of flips, the divergence of one of `steps` steps back from the true one, a bound that is looser
    by about a `steps`-th part.

    Args:
        bits_BT: windows of whole patches.
        samples: of each window; two at least, for the standard error.
        steps: of the discrete estimator through flips.

    Raises:
        BitStreamError: windows that do not fit the model.
        ConfigError: an autoregressive model, too few samples or no steps, or another estimator.
    """
    if samples < 2 or steps < 1:
        name, value, least = ("samples", samples, 2) if samples < 2 else ("steps", steps, 1)
        raise ConfigError(f"{name}={value}; at least {least} is needed. Try {16 if least == 2 else BOUND_STEPS}")
    if estimator not in get_args(Estimator):
        raise ConfigError(f"estimator={estimator!r}; it must be one of {', '.join(get_args(Estimator))}. Try discrete")
    _check_diffusion(model)
    model._check_bits(bits_BT)
    model._check_window(bits_BT)
    patch_BN = pack_patches(bits_BT, model.config.patch_bits).to(model.head.weight.device)
    hidden = model.config.noise == "hidden"
    costs_BS = np.empty((len(patch_BN), samples))
    with in_use(model), torch.random.fork_rng():
        torch.manual_seed(seed)
        for row, patch_N in enumerate(patch_BN):
            patch_SN = patch_N.expand(samples, -1)
            if estimator == "continuous":
                nats_S = _continuous(model, patch_SN).double().cpu().numpy()
            elif hidden:
                nats_S = _hidden_by_count(model, patch_SN).double().cpu().numpy()
            else:
                nats_S = _flips_by_step(model, patch_SN, steps)
            costs_BS[row] = nats_S / math.log(2)
    # Strata of one draw each: their scatter about the mean is too large an estimate of the error, never too small.
    error = math.sqrt((costs_BS.var(axis=1, ddof=1) / samples).sum())
    costs_B = costs_BS.mean(axis=1)
    return Bound(float(costs_B.sum()), error, tuple(costs_B.tolist()))


def _continuous(model: BitTransformerLM, patch_SN: Tensor) -> Tensor:
    """Nats of each sample. Any schedule has the same mean; with the cosine the scatter near t = 0 is bounded."""
    share_S, weight_S = noise_levels(len(patch_SN), "cosine", device=patch_SN.device)
    if model.config.noise == "hidden":
        return model.hidden_nll(patch_SN, hide_some(patch_SN.shape, share_S)).sum(1) * weight_S
    P = model.config.patch_bits
    seen_SN = flip_bits(patch_SN, share_S / 2, P)
    one_SNP = bit_chances(model.restored(seen_SN, share_S / 2).double())
    return flips_cost(
        one_SNP, unpack_patches(patch_SN, P), unpack_patches(seen_SN, P), share_S.double(), weight_S.double()
    )


def _hidden_by_count(model: BitTransformerLM, patch_SN: Tensor) -> Tensor:
    S, N = patch_SN.shape
    count_S = (stratified_times(S, patch_SN.device) * N).long() + 1
    return model.hidden_nll(patch_SN, hide_exactly(patch_SN.shape, count_S)).sum(1) * (N / count_S)


def _flips_by_step(model: BitTransformerLM, patch_SN: Tensor, steps: int) -> NDArray[np.float64]:
    P = model.config.patch_bits
    step_S = (stratified_times(len(patch_SN), patch_SN.device) * steps).long()
    chance_S = _flip_chance((step_S + 1).double() / steps).to(model.head.weight)
    seen_SN = flip_bits(patch_SN, chance_S, P)
    scores_SNV = _leaf_scores(model.restored(seen_SN, chance_S))
    before_S, after_S = (_flip_chance(at_S.cpu().double() / steps).numpy() for at_S in (step_S, step_S + 1))
    bit_SNP = unpack_patches(seen_SN, P).cpu().numpy()
    back_SNP22 = _steps_back(before_S, after_S)[np.arange(len(patch_SN))[:, None, None], :, bit_SNP]
    truth_SNV = _through(np.eye(1 << P)[patch_SN.cpu().numpy()], back_SNP22)
    guess_SNV = _through(np.exp(scores_SNV), back_SNP22)
    # Of a model that knows nothing the bound is a bit for each bit, so only the difference to that one is sampled.
    between_S11 = _between(before_S, after_S)[:, None, None]
    distance_SNV = patch_distances(seen_SN.cpu(), P)
    nothing_SNV = distance_SNV * np.log(between_S11) + (P - distance_SNV) * np.log1p(-between_S11)
    guess_SNV = np.log(np.maximum(guess_SNV, np.finfo(np.float64).tiny))
    return (truth_SNV * (nothing_SNV - guess_SNV)).sum((1, 2)) * steps + bit_SNP[0].size * math.log(2)


def _flip_chance(t: Tensor) -> Tensor:
    return noise_share(t, "cosine") / 2


def _steps_back(before_S: NDArray[np.float64], after_S: NDArray[np.float64]) -> NDArray[np.float64]:
    """Chance of what a bit was a step before, by its true value and what is seen: (S, true, seen, was), where bits are flipped with
    chance `after` now and `before` then."""
    here = np.eye(2, dtype=bool)

    def flips(chance_S: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(here, 1 - chance_S[:, None, None], chance_S[:, None, None])

    # Axes: true to was, and was to seen.
    joint_S222 = flips(before_S)[:, :, None, :] * flips(_between(before_S, after_S))[:, None].swapaxes(2, 3)
    normal: NDArray[np.float64] = joint_S222 / joint_S222.sum(-1, keepdims=True)
    return normal


def _between(before_S: NDArray[np.float64], after_S: NDArray[np.float64]) -> NDArray[np.float64]:
    """Chance of a flip from one time to a later one."""
    return (after_S - before_S) / (1 - 2 * before_S)


def _through(chance_SNV: NDArray[np.float64], back_SNP22: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distributions over patches after each bit went through a chance of its own, bit by bit: (S, N, V)."""
    S, N, V = chance_SNV.shape
    for j in range(back_SNP22.shape[2]):
        split = chance_SNV.reshape(S, N, 1 << j, 2, -1)
        chance_SNV = np.einsum("snlxr,snxy->snlyr", split, back_SNP22[:, :, j]).reshape(S, N, V)
    return chance_SNV


def _leaf_scores(node_logit: Tensor) -> NDArray[np.float64]:
    z = node_logit.float().cpu().numpy()
    return leaf_log_probs(z.reshape(-1, z.shape[-1])).reshape(z.shape)


@torch.inference_mode()
def diffusion_inference(
    model: BitTransformerLM,
    known: Tensor | Bits,
    fixed: Tensor | NDArray[np.bool_] | None = None,
    *,
    steps: int | None = None,
    order: Order | None = None,
    temperature: float = 1.0,
    force_parity: bool = True,
    seed: int | None = None,
    on_call: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Fill in windows: whatever bits are fixed stay, the others are drawn.

    Args:
        known: (B, T) bits, T a multiple of `patch_bits`; those that are not fixed may be anything.
        fixed: (B, T), which bits stay; none are if it is not given.
        steps: network calls of a window, at most; not given: the model's `diffusion_steps`, or one a patch, or 64 through flips. First-hitting
            takes one a patch.
        order: `first-hitting` reveals one patch a call, in random order, as the process in continuous time does; `ancestral` takes
            `steps` equal steps of time, several patches or flips at one, drawn independently of one another; `confidence` reveals
            the patches of which the model is surest first. Not given: first-hitting, or with `steps` ancestral; through flips
            there is only ancestral.
        temperature: 0 takes the likeliest patch.
        force_parity: of a model with parity: only bytes whose parity is even.
        on_call: called after each network call with how many were made, of how many.

    Returns:
        (B, T) uint8.

    Raises:
        ConfigError: an autoregressive model, or steps, an order, a temperature or a seed that cannot be.
        BitStreamError: windows that do not fit the model, or fixed bytes whose parity is odd.
    """
    c = model.config
    _check_diffusion(model)
    steps = c.diffusion_steps if steps is None else steps
    if steps is not None and steps < 1:
        raise ConfigError(f"steps={steps}; at least 1 is needed. Try 64")
    order = order or ("first-hitting" if steps is None and c.noise == "hidden" else "ancestral")
    if order not in get_args(Order) or (c.noise == "flips" and order != "ancestral"):
        possible = "ancestral" if c.noise == "flips" else ", ".join(get_args(Order))
        raise ConfigError(f"order={order!r}; through noise={c.noise!r} it must be {possible}. Try ancestral")
    if not temperature >= 0:
        raise ConfigError(f"temperature={temperature}; it must be 0 or more. Try 1")
    if seed is not None and seed < 0:
        raise ConfigError(f"seed={seed}; it must not be negative. Try 1")
    known_BT, fixed_BT = _check_known(model, known, fixed)
    parity = force_parity and c.parity
    if parity:
        _check_parity(known_BT, fixed_BT)
    filler = _Filler(model, known_BT, fixed_BT, temperature, parity, seed, on_call)
    with in_use(model):
        patch_BN = filler.reveal(order, steps) if c.noise == "hidden" else filler.unflip(steps or FLIP_STEPS)
    bits_BT = unpack_patches(torch.from_numpy(patch_BN), c.patch_bits).flatten(1).to(torch.uint8)
    if parity and c.patch_bits != 9:
        _make_even(bits_BT, fixed_BT)
    return bits_BT


def _check_diffusion(model: BitTransformerLM) -> None:
    if model.config.causal:
        raise ConfigError(
            "got an autoregressive model, which reads only the past; this is for diffusion. Try a model with causal=False"
        )


def _check_known(
    model: BitTransformerLM, known: Tensor | Bits, fixed: Tensor | NDArray[np.bool_] | None
) -> tuple[Tensor, Tensor]:
    known_BT = torch.as_tensor(known)
    model._check_bits(known_BT)
    model._check_window(known_BT)
    fixed_BT = torch.zeros(known_BT.shape, dtype=torch.bool) if fixed is None else torch.as_tensor(fixed)
    if fixed_BT.shape != known_BT.shape or fixed_BT.dtype != torch.bool:
        raise BitStreamError(
            f"got fixed of shape {tuple(fixed_BT.shape)} and {fixed_BT.dtype}; it must be boolean and of the bits' shape "
            f"{tuple(known_BT.shape)}. Try fixed.bool()"
        )
    return known_BT.cpu(), fixed_BT.cpu()


def _bytes_of(x_BT: Tensor) -> Tensor:
    """The whole bytes of nine bits in windows, (B, bytes, 9), a view."""
    return x_BT[:, : x_BT.shape[1] // 9 * 9].view(len(x_BT), -1, 9)


def _check_parity(known_BT: Tensor, fixed_BT: Tensor) -> None:
    odd = (_bytes_of(known_BT).sum(-1) % 2 == 1) & _bytes_of(fixed_BT).all(-1)
    if odd.any():
        row, place = odd.nonzero()[0].tolist()
        raise BitStreamError(
            f"got fixed bits with odd parity in window {row}, byte {place}; a byte's nine bits must hold an even number of "
            f"ones. Try repair, repair_parity, or force_parity=False"
        )


def _make_even(bits_BT: Tensor, fixed_BT: Tensor) -> None:
    """Flip a bit that is free, the ninth if it is, of every byte whose parity is odd."""
    bytes_B9, free_B9 = _bytes_of(bits_BT), ~_bytes_of(fixed_BT)
    row, place = (bytes_B9.sum(-1) % 2 == 1).nonzero(as_tuple=True)
    last_free = 8 - free_B9[row, place].flip(-1).int().argmax(-1)
    bytes_B9[row, place, last_free] ^= 1


class _Filler:
    """Windows being filled in: what is known of them, and the model that is asked."""

    def __init__(
        self,
        model: BitTransformerLM,
        known_BT: Tensor,
        fixed_BT: Tensor,
        temperature: float,
        parity: bool,
        seed: int | None,
        on_call: Callable[[int, int], None],
    ) -> None:
        P = model.config.patch_bits
        self.model, self.temperature, self.random, self.on_call = (
            model,
            temperature,
            np.random.default_rng(seed),
            on_call,
        )
        self.patch_BN = pack_patches(known_BT, P).numpy().copy()  # of single bits it would be the caller's
        self.known_BNP = known_BT.view(len(known_BT), -1, P).numpy()
        self.fixed_BNP = fixed_BT.view(self.known_BNP.shape).numpy()
        self.even = parity and P == 9

    def reveal(self, order: Order, steps: int | None) -> NDArray[np.int64]:
        """Fill in what is hidden; the patches."""
        hidden_BN = np.logical_not(self.fixed_BNP.all(-1))
        most = int(hidden_BN.sum(1).max(initial=0))
        calls = {"first-hitting": most, "ancestral": steps or most, "confidence": min(steps or most, most)}[order]
        for call in range(calls):
            left_B, later = hidden_BN.sum(1), calls - call
            # Equal steps of time with the linear schedule reveal equal shares.
            count_B = -(-left_B // later) if order != "ancestral" else self.random.binomial(left_B, 1 / later)
            if count_B.any():
                key_BN = self.random.random(hidden_BN.shape)
                if order == "confidence":
                    scores_KV = self._scores(hidden_BN, hidden_BN)
                    key_BN[hidden_BN] = np.logaddexp.reduce(scores_KV, axis=-1) - scores_KV.max(-1)
                chosen_BN = _first(key_BN, hidden_BN, count_B)
                if order == "confidence":
                    scores_KV = scores_KV[chosen_BN[hidden_BN]]
                else:
                    scores_KV = self._scores(hidden_BN, chosen_BN)
                self.patch_BN[chosen_BN] = draw_patches(scores_KV, self.temperature, self.random)
                hidden_BN = hidden_BN & ~chosen_BN
            self.on_call(call + 1, calls)
        return self.patch_BN

    def unflip(self, steps: int) -> NDArray[np.int64]:
        """Draw what was flipped, from fair coins back to the window; the patches."""
        B, N, P = self.known_BNP.shape
        device = self.model.head.weight.device
        seen_BNP = self.random.integers(0, 2, (B, N, P))
        chance = _flip_chance(torch.linspace(0, 1, steps + 1, dtype=torch.float64))
        back = _steps_back(chance[:-1].numpy(), chance[1:].numpy())
        everywhere_BN = np.ones((B, N), dtype=bool)
        for call, step in enumerate(reversed(range(steps))):
            seen_BN = pack_patches(torch.from_numpy(seen_BNP).flatten(1), P).to(device)
            chance_B = chance[step + 1].float().expand(B).to(device)
            scores_BNV = _leaf_scores(self.model.restored(seen_BN, chance_B))
            scores_KV = self._allowed(scores_BNV.reshape(B * N, -1), everywhere_BN)
            self.patch_BN = draw_patches(scores_KV, self.temperature, self.random).reshape(B, N)
            true_BNP = unpack_patches(torch.from_numpy(self.patch_BN), P).numpy()
            one_BNP = back[step][true_BNP, seen_BNP, 1]
            seen_BNP = (self.random.random((B, N, P)) < one_BNP).astype(np.int64)
            self.on_call(call + 1, steps)
        return self.patch_BN  # nothing is flipped before the first step

    def _scores(self, hidden_BN: NDArray[np.bool_], at_BN: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Log-probabilities of all patches at some places, -inf where they are not allowed: (K, V)."""
        seen_BN = torch.from_numpy(np.where(hidden_BN, self.model.mask, self.patch_BN))
        h_BND = self.model.trunk(seen_BN.to(self.model.head.weight.device))
        h_KD = h_BND[torch.from_numpy(at_BN).to(h_BND.device)]
        return self._allowed(_leaf_scores(self.model.head(h_KD)), at_BN)

    def _allowed(self, scores_KV: NDArray[np.float64], at_BN: NDArray[np.bool_]) -> NDArray[np.float64]:
        known_K1P, fixed_K1P = self.known_BNP[at_BN][:, None], self.fixed_BNP[at_BN][:, None]
        bit_VP = unpack_patches(torch.arange(scores_KV.shape[1]), self.known_BNP.shape[2]).numpy()
        allowed_KV = ((bit_VP == known_K1P) | ~fixed_K1P).all(-1)
        if self.even:
            allowed_KV &= bit_VP.sum(1) % 2 == 0
        return np.where(allowed_KV, scores_KV, -np.inf)


def _first(key_BN: NDArray[np.float64], among_BN: NDArray[np.bool_], count_B: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Of those that are among, so many of each row with the smallest keys."""
    rank_BN = np.where(among_BN, key_BN, np.inf).argsort(axis=1, kind="stable").argsort(axis=1)
    return among_BN & (rank_BN < count_B[:, None])


@dataclass(frozen=True)
class Repaired:
    """Windows whose flipped bits were set right, as far as the model can tell.

    Attributes:
        bits_BT: uint8.
        rate: of flips, as given or as found.
        doubt_BN: chance of each patch that it is not what it says.
    """

    bits_BT: Tensor
    rate: float
    doubt_BN: NDArray[np.float64]


@torch.inference_mode()
def repair(model: BitTransformerLM, received: Tensor | Bits, *, rate: float | None = None) -> Repaired:
    """Set right what was flipped in windows: each patch becomes its likeliest value given all that was received, if that is likelier
    than all others together; else it stays.

    A model of hidden patches is asked what it expects where every eighth patch is hidden, in turn, which is weighed against what was
    received there; and twice again with what came out. A model of flips is asked once. Of a model with parity, where a patch is a
    byte of nine bits, only those with even parity are considered.

    Args:
        received: (B, T) bits, T a multiple of `patch_bits`.
        rate: chance with which bits were flipped, in (0, 0.5); not given: found from the windows.

    Raises:
        ConfigError: an autoregressive model, or a rate that cannot be.
        BitStreamError: windows that do not fit the model.
    """
    c = model.config
    _check_diffusion(model)
    check_rate(rate)
    bits_BT, _ = _check_known(model, received, None)
    patch_BN = pack_patches(bits_BT, c.patch_bits)
    distance_BNV = patch_distances(patch_BN, c.patch_bits)
    found = rate or FIRST_RATE
    with in_use(model):
        for _ in range(1 if rate else RATE_ROUNDS):
            chance_BNV = _posterior(model, patch_BN, distance_BNV, found)
            if rate is None:
                flips = float((chance_BNV * distance_BNV).sum(-1).mean()) / c.patch_bits
                found = min(max(flips, 1e-6), 0.49)
    best_BN = _surest(chance_BNV, patch_BN)
    doubt_BN = 1 - np.take_along_axis(chance_BNV, best_BN.numpy()[..., None], -1)[..., 0]
    return Repaired(unpack_patches(best_BN, c.patch_bits).flatten(1).to(torch.uint8), found, doubt_BN)


def check_rate(rate: float | None) -> None:
    """Refuse a rate of flips that cannot be.

    Raises:
        ConfigError: as it says.
    """
    if rate is not None and not 0 < rate < 0.5:
        raise ConfigError(f"rate={rate}; it must lie between 0 and 0.5. Try 0.01")


def _surest(chance_BNV: NDArray[np.float64], patch_BN: Tensor) -> Tensor:
    """What is likelier than all else together, or what was there."""
    return torch.where(torch.from_numpy(chance_BNV.max(-1) > 0.5), torch.from_numpy(chance_BNV.argmax(-1)), patch_BN)


def patch_distances(patch_BN: Tensor, patch_bits: int) -> NDArray[np.int64]:
    """In how many bits each of the V patches differs from the one that stands at a place: (B, N, V)."""
    flips_BNV = patch_BN.long()[..., None] ^ torch.arange(1 << patch_bits)
    return unpack_patches(flips_BNV, patch_bits).sum(-1).numpy()


def _posterior(
    model: BitTransformerLM, patch_BN: Tensor, distance_BNV: NDArray[np.int64], rate: float
) -> NDArray[np.float64]:
    """Chances of all patches, given what was received: (B, N, V)."""
    c, device = model.config, model.head.weight.device
    if c.noise == "flips":
        chance_B = torch.full((len(patch_BN),), rate, device=device)
        return _normal(_leaf_scores(model.restored(patch_BN.to(device), chance_B)), c.parity)
    N = patch_BN.shape[1]
    scores_BNV = distance_BNV * math.log(rate / (1 - rate))
    chance_BNV, best_BN = np.empty(scores_BNV.shape), patch_BN
    for _ in range(SWEEPS):
        for turn in range(TURNS):
            hidden_N = torch.arange(N) % TURNS == turn
            seen_BN = best_BN.masked_fill(hidden_N, model.mask).to(device)
            expected_BKV = _leaf_scores(model.restored(seen_BN)[:, hidden_N.to(device)])
            at_N = hidden_N.numpy()
            chance_BNV[:, at_N] = _normal(expected_BKV + scores_BNV[:, at_N], c.parity)
        best_BN = _surest(chance_BNV, patch_BN)
    return chance_BNV


def _normal(scores_BNV: NDArray[np.float64], parity: bool) -> NDArray[np.float64]:
    """Log-chances but for a constant to chances; of bytes of nine bits only those with even parity."""
    if parity and scores_BNV.shape[-1] == 512:
        scores_BNV[..., patch_distances(torch.zeros(1, 1), 9)[0, 0] % 2 == 1] = -np.inf
    return np.exp(scores_BNV - np.logaddexp.reduce(scores_BNV, axis=-1, keepdims=True))
