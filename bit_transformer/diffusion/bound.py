"""Bounds on the likelihood under a diffusion model.

Undoing the noise in small steps gives a sample; the cost of the steps bounds the likelihood. There are two independent estimators of
that bound: one with continuous time, one with counted steps.

Sources: Sahoo et al. 2024, arXiv:2406.07524 (MDLM); Ou et al. 2024, arXiv:2406.03736 (equality with any-order models); Austin et al.
2021, arXiv:2107.03006 (reverse steps for flips, section 3 and appendix A).
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
BOUND_STEPS = 1024  # for the discrete estimator with flips


@dataclass(frozen=True)
class Bound:
    """An upper bound on the cost of windows, estimated by sampling.

    Attributes:
        bits: cost of all windows together.
        standard_error: of `bits`.
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
    """Estimate the bound on the cost in bits of windows under a diffusion model.

    continuous: each sample of a window gets a time, stratified over its samples. The cost of what is lost is weighted by its rate in
    continuous time.
    discrete, masked patches: the number of masked patches is a stratified draw from 1 .. N, with all choices of patches equally likely.
    The estimate is N times their mean cost, with the same bound as its expectation.
    discrete, flips: the divergence between one of `steps` reverse steps and the true one; this bound is looser by about one part in
    `steps`.

    Args:
        bits_BT: windows of whole patches.
        samples: per window; at least two, for the standard error.
        steps: for the discrete estimator with flips.

    Raises:
        BitStreamError: windows that do not fit the model.
        ConfigError: an autoregressive model, too few samples or steps, or an unknown estimator.
    """
    if samples < 2 or steps < 1:
        name, value, least = ("samples", samples, 2) if samples < 2 else ("steps", steps, 1)
        raise ConfigError(f"got {name}={value}; at least {least} is needed. Try {16 if least == 2 else BOUND_STEPS}")
    if estimator not in get_args(Estimator):
        raise ConfigError(
            f"got estimator={estimator!r}; it must be one of {', '.join(get_args(Estimator))}. Try discrete"
        )
    check_diffusion(model)
    bits_BT = torch.as_tensor(bits_BT)
    model.check_bits(bits_BT)
    model.check_window(bits_BT)
    patch_BN = pack_patches(bits_BT, model.config.patch_bits).to(model.head.weight.device)
    masked = model.config.noise == "hidden"
    costs_BS = np.empty((len(patch_BN), samples))
    with in_use(model), torch.random.fork_rng():
        torch.manual_seed(seed)
        for row, patch_N in enumerate(patch_BN):
            patch_SN = patch_N.expand(samples, -1)
            if estimator == "continuous":
                nats_S = _continuous(model, patch_SN).double().cpu().numpy()
            elif masked:
                nats_S = _masked_by_count(model, patch_SN).double().cpu().numpy()
            else:
                nats_S = _flips_by_step(model, patch_SN, steps)
            costs_BS[row] = nats_S / math.log(2)
    # Each stratum has one draw, so their variance about the mean can only overestimate the error.
    error = math.sqrt((costs_BS.var(axis=1, ddof=1) / samples).sum())
    costs_B = costs_BS.mean(axis=1)
    return Bound(float(costs_B.sum()), error, tuple(costs_B.tolist()))


def _continuous(model: BitTransformerLM, patch_SN: Tensor) -> Tensor:
    """Nats of each sample. The mean is the same for any schedule; the cosine schedule has bounded variance near t = 0."""
    fraction_S, weight_S = noise_levels(len(patch_SN), "cosine", device=patch_SN.device)
    if model.config.noise == "hidden":
        return masked_nll(model, patch_SN, hide_some(patch_SN.shape, fraction_S)).sum(1) * weight_S
    P = model.config.patch_bits
    seen_SN = flip_bits(patch_SN, fraction_S / 2, P)
    one_SNP = bit_chances(restored(model, seen_SN, fraction_S / 2).double())
    return flips_cost(
        one_SNP, unpack_patches(patch_SN, P), unpack_patches(seen_SN, P), fraction_S.double(), weight_S.double()
    )


def _masked_by_count(model: BitTransformerLM, patch_SN: Tensor) -> Tensor:
    S, N = patch_SN.shape
    count_S = (stratified_times(S, patch_SN.device) * N).long() + 1
    return masked_nll(model, patch_SN, hide_exactly(patch_SN.shape, count_S)).sum(1) * (N / count_S)


def _flips_by_step(model: BitTransformerLM, patch_SN: Tensor, steps: int) -> NDArray[np.float64]:
    P = model.config.patch_bits
    step_S = (stratified_times(len(patch_SN), patch_SN.device) * steps).long()
    probability_S = flip_chance((step_S + 1).double() / steps).to(model.head.weight)
    seen_SN = flip_bits(patch_SN, probability_S, P)
    scores_SNV = leaf_scores(restored(model, seen_SN, probability_S))
    before_S, after_S = (flip_chance(at_S.cpu().double() / steps).numpy() for at_S in (step_S, step_S + 1))
    bit_SNP = unpack_patches(seen_SN, P).cpu().numpy()
    back_SNP22 = steps_back(before_S, after_S)[np.arange(len(patch_SN))[:, None, None], :, bit_SNP]
    truth_SNV = _through(np.eye(1 << P)[patch_SN.cpu().numpy()], back_SNP22)
    guess_SNV = _through(np.exp(scores_SNV), back_SNP22)
    # For a model that knows nothing the bound is one bit per bit, so only the difference to that model is sampled.
    between_S11 = _between(before_S, after_S)[:, None, None]
    distance_SNV = patch_distances(seen_SN.cpu(), P)
    nothing_SNV = distance_SNV * np.log(between_S11) + (P - distance_SNV) * np.log1p(-between_S11)
    guess_SNV = np.log(np.maximum(guess_SNV, np.finfo(np.float64).tiny))
    return (truth_SNV * (nothing_SNV - guess_SNV)).sum((1, 2)) * steps + bit_SNP[0].size * math.log(2)


def flip_chance(t: Tensor) -> Tensor:
    """Probability that a bit is flipped at a time, with the cosine schedule."""
    return noise_share(t, "cosine") / 2


def steps_back(before_S: NDArray[np.float64], after_S: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability of a bit's value one step earlier, given its true value and the value seen: (S, true, seen, was). Bits are flipped with
    probability `after` now and `before` then."""
    here = np.eye(2, dtype=bool)

    def flips(probability_S: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(here, 1 - probability_S[:, None, None], probability_S[:, None, None])

    # Axes: true to was, and was to seen.
    joint_S222 = flips(before_S)[:, :, None, :] * flips(_between(before_S, after_S))[:, None].swapaxes(2, 3)
    normal: NDArray[np.float64] = joint_S222 / joint_S222.sum(-1, keepdims=True)
    return normal


def _between(before_S: NDArray[np.float64], after_S: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability of a flip between one time and a later one."""
    return (after_S - before_S) / (1 - 2 * before_S)


def _through(probability_SNV: NDArray[np.float64], back_SNP22: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distributions over patches after each bit went through its own transition, bit by bit: (S, N, V)."""
    S, N, V = probability_SNV.shape
    for j in range(back_SNP22.shape[2]):
        split = probability_SNV.reshape(S, N, 1 << j, 2, -1)
        probability_SNV = np.einsum("snlxr,snxy->snlyr", split, back_SNP22[:, :, j]).reshape(S, N, V)
    return probability_SNV
