"""Multi-head self-attention with rotary positions, over the whole window or the latest positions, with or without a cache."""

# Shapes: B batch, N positions, M keys (N or more), D model width, E = 2 D, H heads, K head width. Local attention: W window,
# U = 2 W keys of a chunk, C chunks of the whole batch.
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bit_transformer.nn.cache import LayerCache
from bit_transformer.nn.norm import RMSNorm
from bit_transformer.nn.position import rotate
from bit_transformer.nn.quantized import Linear


class SelfAttention(nn.Module):
    """Each position reads from others: the first branch of a block, with its norm and dropout.

    Args:
        causal: a position reads itself and earlier ones; otherwise all.
        window: most positions it reads, including itself; None: all.

    Source: Vaswani et al. 2017, arXiv:1706.03762; the kernel is PyTorch's `scaled_dot_product_attention`.
    """

    def __init__(
        self, d_model: int, nhead: int, dropout: float = 0.0, *, causal: bool = True, window: int | None = None
    ) -> None:
        super().__init__()
        assert causal or window is None
        self.nhead, self.causal, self.window = nhead, causal, window
        self.norm = RMSNorm()
        self.query_key_value = Linear(d_model, 3 * d_model)
        self.out = Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x_BND: Tensor, rotary_NK2: Tensor, cache: LayerCache | None = None, maps: list[Tensor] | None = None
    ) -> Tensor:
        """Attend.

        Args:
            rotary_NK2: rotations of the N positions of x.
            cache: keys and values of earlier positions. x continues them and is added to the cache.
            maps: if given, the attention map is appended to it; the result is the same.
        """
        B, N, D = x_BND.shape
        # Queries and keys are rotated together, as twice as many heads.
        unrotated_BNE, value_BND = self.query_key_value(self.norm(x_BND)).split((2 * D, D), dim=-1)
        rotated_BNHK = rotate(unrotated_BNE.view(B, N, 2 * self.nhead, -1), rotary_NK2)
        query_BHNK, key_BHMK = rotated_BNHK.transpose(1, 2).chunk(2, dim=1)
        # A copy: a view would keep the whole projection for the backward pass, including queries and keys before rotation.
        value_BHMK = value_BND.contiguous().view(B, N, self.nhead, -1).transpose(1, 2)
        if cache is not None:
            key_BHMK, value_BHMK = cache.extend(key_BHMK, value_BHMK)
        if maps is not None:
            maps.append(attention_map(query_BHNK, key_BHMK, self.window, causal=self.causal))
        if self.causal:
            y_BHNK = attend(query_BHNK, key_BHMK, value_BHMK, self.window)
        else:
            y_BHNK = F.scaled_dot_product_attention(query_BHNK, key_BHMK, value_BHMK)
        return self.dropout(self.out(y_BHNK.transpose(1, 2).reshape(B, N, D)))


def attend(query_BHNK: Tensor, key_BHMK: Tensor, value_BHMK: Tensor, window: int | None = None) -> Tensor:
    """Causal attention of the last N of M positions: query n reads keys 0 .. M - N + n.

    Args:
        window: W, the most keys that a query reads. Time and memory are then linear in N: queries are taken in chunks of W, each with
            its own keys and the W before; a band mask selects among them.
    """
    B, H, N, K = query_BHNK.shape
    if window is None or window >= N:
        return _attend_masked(query_BHNK, key_BHMK, value_BHMK, window)
    W, past = window, key_BHMK.shape[2] - N
    # Copies, for the same reason as the values' above.
    first = [x.clone() for x in (query_BHNK[:, :, :W], key_BHMK[:, :, : past + W], value_BHMK[:, :, : past + W])]
    begin_BHWK = _attend_masked(first[0], first[1], first[2], W)
    rest_BHNK = F.pad(query_BHNK[:, :, W:], (0, 0, 0, -N % W))
    keys = [F.pad(x[:, :, past:], (0, 0, 0, -N % W)) for x in (key_BHMK, value_BHMK)]
    query_CHWK = _chunks(rest_BHNK, W, W)
    key_CHUK, value_CHUK = (_chunks(x, 2 * W, W) for x in keys)
    y_CHWK = _attend_masked(query_CHWK, key_CHUK, value_CHUK, W)
    y_BHNK = y_CHWK.view(B, -1, H, W, K).transpose(1, 2).flatten(2, 3)
    return torch.cat((begin_BHWK, y_BHNK[:, :, : N - W]), dim=2)


def _attend_masked(query_BHNK: Tensor, key_BHMK: Tensor, value_BHMK: Tensor, window: int | None) -> Tensor:
    N, M = query_BHNK.shape[2], key_BHMK.shape[2]
    if window is None or window >= M:
        if N in (1, M):  # the last position reads all
            return F.scaled_dot_product_attention(query_BHNK, key_BHMK, value_BHMK, is_causal=N > 1)
        window = None
    seen_NM = _seen(N, M, window, query_BHNK.device)
    return F.scaled_dot_product_attention(query_BHNK, key_BHMK, value_BHMK, attn_mask=seen_NM)


def _chunks(x_BHNK: Tensor, size: int, every: int) -> Tensor:
    """Overlapping pieces of the positions, each as its own batch entry: (B x pieces, H, size, K)."""
    return x_BHNK.unfold(2, size, every).permute(0, 2, 1, 4, 3).flatten(0, 1)


def _seen(N: int, M: int, window: int | None, device: torch.device) -> Tensor:
    """Mask of the M keys that each of the last N positions reads: up to its own position, and only the latest `window`."""
    up_to_NM = torch.ones(N, M, dtype=torch.bool, device=device).tril(M - N)
    return up_to_NM if window is None else up_to_NM.triu(M - N - window + 1)


@torch.no_grad()
def attention_map(query_BHNK: Tensor, key_BHMK: Tensor, window: int | None, *, causal: bool) -> Tensor:
    """Attention weights of the last N positions over M keys: weight_BHNM; rows sum to 1.

    Quadratic in time and memory, for any window.
    """
    with torch.autocast(query_BHNK.device.type, enabled=False):
        score_BHNM = (query_BHNK.float() @ key_BHMK.float().mT) * query_BHNK.shape[-1] ** -0.5
        if causal:
            seen_NM = _seen(query_BHNK.shape[2], key_BHMK.shape[2], window, query_BHNK.device)
            score_BHNM = score_BHNM.masked_fill_(~seen_NM, -torch.inf)
        return score_BHNM.softmax(-1)
