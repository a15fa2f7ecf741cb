"""Causal multi-head self-attention with rotary positions."""

# Shapes: B batch, N positions, D model width, E = 2 D, H heads, K head width.
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bit_transformer.nn.cache import LayerCache
from bit_transformer.nn.position import rotate


class CausalSelfAttention(nn.Module):
    """Each position reads from itself and the positions before it.

    Source: Vaswani et al. 2017, arXiv:1706.03762; the kernel is PyTorch's `scaled_dot_product_attention`.
    """

    def __init__(self, d_model: int, nhead: int) -> None:
        super().__init__()
        self.nhead = nhead
        self.query_key_value = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x_BND: Tensor, turn_NK2: Tensor, cache: LayerCache | None = None) -> Tensor:
        """Attend.

        Args:
            turn_NK2: rotary turns of the N positions of x.
            cache: keys and values of earlier positions; x is then their continuation, and is added to it.
        """
        B, N, D = x_BND.shape
        # Queries and keys turn together, as twice as many heads.
        turning_BNE, value_BND = self.query_key_value(x_BND).split((2 * D, D), dim=-1)
        turned_BNHK = rotate(turning_BNE.view(B, N, 2 * self.nhead, -1), turn_NK2)
        query_BHNK, key_BHNK = turned_BNHK.transpose(1, 2).chunk(2, dim=1)
        value_BHNK = value_BND.view(B, N, self.nhead, -1).transpose(1, 2)
        if cache is None:
            y_BHNK = F.scaled_dot_product_attention(query_BHNK, key_BHNK, value_BHNK, is_causal=True)
        else:
            y_BHNK = attend_to_cache(query_BHNK, *cache.extend(key_BHNK, value_BHNK))
        return self.out(y_BHNK.transpose(1, 2).reshape(B, N, D))


def attend_to_cache(query_BHNK: Tensor, key_BHMK: Tensor, value_BHMK: Tensor) -> Tensor:
    """Attention of the last N of M positions: query n sees the keys up to its own place, M - N + n."""
    N, M = query_BHNK.shape[2], key_BHMK.shape[2]
    seen_NM = None if N == 1 else torch.ones(N, M, dtype=torch.bool, device=query_BHNK.device).tril(M - N)
    return F.scaled_dot_product_attention(query_BHNK, key_BHMK, value_BHMK, attn_mask=seen_NM)
