"""One layer of the trunk: attend to the past, then transform each position."""

# Shapes: B batch, N positions, D model width.
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bit_transformer.nn.attention import CausalSelfAttention
from bit_transformer.nn.cache import LayerCache
from bit_transformer.nn.norm import RMSNorm


class SquaredReLU(torch.autograd.Function):
    """max(x, 0)^2, with a backward of one pass: autograd's own, through `square`, takes three to six times as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Element by element."""
        kept = x.clamp_min(0)
        squared = kept * kept
        ctx.save_for_backward(kept.mul_(2))
        return squared

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """2 max(x, 0) grad."""
        (slope,) = ctx.saved_tensors
        return grad * slope


class FeedForward(nn.Module):
    """Two linear maps with a squared ReLU between them.

    Source: So et al. 2021, arXiv:2109.08668 (Primer), for the activation.
    """

    def __init__(self, d_model: int, dim_feedforward: int) -> None:
        super().__init__()
        self.expand = nn.Linear(d_model, dim_feedforward, bias=False)
        self.out = nn.Linear(dim_feedforward, d_model, bias=False)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Same shape out as in; positions do not mix."""
        return self.out(SquaredReLU.apply(self.expand(x_BND)))  # type: ignore[no-untyped-call]


class Block(nn.Module):
    """Pre-norm transformer block. Both branches end in a projection that starts at zero, so a new block is the identity.

    Source: Xiong et al. 2020, arXiv:2002.04745 (pre-norm).
    """

    def __init__(self, d_model: int, nhead: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.attend_norm = RMSNorm()
        self.attend = CausalSelfAttention(d_model, nhead)
        self.feed_norm = RMSNorm()
        self.feed_forward = FeedForward(d_model, dim_feedforward)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BND: Tensor, turn_NK2: Tensor, cache: LayerCache | None = None) -> Tensor:
        """Same shape out as in."""
        x_BND = x_BND + self.dropout(self.attend(self.attend_norm(x_BND), turn_NK2, cache))
        return x_BND + self.dropout(self.feed_forward(self.feed_norm(x_BND)))
