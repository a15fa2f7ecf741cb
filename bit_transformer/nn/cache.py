"""The state of cached decoding: keys and values of every layer, in tensors that are allocated once."""

# Shapes: B batch, N positions, M keys, S slots, H heads, K head width.
from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bit_transformer.nn.position import rotate


class LayerCache:
    """Keys and values of one layer, (B, H, slots, K) each, filled from the left.

    Attributes:
        length: positions since the window began; the cache holds all of them.
    """

    def __init__(self, key_BHSK: Tensor, value_BHSK: Tensor) -> None:
        self.key_BHSK, self.value_BHSK = key_BHSK, value_BHSK
        self.length = 0

    @property
    def in_use(self) -> int:
        """Number of slots in use, from the left."""
        return self.length

    def claim(self) -> tuple[int, int]:
        """Add one position. Returns its slot and the number of slots then in use."""
        self.length += 1
        return self.length - 1, self.length

    def extend(self, key_BHNK: Tensor, value_BHNK: Tensor) -> tuple[Tensor, Tensor]:
        """Append n positions. Returns all keys and values that they may read, oldest first."""
        end = self.length + key_BHNK.shape[2]
        self.key_BHSK[:, :, self.length : end] = key_BHNK
        self.value_BHSK[:, :, self.length : end] = value_BHNK
        self.length = end
        return self.key_BHSK[:, :, :end], self.value_BHSK[:, :, :end]

    def forget(self, count: int, back_K2: Tensor) -> None:
        """Drop the `count` oldest positions after the first, and move the rest down.

        The first position (start of window) stays, because attention relies on it. Keys are rotated back by `count` positions, as if the
        window had begun later. Values carry no position.
        """
        kept = self.length - count
        self.key_BHSK[:, :, 1:kept] = _rotated(self.key_BHSK[:, :, 1 + count : self.length], back_K2)
        self.value_BHSK[:, :, 1:kept] = self.value_BHSK[:, :, 1 + count : self.length].clone()
        self.length = kept


class RollingCache(LayerCache):
    """Keys and values of the latest positions only, for local attention. A new position overwrites the oldest.

    Attributes:
        end: positions so far, including those the window has dropped; position p is in slot p modulo slots.
    """

    def __init__(self, key_BHSK: Tensor, value_BHSK: Tensor) -> None:
        super().__init__(key_BHSK, value_BHSK)
        self.end = 0

    @property
    def in_use(self) -> int:
        """Number of slots in use, from the left."""
        return min(self.end, self.key_BHSK.shape[2])

    def claim(self) -> tuple[int, int]:
        """Add one position. Returns its slot and the number of slots then in use."""
        slots = self.key_BHSK.shape[2]
        slot = self.end % slots
        self.end += 1
        self.length += 1
        return slot, min(self.end, slots)

    def extend(self, key_BHNK: Tensor, value_BHNK: Tensor) -> tuple[Tensor, Tensor]:
        """Append n positions. Returns keys and values in order, except for a single position, which reads all of them anyway."""
        count, slots = key_BHNK.shape[2], self.key_BHSK.shape[2]
        if count == 1:
            slot, used = self.claim()
            self.key_BHSK[:, :, slot] = key_BHNK[:, :, 0]
            self.value_BHSK[:, :, slot] = value_BHNK[:, :, 0]
            return self.key_BHSK[:, :, :used], self.value_BHSK[:, :, :used]
        begin, self.end = self.end, self.end + count
        self.length += count
        past = torch.arange(max(0, begin - slots + 1), begin) % slots
        key_BHMK = torch.cat((self.key_BHSK[:, :, past], key_BHNK), dim=2)
        value_BHMK = torch.cat((self.value_BHSK[:, :, past], value_BHNK), dim=2)
        kept = min(count, slots)
        latest = torch.arange(self.end - kept, self.end) % slots
        self.key_BHSK[:, :, latest] = key_BHNK[:, :, -kept:]
        self.value_BHSK[:, :, latest] = value_BHNK[:, :, -kept:]
        return key_BHMK, value_BHMK

    def forget(self, count: int, back_K2: Tensor) -> None:
        """Move the start of the window. All slots are kept; their positions are lower by `count`."""
        self.key_BHSK.copy_(_rotated(self.key_BHSK, back_K2))
        self.length -= count


def _rotated(key_BHNK: Tensor, rotary_K2: Tensor) -> Tensor:
    return rotate(key_BHNK.transpose(1, 2), rotary_K2[None]).transpose(1, 2)


class TrunkCache:
    """The trunk's state for B streams that advance together, all at the same position.

    Attributes:
        layers: one `LayerCache` per layer.
        capacity: positions of a window, including the start symbol.
        recent_BN: the latest symbols of each stream, oldest first: the context of the n-gram embeddings.
        symbols_seen: symbols so far, including the start symbol and those the window has dropped.
    """

    def __init__(self, layers: list[LayerCache], capacity: int, recent_BN: Tensor) -> None:
        self.layers, self.capacity, self.recent_BN = layers, capacity, recent_BN
        self.symbols_seen = 0

    @property
    def length(self) -> int:
        """Positions since the window began."""
        return self.layers[0].length

    def select(self, row_B: NDArray[np.int64]) -> None:
        """Replace each stream's state by that of stream `row_B[b]`: to branch from one stream, or to reorder them."""
        moved_B = np.flatnonzero(row_B != np.arange(len(row_B)))
        to, source = torch.from_numpy(moved_B), torch.from_numpy(row_B[moved_B])
        for layer in self.layers:
            for held_BHSK in (layer.key_BHSK[:, :, : layer.in_use], layer.value_BHSK[:, :, : layer.in_use]):
                held_BHSK[to] = held_BHSK[source]
        self.recent_BN = self.recent_BN[torch.from_numpy(row_B)]

    def forget(self, count: int, back_K2: Tensor) -> None:
        """Drop the `count` oldest symbols of every layer; the start of the window stays."""
        for layer in self.layers:
            layer.forget(count, back_K2)
