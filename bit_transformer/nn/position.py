"""Rotary positions: queries and keys are rotated by their position, so that their product depends on the distance."""

# Shapes: B batch, N positions, H heads, K head width.
from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(positions: int, head_width: int, theta: float = 10_000.0) -> Tensor:
    """Rotations of every position, as cosine and sine.

    Args:
        positions: number of positions.
        head_width: K, even.
        theta: the longest wavelength is about 2 pi theta positions.

    Returns:
        rotary_NK2: float64, shape (positions, K / 2, 2).

    Source: Su et al. 2021, arXiv:2104.09864, eq. 15.
    """
    frequency_K = theta ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angle_NK = torch.outer(torch.arange(positions, dtype=torch.float64), frequency_K)
    return torch.stack((angle_NK.cos(), angle_NK.sin()), dim=-1)


def rotate(x_BNHK: Tensor, rotary_NK2: Tensor) -> Tensor:
    """Rotate each pair of neighbouring channels of every head by its position's angle; same shape and dtype out.

    Args:
        rotary_NK2: the rows of `rotary_table` for the positions of x.
    """
    # A complex product is a single pass over memory. bfloat16 has no complex dtype, so the table's dtype is used.
    pair_BNHK = torch.view_as_complex(x_BNHK.to(rotary_NK2.dtype).reshape(*x_BNHK.shape[:-1], -1, 2))
    rotated = torch.view_as_real(pair_BNHK * torch.view_as_complex(rotary_NK2)[:, None])
    return rotated.flatten(-2).to(x_BNHK.dtype)
