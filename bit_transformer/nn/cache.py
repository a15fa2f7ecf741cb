"""What cached decoding keeps between steps: keys and values of every layer, in tensors that never move."""

# Shapes: B batch, N positions, H heads, K head width, L layers.
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bit_transformer.nn.position import rotate

if TYPE_CHECKING:
    from bit_transformer.experts.streams import ExpertStreams
    from bit_transformer.nn.single import SingleStream


class LayerCache:
    """Keys and values of one layer, (B, H, capacity, K) each, filled from the left."""

    def __init__(self, key_BHNK: Tensor, value_BHNK: Tensor) -> None:
        self.key_BHNK, self.value_BHNK = key_BHNK, value_BHNK
        self.length = 0

    def extend(self, key_BHNK: Tensor, value_BHNK: Tensor) -> tuple[Tensor, Tensor]:
        """Append n positions; all keys and values so far come back, as views."""
        end = self.length + key_BHNK.shape[2]
        self.key_BHNK[:, :, self.length : end] = key_BHNK
        self.value_BHNK[:, :, self.length : end] = value_BHNK
        self.length = end
        return self.key_BHNK[:, :, :end], self.value_BHNK[:, :, :end]

    def forget(self, count: int, turn_back_K2: Tensor) -> None:
        """Drop the `count` oldest positions after the first and move the rest down.

        The first position (start of window) stays: attention leans on it. Keys are turned back by `count` positions,
        so that the rest stand as if the window had begun later; values carry no position.
        """
        kept = self.length - count
        moved_BNHK = self.key_BHNK[:, :, 1 + count : self.length].transpose(1, 2)
        self.key_BHNK[:, :, 1:kept] = rotate(moved_BNHK, turn_back_K2[None]).transpose(1, 2)
        self.value_BHNK[:, :, 1:kept] = self.value_BHNK[:, :, 1 + count : self.length].clone()
        self.length = kept


class DecodeCache:
    """The state of B streams that are decoded together, all at the same position.

    Attributes:
        layers: one `LayerCache` a layer.
        recent_BN: the latest patches of each stream, oldest first: the contexts of the n-gram embeddings.
        prefix_BR: the bits of the patch that is not complete yet, R < patch_bits of them.
        state_BD: the trunk's state that predicts the patch that is not complete yet.
        symbols_seen: symbols so far, the start symbol included, whatever the window has forgotten.
        capacity: positions a layer can hold, the start symbol included.
        single: the fast way on for a stream that is alone on a processor, if it is.
        experts: where the bank of experts stands in each stream, if the model has one.
    """

    def __init__(
        self, layers: list[LayerCache], recent_BN: Tensor, state_BD: Tensor, single: SingleStream | None = None
    ) -> None:
        self.layers, self.single = layers, single
        self.experts: ExpertStreams | None = None
        self.recent_BN = recent_BN
        self.prefix_BR = torch.zeros(len(recent_BN), 0, dtype=torch.uint8, device=recent_BN.device)
        self.state_BD = state_BD
        self.symbols_seen = 0
        self.capacity = layers[0].key_BHNK.shape[2]

    @property
    def length(self) -> int:
        """Positions held, the start of the window included."""
        return self.layers[0].length

    def forget(self, count: int, turn_back_K2: Tensor) -> None:
        """Drop the `count` oldest patches of every layer; the start of the window stays."""
        for layer in self.layers:
            layer.forget(count, turn_back_K2)
