"""Hashed n-gram embeddings: what followed this exact context before is looked up instead of computed.

The last n patches are hashed into a table of learned rows, for several orders n, and the rows are added to the patch embedding. If a
patch is a byte, the same is done for the current word, and for the current and the previous word together. A small trunk learns
common contexts this way many times faster than through attention. Tables have sparse gradients: a step changes only the rows it
looked up.

Sources: Pagnoni et al. 2024, arXiv:2412.09871 (Byte Latent Transformer, section 3.2.1) for the embeddings; Mahoney 2005
("Adaptive weighing of context models for lossless data compression") for words as contexts.
"""

# Shapes: B batch, N positions, C = N + history context patches, O tables, D model width.
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bit_transformer.nn.quantized import Embedding, QuantizedTensor

# Odd 64-bit constants as signed integers; tensor arithmetic wraps around, as a multiplicative hash needs.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 / golden ratio (Knuth, TAOCP 3, 6.4)
_FINISH = 0xBF58476D1CE4E5B9 - (1 << 64)  # the first multiplier of SplitMix64 (Steele et al. 2014)
_STEP_INVERSE = pow(0x9E3779B97F4A7C15, -1, 1 << 64) - (1 << 64)  # _STEP * _STEP_INVERSE = 1 modulo 2^64

WORD_REACH = 16  # a word is at most its last 16 letters, and the previous word starts at most this far back


def hash_contexts(context_BC: Tensor, orders: tuple[int, ...], positions: int) -> list[Tensor]:
    """Hash the contexts that end at each of the last N patches.

    Args:
        context_BC: int64 patches, oldest first, any non-negative values.
        orders: context lengths in patches, ascending; the longest must fit into the given patches.
        positions: N.

    Returns:
        hash_BN for each order: int64, all bits mixed.
    """
    C = context_BC.shape[1]
    mixed_BC = (context_BC + 1) * _STEP
    state_BN = torch.zeros_like(mixed_BC[:, :positions])
    hashes: list[Tensor] = []
    for age in range(orders[-1] if orders else 0):
        state_BN = _mixed((state_BN * _FINISH) ^ mixed_BC[:, C - age - positions : C - age])
        if age + 1 in orders:
            hashes.append(state_BN)
    return hashes


def hash_words(byte_BC: Tensor, positions: int) -> list[Tensor]:
    """Hash the current word, and the current and the previous word together, at each of the last N bytes.

    A word is a run of letters, in lower case, or of bytes above 127. At any other byte the current word is that byte. All words are
    hashed at once: with prefix sums of `letter * step^-place`, the hash of places a .. b is a difference times step^b, in arithmetic
    modulo 2^64. It does not depend on the word's position.

    Returns:
        two hash_BN: int64, all bits mixed.
    """
    C = byte_BC.shape[1]
    place_C = torch.arange(C, device=byte_BC.device)
    upper_BC = (byte_BC >= ord("A")) & (byte_BC <= ord("Z"))
    lower_BC = torch.where(upper_BC, byte_BC + 32, byte_BC)
    letter_BC = (lower_BC >= ord("a")) & (lower_BC <= ord("z")) | (byte_BC >= 128) & (byte_BC < 256)

    gap_BC = torch.where(letter_BC, -1, place_C).cummax(1).values
    first_BC = torch.maximum(gap_BC + 1, place_C - (WORD_REACH - 1))
    mass_BC = nn.functional.pad(((lower_BC + 1) * _powers(_STEP_INVERSE, place_C)).cumsum(1), (1, 0))
    run_BC = (mass_BC[:, 1:] - mass_BC.gather(1, first_BC)) * _powers(_STEP, place_C)
    word_BC = torch.where(letter_BC, run_BC, (byte_BC + 1) * _FINISH)

    last_letter_BC = torch.where(letter_BC, place_C, -1).cummax(1).values
    end_BC = torch.where(gap_BC >= 0, last_letter_BC.gather(1, gap_BC.clamp_min(0)), -1)
    near_BC = (end_BC >= 0) & (end_BC >= place_C - WORD_REACH)
    before_BC = torch.where(near_BC, word_BC.gather(1, end_BC.clamp_min(0)), 0)
    return [_mixed(word_BC[:, -positions:]), _mixed(_mixed(before_BC * _FINISH) ^ word_BC)[:, -positions:]]


