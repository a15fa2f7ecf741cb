"""Measures documents against a bank of experts, which no longer learns.

Bits per byte and loops are of the whole document, up to `MOST` bytes. K, C and S are of its first `WINDOW` bytes: they take as long as reading, and
the gate's limits are for windows.
"""

# Shapes: N bytes, L lengths, T bits.
from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.experts.bank import ExpertBank
from bit_transformer.quality.kernels import add_up, negentropy
from bit_transformer.safety.reference import Vitals
from bit_transformer.safety.repetition import Repetition
from bit_transformer.telemetry.lempel_ziv import count_phrases
from bit_transformer.telemetry.measures import CONSTANT_PHRASES, LONGEST_WORD, fair_coin_phrases

Bytes = NDArray[np.uint8]

WINDOW = 2048  # bytes of a document that K, C and S are of; the longest window that a gate judges
MOST = 1 << 18  # bytes of a document that are read


class Measures(NamedTuple):
    """Measurements of a document.

    Attributes:
        size: bytes that were read.
        bpb: what they cost a reader that knows clean text, in bits per byte.
        K, C, S: of the first `WINDOW` bytes; see `telemetry/measures.py`.
        copied, period: bytes of the longest loop in it; see `safety/repetition.py`.
    """

    size: int
    bpb: float
    K: float
    C: float
    S: float
    copied: float
    period: float

    def vitals(self, window: int) -> Vitals:
        """The same for a gate, as of a window of at most so many bytes."""
        return Vitals(self.K, self.C, self.S, min(self.size, window), 0, self.copied, self.period)


class Meter:
    """Measures documents. Threads may share one.

    Args:
        bank: has read clean text, in units of bytes; it is not changed.
        window: bytes that K, C and S are of, at most.
    """

    def __init__(self, bank: ExpertBank, window: int = WINDOW) -> None:
        self.bank, self.window = bank, window
        self._repetition = Repetition(8, 8)

    def measure(self, data: Bytes) -> Measures:
        """Measure a document of at least one byte."""
        return self.prefixes(data, [min(len(data), MOST)])[0]

    def prefixes(self, data: Bytes, sizes: Sequence[int]) -> list[Measures]:
        """Measure the first bytes of a document, for several ascending sizes: it is read once."""
        data = np.ascontiguousarray(data[: sizes[-1]])
        windows = [min(size, self.window) for size in sizes]
        at_L = np.unique(np.array([*sizes, *windows], dtype=np.int64))
        bits_L, apart_L = np.empty(len(at_L)), np.empty(len(at_L))
        one_NU = self.bank.probabilities(data, self.bank.stream(), learn=False)
        add_up(data, one_NU, *_tables(), at_L, bits_L, apart_L)
        cost, apart = (dict(zip(at_L.tolist(), sums.tolist(), strict=True)) for sums in (bits_L, apart_L))
        bits_T = bytes_to_bits(data)
        made = []
        for size, window in zip(sizes, windows, strict=True):
            first_T = bits_T[: window * 8]
            far = min(1.0, max(0.0, apart[window] / (window * 8)))
            loop = self._repetition.longest(bits_T[: size * 8], size * 8)
            made.append(
                Measures(size, cost[size] / size, _K(first_T), _C(first_T), 1 - far**0.5, loop.copied, loop.period)
            )
        return made


def _K(bits_T: NDArray[np.uint8]) -> float:
    k = min(LONGEST_WORD, max(2, len(bits_T).bit_length() - 4))
    return float(negentropy(bits_T, k, np.empty(1 << k, dtype=np.int64)))


def _C(bits_T: NDArray[np.uint8]) -> float:
    phrases = int(count_phrases(bits_T[None])[0]) - CONSTANT_PHRASES
    return min(1.0, max(0.0, phrases / (_fair(len(bits_T)) - CONSTANT_PHRASES)))


_fair = lru_cache(maxsize=1 << 12)(fair_coin_phrases)


@lru_cache(maxsize=1)
def _tables() -> tuple[NDArray[Any], NDArray[Any]]:
    """By the probability q of a bit's value in 1/65536: its cost, and its Jensen-Shannon divergence from q, in bits."""
    q = np.maximum(np.arange(65537), 0.5) / 65536
    return -np.log2(q), 1 + (q * np.log2(q) - (1 + q) * np.log2(1 + q)) / 2
