"""Hashed n-gram embeddings: what followed this exact context before, looked up instead of computed.

The last n patches are hashed into a table of learned rows, for several orders n, and the rows are added to the patch
embedding. A small trunk learns common contexts from them many times faster than through attention. Tables take sparse
gradients: a step touches only the rows it looked up.

Source: Pagnoni et al. 2024, arXiv:2412.09871 (Byte Latent Transformer, section 3.2.1).
"""

# Shapes: B batch, N positions, C = N + (longest order - 1) context patches, O orders, D model width.
from __future__ import annotations

import torch
from torch import Tensor, nn

# Odd 64-bit constants as signed integers; tensor arithmetic wraps around, which is what a multiplicative hash wants.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 / golden ratio (Knuth, TAOCP 3, 6.4)
_FINISH = 0xBF58476D1CE4E5B9 - (1 << 64)  # the first multiplier of SplitMix64 (Steele et al. 2014)


def hash_contexts(context_BC: Tensor, orders: tuple[int, ...], rows: int) -> Tensor:
    """Table rows for the contexts that end at each of the last N = C - (max(orders) - 1) patches.

    Args:
        context_BC: int64 patches, oldest first, any non-negative values.
        orders: context lengths in patches, ascending.
        rows: rows of one order's table, a power of two.

    Returns:
        row_BNO: int64; order o has the rows [o * rows, (o + 1) * rows).
    """
    N = context_BC.shape[1] - (orders[-1] - 1)
    mixed_BC = (context_BC + 1) * _STEP
    state_BN = torch.zeros_like(mixed_BC[:, :N])
    row: list[Tensor] = []
    for age in range(orders[-1]):
        end = mixed_BC.shape[1] - age
        state_BN = (state_BN * _FINISH) ^ mixed_BC[:, end - N : end]
        state_BN = state_BN ^ ((state_BN >> 29) & ((1 << 35) - 1))
        if age + 1 in orders:
            finished_BN = (state_BN * _STEP) >> 20
            row.append((finished_BN & (rows - 1)) + len(row) * rows)
    return torch.stack(row, dim=-1)


class NgramEmbedding(nn.Module):
    """The sum over orders of one learned row per hashed context.

    Args:
        orders: context lengths in patches, ascending.
        rows: rows of one order's table, a power of two.
        dropout: chance that a position loses the row of an order in training; the others are scaled up. It keeps
            the model from leaning on contexts that it has seen once.
    """

    def __init__(self, d_model: int, orders: tuple[int, ...], rows: int, dropout: tuple[float, ...]) -> None:
        super().__init__()
        self.orders, self.rows = orders, rows
        self.dropout = dropout
        self.table = nn.Embedding(len(orders) * rows, d_model, sparse=True)
        nn.init.zeros_(self.table.weight)

    @property
    def history(self) -> int:
        """How many patches before a position its longest context reaches back."""
        return self.orders[-1] - 1

    def forward(self, context_BC: Tensor) -> Tensor:
        """Embedding of the contexts that end at each of the last N patches: x_BND."""
        row_BNO = hash_contexts(context_BC, self.orders, self.rows)
        x_BNOD = self.table(row_BNO)
        if not self.training or not any(self.dropout):
            return x_BNOD.sum(2)
        keep_O = 1 - torch.tensor(self.dropout, device=x_BNOD.device)
        kept_BNO = torch.rand(row_BNO.shape, device=x_BNOD.device) < keep_O
        return torch.einsum("bno,bnod->bnd", (kept_BNO / keep_O).to(x_BNOD.dtype), x_BNOD)
