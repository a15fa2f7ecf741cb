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
    pair_BNHK2 = x_BNHK.to(rotary_NK2.dtype).reshape(*x_BNHK.shape[:-1], -1, 2)  # the table is never in half precision
    if torch.compiler.is_compiling():  # compilers do not generate code for complex numbers, and fuse this into one pass
        even, odd = pair_BNHK2.unbind(-1)
        cos, sin = rotary_NK2[:, None].unbind(-1)
        rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    else:  # one pass over memory; in eager mode the other takes three times as long
        rotated = torch.view_as_real(torch.view_as_complex(pair_BNHK2) * torch.view_as_complex(rotary_NK2)[:, None])
    return rotated.flatten(-2).to(x_BNHK.dtype)
