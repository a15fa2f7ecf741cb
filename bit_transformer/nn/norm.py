"""Root-mean-square normalisation."""

# Shapes: D model width; leading axes are free.
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """Scale each position to unit mean square, then by a learned gain.

    Source: Zhang & Sennrich 2019, arXiv:1910.07467.
    """

    def __init__(self, d_model: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(d_model))
        self.eps = eps

    def forward(self, x_D: Tensor) -> Tensor:
        """Same shape and dtype out as in."""
        return F.rms_norm(x_D, (x_D.shape[-1],), self.gain.to(x_D.dtype), self.eps)
