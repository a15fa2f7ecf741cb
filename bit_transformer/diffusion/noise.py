"""The noise of a diffusion: how much of a window is lost at each time, and which patches or bits.

Time t runs from 0, where nothing is lost, to 1, where everything is; a schedule gives the fraction lost. One kind of noise masks each
patch independently, and masked patches stay masked (absorbing diffusion). The other replaces bits by fair coin flips, so half of the
replaced bits are flipped (uniform diffusion). The likelihood bounds do not depend on the schedule (Kingma et al. 2021,
arXiv:2107.00630). Their variance does, and so do the noise levels that training sees most.

Sources: Austin et al. 2021, arXiv:2107.03006 (D3PM: both kinds); Sahoo et al. 2024, arXiv:2406.07524 (MDLM); Shi et al. 2024,
arXiv:2406.04329 (MD4).
"""

# Shapes: B windows, N patches, P bits of a patch.
from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor

from bit_transformer.config import FLIP_LEVELS, Schedule

SCHEDULES: tuple[str, ...] = get_args(Schedule)
STEEP = 5.0  # of the exponential schedule: the fraction left falls to e^-5, and then to 0


def noise_share(t: Tensor, schedule: Schedule) -> Tensor:
    """Fraction of a window that is lost at a time: from 0 at t = 0 to 1 at t = 1.

    linear: t. cosine: 1 - cos(pi t / 2), slow at first. exponential: fast at first, (1 - e^(-5t)) / (1 - e^-5). log-linear: geometric in
    t, so that all orders of magnitude of the fraction are equally frequent: (101^t - 1) / 100.
    """
    if schedule == "linear":
        return t
    if schedule == "cosine":
        return 2 * torch.sin(t * (math.pi / 4)).square()  # 1 - cos(pi t / 2), which is 0 for small t in float32
    if schedule == "exponential":
        return torch.expm1(-STEEP * t) / math.expm1(-STEEP)
    return torch.expm1(t * math.log(101)) / 100


def noise_rate(t: Tensor, schedule: Schedule) -> Tensor:
    """Derivative of `noise_share`."""
    if schedule == "linear":
        return torch.ones_like(t)
    if schedule == "cosine":
        return math.pi / 2 * torch.sin(t * (math.pi / 2))
    if schedule == "exponential":
        return -STEEP * torch.exp(-STEEP * t) / math.expm1(-STEEP)
    return math.log(101) / 100 * torch.exp(t * math.log(101))


def stratified_times(count: int, device: torch.device | None = None) -> Tensor:
    """Times in (0, 1), one in each of `count` equal parts. Each is uniform; together they vary less than independent ones."""
    t = (torch.arange(count, device=device) + torch.rand(count, device=device)) / count
    return t.clamp(1e-7, 1 - 2**-24)  # rounding can reach both ends


def noise_levels(
    count: int, schedule: Schedule, reach: float = 1.0, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """A noise level for each window, at stratified times up to `reach`: the fraction lost, and the weight of its cost in the bound (rate
    divided by fraction); both (B,)."""
    t_B = stratified_times(count, device) * reach
    share_B = noise_share(t_B, schedule)
    return share_B, noise_rate(t_B, schedule) / share_B


def hide_some(shape: torch.Size, share_B: Tensor) -> Tensor:
    """Mask each patch with the window's probability. Returns which are masked, (B, N)."""
    return torch.rand(shape, device=share_B.device) < share_B[:, None]


def hide_exactly(shape: torch.Size, count_B: Tensor) -> Tensor:
    """Mask `count_B` patches of each window, every choice equally likely. Returns which are masked, (B, N)."""
    order_BN = torch.rand(shape, device=count_B.device).argsort(dim=1).argsort(dim=1)
    return order_BN < count_B[:, None]


def flip_bits(patch_BN: Tensor, chance_B: Tensor, patch_bits: int) -> Tensor:
    """Flip each bit of patches with the window's probability, half of the fraction lost: (B, N)."""
    flipped_BNP = torch.rand((*patch_BN.shape, patch_bits), device=patch_BN.device) < chance_B[:, None, None]
    place_P = 1 << torch.arange(patch_bits - 1, -1, -1, device=patch_BN.device)
    return patch_BN ^ (flipped_BNP * place_P).sum(-1)


LEAST = 5e-4  # smallest flip probability that the levels distinguish


def flip_level(chance_B: Tensor) -> Tensor:
    """The level of a flip probability; levels are evenly spaced in its log-odds."""
    height_B = 1 - torch.logit(chance_B, eps=LEAST) / math.log(LEAST / (1 - LEAST))
    return (height_B * (FLIP_LEVELS - 1)).round().long().clamp(0, FLIP_LEVELS - 1)


def flips_cost(one_BNP: Tensor, bit_BNP: Tensor, seen_BNP: Tensor, share_B: Tensor, weight_B: Tensor) -> Tensor:
    """Contribution of a noise level of flips to the bound, in nats per window, (B,). Its mean over times is the bound.

    In reversed time a flip happens at the forward rate times s, the odds of a bit's flipped value against its present one, given the true
    bits. A model that predicts the true bit's probability gives the mean of s, and a wrong rate costs what it does in a Poisson process.
    For a model that knows nothing the mean is 1, and its bound is known: one bit per bit. So only the difference to that model is sampled,
    which varies far less.

    Args:
        one_BNP: the model's probability of a one for every bit.
        bit_BNP: the bits; seen_BNP: the bits with noise.
        share_B, weight_B: from `noise_levels`.

    Source: Campbell et al. 2022, arXiv:2205.14987, proposition 2; Lou et al. 2024, arXiv:2310.16834, for s.
    """
    odds_B11 = (share_B / (2 - share_B))[:, None, None]  # of a flip
    stays_BNP = torch.where(seen_BNP == 1, one_BNP, 1 - one_BNP).clamp(0, 1)  # sums of leaves may be slightly off
    guess_BNP = stays_BNP * odds_B11 + (1 - stays_BNP) / odds_B11
    truth_BNP = torch.where(seen_BNP == bit_BNP, odds_B11, 1 / odds_B11)
    flip_rate_B = weight_B * share_B / 2 / (1 - share_B).clamp_min(1e-6)
    more_B = (guess_BNP - 1 - truth_BNP * guess_BNP.log()).sum((1, 2)) * flip_rate_B
    return more_B + bit_BNP[0].numel() * math.log(2)