def _mixed(x: Tensor) -> Tensor:
    """Mix high bits into low ones, by a logical shift."""
    return x ^ ((x >> 29) & ((1 << 35) - 1))


def _powers(base: int, place_C: Tensor) -> Tensor:
    power_C = torch.full_like(place_C, base)
    power_C[:1] = 1
    return power_C.cumprod(0)


class NgramEmbedding(nn.Module):
    """Sum of one learned row per hashed context.

    Args:
        orders: context lengths in patches, ascending.
        rows: rows of one context's table, a power of two.
        dropout: for each context, the probability that a position loses its row in training; the other rows are scaled up. It stops
            the model from relying on contexts that it has seen once. Empty: none.
        word_shift: bits of a patch after its byte (1 with parity, else 0); turns on the two word contexts. None: off.
        both_sides: three contexts per order: the patches that end at a position, those that begin there, and both together.
    """

    def __init__(
        self,
        d_model: int,
        orders: tuple[int, ...],
        rows: int,
        dropout: tuple[float, ...] = (),
        word_shift: int | None = None,
        *,
        both_sides: bool = False,
    ) -> None:
        super().__init__()
        assert word_shift is None or not both_sides
        self.orders, self.rows, self.dropout, self.word_shift = orders, rows, dropout, word_shift
        self.both_sides = both_sides
        self.contexts = len(orders) * (3 if both_sides else 1) + (2 if word_shift is not None else 0)
        self.table = Embedding(self.contexts * rows, d_model, sparse=True)
        nn.init.zeros_(self.table.weight)

    @property
    def history(self) -> int:
        """Patches before a position that its longest context covers."""
        words = 2 * WORD_REACH - 1 if self.word_shift is not None else 0
        return max(words, self.orders[-1] - 1 if self.orders else 0)

    def rows_of(self, context_BC: Tensor) -> Tensor:
        """Table rows of the contexts at each of the last N = C - history patches; with `both_sides`, history is needed on both sides: row_BNO."""
        if self.both_sides:
            positions = context_BC.shape[1] - 2 * self.history
            before = hash_contexts(context_BC[:, : positions + self.history], self.orders, positions)
            mirrored = hash_contexts(context_BC[:, self.history :].flip(1), self.orders, positions)
            after = [hash_BN.flip(1) for hash_BN in mirrored]
            joint = [_mixed((a_BN * _FINISH) ^ b_BN) for a_BN, b_BN in zip(before, after, strict=True)]
            hashes = before + after + joint
        else:
            positions = context_BC.shape[1] - self.history
            hashes = hash_contexts(context_BC, self.orders, positions)
        if self.word_shift is not None:
            hashes += hash_words(context_BC >> self.word_shift, positions)
        hash_BNO = (torch.stack(hashes, dim=-1) * _STEP) >> 20
        return (hash_BNO & (self.rows - 1)) + torch.arange(self.contexts, device=hash_BNO.device) * self.rows

    def forward(self, context_BC: Tensor) -> Tensor:
        """Embedding of the contexts at each of N patches: x_BND; takes the patches as `rows_of` does."""
        row_BNO = self.rows_of(context_BC)
        weight_BNO = self._kept(row_BNO) if self.training and any(self.dropout) else None
        table = self.table
        whole = table.rounding is None and not isinstance(table.weight, QuantizedTensor)
        if whole and row_BNO.device.type in ("cpu", "cuda"):  # Metal has no such operation
            # Rows are summed as they are read, which takes an O-th of the memory of all rows.
            flat = None if weight_BNO is None else weight_BNO.to(table.weight.dtype).flatten(0, 1)
            x_RD = F.embedding_bag(
                row_BNO.flatten(0, 1), table.weight, mode="sum", sparse=table.sparse, per_sample_weights=flat
            )
            return x_RD.view(*row_BNO.shape[:2], table.embedding_dim)
        x_BNOD = table(row_BNO)
        return (x_BNOD if weight_BNO is None else weight_BNO.to(x_BNOD.dtype)[..., None] * x_BNOD).sum(2)

    def _kept(self, row_BNO: Tensor) -> Tensor:
        """Weights of the rows in training: 0 for those that are dropped, more than 1 for the others."""
        keep_O = 1 - torch.tensor(self.dropout, device=row_BNO.device)
        return (torch.rand(row_BNO.shape, device=row_BNO.device) < keep_O) / keep_O
