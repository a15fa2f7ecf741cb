"""Training windows: drawn without replacement, in a random order that is reproducible and takes no memory.

Each epoch cuts the corpus into windows at another offset and visits them in a pseudo-random order. The order is a keyed
permutation of the window numbers, computed one number at a time. So a corpus of any size needs no shuffled index, and
the state is two integers.
"""

# Shapes: B windows, T bits, L bytes of a window, F features of a bit.
from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bit_transformer.bit_io import Bits, bytes_to_bits
from bit_transformer.data.sources import Corpus
from bit_transformer.errors import BitStreamError


class SamplerState(TypedDict):
    """State of a sampler: it has drawn windows `[0, drawn)` of epoch `epoch`."""

    epoch: int
    drawn: int


class Batch(NamedTuple):
    """A batch of windows.

    Attributes:
        bits_BT: uint8.
        features_BTF: int8, the experts' features of each bit, if the model has experts.
    """

    bits_BT: Tensor
    features_BTF: Tensor | None = None


class FeatureSource(Protocol):
    """Provides the experts' features of a corpus."""

    def read(self, bit: int, length: int) -> NDArray[np.int8]:
        """Features of `length` bits from `bit`: (T, F)."""


class Windows(Protocol):
    """Training data, as windows."""

    @property
    def window_bytes(self) -> float:
        """Data bytes of one window."""

    def __len__(self) -> int:
        """Windows per epoch."""

    def draw(self, count: int) -> Batch:
        """The next `count` windows."""

    def state_dict(self) -> SamplerState:
        """The position in the data."""

    def tensors(self) -> dict[str, Tensor]:
        """Tensors that continuing needs in addition."""

    def load_state_dict(self, state: SamplerState, tensors: Mapping[str, Tensor]) -> None:
        """Continue from a saved position."""


class _Epochs:
    """Endless window numbers: epoch after epoch, each in its own order."""

    def __init__(self, seed: int) -> None:
        self.seed, self.epoch, self.drawn = seed, 0, 0
        self.rank, self.ranks = 0, 1

    def share(self, rank: int, ranks: int) -> None:
        """From now on draw only one rank's rows of each batch. The position counts all rows, so the number of ranks may change."""
        self.rank, self.ranks = rank, ranks

    def next(self, count: int, size: int) -> list[tuple[int, NDArray[np.int64]]]:
        """The next `count` numbers below `size`, or of these one rank's part, as (epoch, numbers) pieces."""
        pieces: list[tuple[int, NDArray[np.int64]]] = []
        each, passed = count // self.ranks, 0
        begin = self.rank * each
        while count:
            stop = min(size, self.drawn + count)
            mine = np.arange(
                max(self.drawn, self.drawn + begin - passed), min(stop, self.drawn + begin + each - passed)
            )
            if len(mine):
                pieces.append((self.epoch, permuted(mine, size, key=epoch_key(self.seed, self.epoch))))
            count -= stop - self.drawn
            passed += stop - self.drawn
            self.drawn = stop
            if self.drawn == size:
                self.epoch, self.drawn = self.epoch + 1, 0
        return pieces

    def state_dict(self) -> SamplerState:
        return {"epoch": self.epoch, "drawn": self.drawn}

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: SamplerState, tensors: Mapping[str, Tensor]) -> None:
        self.epoch, self.drawn = state["epoch"], state["drawn"]


