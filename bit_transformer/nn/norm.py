"""Root-mean-square normalisation without a gain: the linear map after it can absorb one."""

# Shapes: D model width; leading axes are free.
from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

EPS = 1e-4  # added to the sum of squares, not to their mean, so that channels of zeros only change the scale


class _Normalize(torch.autograd.Function):
    """x / rms(x), with a cheap backward pass: on a CPU PyTorch's own takes several times as long."""

    @staticmethod
    def forward(ctx: Any, x_D: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x_D, dim=-1, keepdim=True)
        inverse = norm.square_().add_(EPS).rsqrt_().mul_(math.sqrt(x_D.shape[-1]))
        unit_D = x_D * inverse
        ctx.save_for_backward(unit_D, inverse)
        return unit_D

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_D: Tensor) -> Tensor:
        unit_D, inverse = ctx.saved_tensors
        along = (grad_D * unit_D).mean(-1, keepdim=True)
        return torch.addcmul(grad_D, unit_D, along, value=-1).mul_(inverse)


class RMSNorm(nn.Module):
    """Scale each position to unit mean square.

    Source: Zhang & Sennrich 2019, arXiv:1910.07467, without the gain.
    """

    def forward(self, x_D: Tensor) -> Tensor:
        """Output has the shape and dtype of the input."""
        return _Normalize.apply(x_D)  # type: ignore[no-untyped-call]
