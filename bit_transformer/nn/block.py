"""One layer of the trunk: attention over the past, then a transformation of each position."""

# Shapes: B batch, N positions, D model width, F feed-forward width.
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bit_transformer.nn.attention import SelfAttention
from bit_transformer.nn.cache import LayerCache
from bit_transformer.nn.norm import RMSNorm
from bit_transformer.nn.quantized import Linear


class SquaredReLU(torch.autograd.Function):
    """max(x, 0)^2, with a cheap backward pass; autograd's, through `square`, takes three to six times as long.

    It saves no tensor of its own: the linear map after it saves the square, whose root is exactly max(x, 0) again (Boldo 2015, "Stupid
    is as stupid does: taking the square root of the square of a floating-point number"). Values below 1e-11, including zero, are
    recovered to within 1e-15.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Elementwise."""
        kept = x.clamp_min(0)
        squared = kept.mul_(kept)
        ctx.save_for_backward(squared)
        return squared

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """2 max(x, 0) grad."""
        (squared,) = ctx.saved_tensors
        # Square roots of zeros and subnormal sums take ten times as long on a CPU, so 4e-30 is added.
        slope = torch.add(squared.new_tensor(4e-30), squared, alpha=4).sqrt_()
        return slope.mul_(grad)


class FeedForward(nn.Module):
    """Two linear maps with a squared ReLU between them: the second branch of a block, with its norm and dropout.

    Source: So et al. 2021, arXiv:2109.08668 (Primer), for the activation.
    """

    def __init__(self, d_model: int, dim_feedforward: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = RMSNorm()
        self.expand = Linear(d_model, dim_feedforward)
        self.out = Linear(dim_feedforward, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Output has the shape of the input; positions do not mix."""
        hidden_BNF = SquaredReLU.apply(self.expand(self.norm(x_BND)))  # type: ignore[no-untyped-call]
        return self.dropout(self.out(hidden_BNF))


class Block(nn.Module):
    """Two branches, each added to its input. Both end in a projection that starts at zero, so a new block is the identity.

    `forward` adds both to one stream; `nn/reversible.py` to two.

    Args:
        causal, window: see `SelfAttention`.

    Source: Xiong et al. 2020, arXiv:2002.04745 (pre-norm).
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int,
        dropout: float = 0.0,
        *,
        causal: bool = True,
        window: int | None = None,
    ) -> None:
        super().__init__()
        self.attend = SelfAttention(d_model, nhead, dropout, causal=causal, window=window)
        self.feed_forward = FeedForward(d_model, dim_feedforward, dropout)

    def forward(
        self, x_BND: Tensor, rotary_NK2: Tensor, cache: LayerCache | None = None, maps: list[Tensor] | None = None
    ) -> Tensor:
        """Output has the shape of the input; arguments as in `SelfAttention`."""
        x_BND = x_BND + self.attend(x_BND, rotary_NK2, cache, maps)
        return x_BND + self.feed_forward(x_BND)
