"""Bounds on the likelihood under a diffusion model.

Undoing the noise in small steps gives a sample; what the steps cost is a bound on the likelihood. Two estimators of that bound share
nothing but the model: one takes time as continuous, the other counts steps.

Sources: Sahoo et al. 2024, arXiv:2406.07524 (MDLM); Ou et al. 2024, arXiv:2406.03736 (equality with any-order models); Austin et al.
2021, arXiv:2107.03006 (steps back through flips, section 3 and appendix A).
"""

# Shapes: B windows, S samples of one, N patches, P bits of a patch, V = 2^P symbols.
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bit_transformer.diffusion.denoiser import check_diffusion, leaf_scores, masked_nll, restored
from bit_transformer.diffusion.noise import (
    flip_bits,
    flips_cost,
    hide_exactly,
    hide_some,
    noise_levels,
    noise_share,
    stratified_times,
)
from bit_transformer.errors import ConfigError
from bit_transformer.model import BitTransformerLM, in_use
from bit_transformer.nn.patching import bit_chances, pack_patches, patch_distances, unpack_patches

Estimator = Literal["continuous", "discrete"]
BOUND_STEPS = 1024  # of the discrete estimator, through flips


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
    bits_BT: Tensor | NDArray[Any],
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
    check_diffusion(model)
    bits_BT = torch.as_tensor(bits_BT)
    model.check_bits(bits_BT)
    model.check_window(bits_BT)
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
        return masked_nll(model, patch_SN, hide_some(patch_SN.shape, share_S)).sum(1) * weight_S
    P = model.config.patch_bits
    seen_SN = flip_bits(patch_SN, share_S / 2, P)
    one_SNP = bit_chances(restored(model, seen_SN, share_S / 2).double())
    return flips_cost(
        one_SNP, unpack_patches(patch_SN, P), unpack_patches(seen_SN, P), share_S.double(), weight_S.double()
    )


def _hidden_by_count(model: BitTransformerLM, patch_SN: Tensor) -> Tensor:
    S, N = patch_SN.shape
    count_S = (stratified_times(S, patch_SN.device) * N).long() + 1
    return masked_nll(model, patch_SN, hide_exactly(patch_SN.shape, count_S)).sum(1) * (N / count_S)


def _flips_by_step(model: BitTransformerLM, patch_SN: Tensor, steps: int) -> NDArray[np.float64]:
    P = model.config.patch_bits
    step_S = (stratified_times(len(patch_SN), patch_SN.device) * steps).long()
    chance_S = flip_chance((step_S + 1).double() / steps).to(model.head.weight)
    seen_SN = flip_bits(patch_SN, chance_S, P)
    scores_SNV = leaf_scores(restored(model, seen_SN, chance_S))
    before_S, after_S = (flip_chance(at_S.cpu().double() / steps).numpy() for at_S in (step_S, step_S + 1))
    bit_SNP = unpack_patches(seen_SN, P).cpu().numpy()
    back_SNP22 = steps_back(before_S, after_S)[np.arange(len(patch_SN))[:, None, None], :, bit_SNP]
    truth_SNV = _through(np.eye(1 << P)[patch_SN.cpu().numpy()], back_SNP22)
    guess_SNV = _through(np.exp(scores_SNV), back_SNP22)
    # Of a model that knows nothing the bound is a bit for each bit, so only the difference to that one is sampled.
    between_S11 = _between(before_S, after_S)[:, None, None]
    distance_SNV = patch_distances(seen_SN.cpu(), P)
    nothing_SNV = distance_SNV * np.log(between_S11) + (P - distance_SNV) * np.log1p(-between_S11)
    guess_SNV = np.log(np.maximum(guess_SNV, np.finfo(np.float64).tiny))
    return (truth_SNV * (nothing_SNV - guess_SNV)).sum((1, 2)) * steps + bit_SNP[0].size * math.log(2)


def flip_chance(t: Tensor) -> Tensor:
    """Probability that a bit is flipped at a time, with the cosine schedule."""
    return noise_share(t, "cosine") / 2


def steps_back(before_S: NDArray[np.float64], after_S: NDArray[np.float64]) -> NDArray[np.float64]:
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