class CorpusWindows(_Epochs):
    """Windows of a corpus.

    Args:
        corpus: the training part.
        window_bytes: bytes per window.
        parity: add a parity bit after each byte.
        align: windows start at multiples of this many bytes of their file.
        seed: of the order.
        features: the experts' features of the corpus, if there are experts.

    Raises:
        BitStreamError: the corpus is shorter than a window.
    """

    def __init__(
        self,
        corpus: Corpus,
        window_bytes: int,
        *,
        parity: bool = False,
        align: int = 1,
        seed: int = 0,
        features: FeatureSource | None = None,
    ) -> None:
        super().__init__(seed)
        self.corpus = corpus.aligned(align)
        self.window_bytes, self.parity, self.align, self.features = window_bytes, parity, align, features
        if len(self.corpus) < window_bytes:
            raise BitStreamError(
                f"got {len(self.corpus)} bytes to train on, without the held-out part; at least one window of {window_bytes} is "
                f"needed. Try more data, or a smaller model.max_seq_len"
            )

    def __len__(self) -> int:
        # One window less, to leave room for the offset, which differs from epoch to epoch.
        return max(1, len(self.corpus) // self.window_bytes - 1)

    def draw(self, count: int) -> Batch:
        """The next `count` windows."""
        starts = [
            self._offset(epoch) + int(number) * self.window_bytes
            for epoch, numbers in self.next(count, len(self))
            for number in numbers
        ]
        rows = np.stack([self.corpus.read(start, self.window_bytes) for start in starts])
        bits_BT = bytes_to_bits(rows, parity=self.parity)
        if self.features is None:
            return Batch(torch.from_numpy(bits_BT))
        width, T = 9 if self.parity else 8, bits_BT.shape[1]
        features_BTF = np.stack([self.features.read(start * width, T) for start in starts])
        return Batch(torch.from_numpy(bits_BT), torch.from_numpy(features_BTF))

    def resized(self, window_bytes: int) -> CorpusWindows:
        """The same corpus in windows of another size, starting at the next epoch."""
        other = CorpusWindows(
            self.corpus, window_bytes, parity=self.parity, align=self.align, seed=self.seed, features=self.features
        )
        other.epoch = self.epoch + 1
        other.share(self.rank, self.ranks)
        return other

    def _offset(self, epoch: int) -> int:
        room = min(self.window_bytes, len(self.corpus) - len(self) * self.window_bytes) // self.align
        return epoch_key(self.seed, epoch) % (room + 1) * self.align


class BitWindows(_Epochs):
    """Windows given as bits, one per row.

    Args:
        bits_NT: N windows of T zeros and ones.
        byte_bits: bits per data byte, the unit of bits per byte.
        features_NTF: the experts' features of each bit, if there are experts.
    """

    def __init__(
        self, bits_NT: Tensor | Bits, *, byte_bits: int = 8, seed: int = 0, features_NTF: Tensor | None = None
    ) -> None:
        super().__init__(seed)
        if bits_NT.ndim != 2 or not len(bits_NT):
            raise BitStreamError(
                f"got bits of shape {tuple(bits_NT.shape)}; (windows, bits) is needed. Try bits.view(-1, 1024)"
            )
        self.bits_NT, self.features_NTF = torch.as_tensor(bits_NT).to(torch.uint8), features_NTF
        self.window_bytes = bits_NT.shape[1] / byte_bits

    def __len__(self) -> int:
        return len(self.bits_NT)

    def draw(self, count: int) -> Batch:
        """The next `count` windows."""
        row_B = torch.from_numpy(np.concatenate([numbers for _, numbers in self.next(count, len(self))]))
        return Batch(self.bits_NT[row_B], None if self.features_NTF is None else self.features_NTF[row_B])


def permuted(places: NDArray[np.int64], size: int, *, key: int) -> NDArray[np.int64]:
    """Apply a keyed permutation of 0 .. size - 1.

    A four-round Feistel network permutes numbers with an even number of bits. It is applied again to results outside the
    range, until they are inside.

    Source: Black & Rogaway 2002, "Ciphers with arbitrary finite domains" (cycle walking).
    """
    half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    value = places.astype(np.uint64)
    outside = np.ones(len(value), dtype=bool)
    while outside.any():
        left, right = value[outside] >> half, value[outside] & mask
        for step in range(4):
            left, right = right, left ^ (_mix(right, np.uint64((key + step) & _MASK64)) & mask)
        value[outside] = (left << half) | right
        outside = value >= size
    return value.astype(np.int64)


_MASK64 = (1 << 64) - 1


def _mix(value: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele et al. 2014), of value and key."""
    with np.errstate(over="ignore"):
        z = value + key * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def epoch_key(seed: int, epoch: int) -> int:
    """A pseudo-random 64-bit number for each epoch."""
    return int(_mix(np.array([seed & _MASK64], dtype=np.uint64), np.uint64(epoch + 1))[0])
