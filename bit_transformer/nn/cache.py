"""What cached decoding keeps between steps: keys and values of every layer, in tensors that never move."""

# Shapes: B batch, N positions, M keys, S slots, H heads, K head width.
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bit_transformer.nn.position import rotate

if TYPE_CHECKING:
    from bit_transformer.experts.streams import ExpertStreams
    from bit_transformer.nn.single import SingleStream


class LayerCache:
    """Keys and values of one layer, (B, H, slots, K) each, filled from the left.

    Attributes:
        length: positions since the window began, all of them held.
    """

    def __init__(self, key_BHSK: Tensor, value_BHSK: Tensor) -> None:
        self.key_BHSK, self.value_BHSK = key_BHSK, value_BHSK
        self.length = 0

    @property
    def in_use(self) -> int:
        """Slots that hold something, from the left."""
        return self.length

    def claim(self) -> tuple[int, int]:
        """Take one more position: the slot it goes to, and how many slots are in use then."""
        self.length += 1
        return self.length - 1, self.length

    def extend(self, key_BHNK: Tensor, value_BHNK: Tensor) -> tuple[Tensor, Tensor]:
        """Append n positions; all keys and values that they may read come back, oldest first."""
        end = self.length + key_BHNK.shape[2]
        self.key_BHSK[:, :, self.length : end] = key_BHNK
        self.value_BHSK[:, :, self.length : end] = value_BHNK
        self.length = end
        return self.key_BHSK[:, :, :end], self.value_BHSK[:, :, :end]

    def forget(self, count: int, turn_back_K2: Tensor) -> None:
        """Drop the `count` oldest positions after the first and move the rest down.

        The first position (start of window) stays: attention leans on it. Keys are turned back by `count` positions,
        so that the rest stand as if the window had begun later; values carry no position.
        """
        kept = self.length - count
        self.key_BHSK[:, :, 1:kept] = turned(self.key_BHSK[:, :, 1 + count : self.length], turn_back_K2)
        self.value_BHSK[:, :, 1:kept] = self.value_BHSK[:, :, 1 + count : self.length].clone()
        self.length = kept


class RollingCache(LayerCache):
    """Keys and values of the latest positions alone, for local attention: each takes the slot of the oldest.

    Attributes:
        end: positions so far, whatever the window has forgotten; position p is in slot p modulo slots.
    """

    def __init__(self, key_BHSK: Tensor, value_BHSK: Tensor) -> None:
        super().__init__(key_BHSK, value_BHSK)
        self.end = 0

    @property
    def in_use(self) -> int:
        """Slots that hold something, from the left."""
        return min(self.end, self.key_BHSK.shape[2])

    def claim(self) -> tuple[int, int]:
        """Take one more position: the slot it goes to, and how many slots are in use then."""
        slots = self.key_BHSK.shape[2]
        slot = self.end % slots
        self.end += 1
        self.length += 1
        return slot, min(self.end, slots)

    def extend(self, key_BHNK: Tensor, value_BHNK: Tensor) -> tuple[Tensor, Tensor]:
        """Append n positions; what comes back is in order, but for one position, which sees all of it anyway."""
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

    def forget(self, count: int, turn_back_K2: Tensor) -> None:
        """Move the window's begin on; what was held is held, at positions lower by `count`."""
        self.key_BHSK.copy_(turned(self.key_BHSK, turn_back_K2))
        self.length -= count


def turned(key_BHNK: Tensor, turn_K2: Tensor) -> Tensor:
    """Keys turned on by as many positions as the turn stands for."""
    return rotate(key_BHNK.transpose(1, 2), turn_K2[None]).transpose(1, 2)


class DecodeCache:
    """The state of B streams that are decoded together, all at the same position.

    Attributes:
        layers: one `LayerCache` a layer.
        recent_BN: the latest patches of each stream, oldest first: the contexts of the n-gram embeddings.
        prefix_BR: the bits of the patch that is not complete yet, R < patch_bits of them.
        state_BD: the trunk's state that predicts the patch that is not complete yet.
        symbols_seen: symbols so far, the start symbol included, whatever the window has forgotten.
        capacity: positions of a window, the start symbol included.
        single: the fast way on for a stream that is alone on a processor, if it is.
        experts: where the bank of experts stands in each stream, if the model has one.
    """

    def __init__(
        self,
        layers: list[LayerCache],
        capacity: int,
        recent_BN: Tensor,
        state_BD: Tensor,
        single: SingleStream | None = None,
    ) -> None:
        self.layers, self.capacity, self.single = layers, capacity, single
        self.experts: ExpertStreams | None = None
        self.recent_BN = recent_BN
        self.prefix_BR = torch.zeros(len(recent_BN), 0, dtype=torch.uint8, device=recent_BN.device)
        self.state_BD = state_BD
        self.symbols_seen = 0

    @property
    def length(self) -> int:
        """Positions since the window began."""
        return self.layers[0].length

    def select(self, row_B: NDArray[np.int64]) -> None:
        """Let each stream stand where the given one stands: of several that go on from one, or in another order."""
        moved_B = np.flatnonzero(row_B != np.arange(len(row_B)))
        if not len(moved_B):
            return
        to, source = torch.from_numpy(moved_B), torch.from_numpy(row_B[moved_B])
        for layer in self.layers:
            for held_BHSK in (layer.key_BHSK[:, :, : layer.in_use], layer.value_BHSK[:, :, : layer.in_use]):
                held_BHSK[to] = held_BHSK[source]
        for name in ("recent_BN", "prefix_BR", "state_BD"):
            setattr(self, name, getattr(self, name)[torch.from_numpy(row_B)])
        if self.experts is not None:
            self.experts.select(row_B)

    def forget(self, count: int, turn_back_K2: Tensor) -> None:
        """Drop the `count` oldest patches of every layer; the start of the window stays."""
        for layer in self.layers:
            layer.forget(count, turn_back_K2)
