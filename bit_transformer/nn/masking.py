"""How much of a window is hidden at each moment of a diffusion, and which patches.

Time t runs from 0, where nothing is hidden, to 1, where all is. A schedule says what share is; every patch is hidden by itself, and
once hidden stays so (absorbing diffusion). The likelihood bound does not depend on the schedule (Kingma et al. 2021,
arXiv:2107.00630), its variance and what training dwells on do.

Sources: Austin et al. 2021, arXiv:2107.03006 (D3PM); Sahoo et al. 2024, arXiv:2406.07524 (MDLM); Shi et al. 2024,
arXiv:2406.04329 (MD4).
"""

# Shapes: B windows, N patches.
from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor

from bit_transformer.config import Schedule

SCHEDULES: tuple[str, ...] = get_args(Schedule)
STEEP = 5.0  # of the exponential schedule: the share not hidden falls to e^-5, and then to 0


def hidden_share(t: Tensor, schedule: Schedule) -> Tensor:
    """Share of the patches that are hidden at a time: rises from 0 at t = 0 to 1 at t = 1.

    linear: t. cosine: 1 - cos(pi t / 2), slow at first. exponential: fast at first, (1 - e^(-5t)) / (1 - e^-5). log-linear:
    geometric in t, so that windows with few hidden patches are as frequent as those with many: (101^t - 1) / 100.
    """
    if schedule == "linear":
        return t
    if schedule == "cosine":
        return 2 * torch.sin(t * (math.pi / 4)).square()  # 1 - cos(pi t / 2), which is 0 for small t in float32
    if schedule == "exponential":
        return torch.expm1(-STEEP * t) / math.expm1(-STEEP)
    return torch.expm1(t * math.log(101)) / 100


def hiding_rate(t: Tensor, schedule: Schedule) -> Tensor:
    """Derivative of `hidden_share`."""
    if schedule == "linear":
        return torch.ones_like(t)
    if schedule == "cosine":
        return math.pi / 2 * torch.sin(t * (math.pi / 2))
    if schedule == "exponential":
        return -STEEP * torch.exp(-STEEP * t) / math.expm1(-STEEP)
    return math.log(101) / 100 * torch.exp(t * math.log(101))


def stratified_times(count: int, device: torch.device | None = None) -> Tensor:
    """Times in (0, 1), one in each of so many equal parts: less scatter than independent ones, and each uniform by itself."""
    return (torch.arange(count, device=device) + torch.rand(count, device=device)) / count


def hide_some(patch_BN: Tensor, share_B: Tensor, mask: int) -> tuple[Tensor, Tensor]:
    """Hide each patch with the window's probability: the window with MASK symbols, and which were hidden."""
    hidden_BN = torch.rand(patch_BN.shape, device=patch_BN.device) < share_B[:, None]
    return patch_BN.masked_fill(hidden_BN, mask), hidden_BN


def hide_over_time(patch_BN: Tensor, schedule: Schedule, mask: int) -> tuple[Tensor, Tensor]:
    """Hide patches as at a time of its own for each window: which are hidden, and what their cost counts for in the bound: rate
    over share, (B,)."""
    t_B = stratified_times(len(patch_BN), patch_BN.device)
    share_B = hidden_share(t_B, schedule)
    _, hidden_BN = hide_some(patch_BN, share_B, mask)
    return hidden_BN, hiding_rate(t_B, schedule) / share_B


def hide_exactly(patch_BN: Tensor, count_B: Tensor, mask: int) -> tuple[Tensor, Tensor]:
    """Hide so many patches of each window, every choice of them equally likely."""
    order_BN = torch.rand(patch_BN.shape, device=patch_BN.device).argsort(dim=1).argsort(dim=1)
    hidden_BN = order_BN < count_B[:, None]
    return patch_BN.masked_fill(hidden_BN, mask), hidden_BN
