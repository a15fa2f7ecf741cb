"""Finds loops in a stream, of any period: how many bytes at its end copy the bytes one period earlier.

The nearest earlier match is followed, as in a match model: a period d, and how many bytes were copied from d bytes back. A quotation copies at most d
bytes, because the original is at least that far back. A loop copies its own copy: after three rounds it has copied 2 d. A copy of 1.5 d or more is called
a loop. Normal text has short loops too (dashes, tables, "no, no, no"); how long they may be is calibrated on a reference.
"""

# Shapes: T symbols of a stream, in order; E symbols that end a loop; N windows.
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.data.sources import Corpus

NEAREST, FARTHEST = 4, 1 << 14  # bytes: shorter periods already lower C
MEMORY = 1 << 16  # bytes of a stream that are remembered: four rounds of the longest period
ROUNDS = 1.5  # fewest periods that a loop copies: a quotation copies one, a third round makes it two
CONTEXT = 64  # bits that a match must agree in
PENALTY, CREDIT = 8, 32  # symbols: the cost of a difference, and the largest credit to pay for several
SLOTS = 1 << 17  # hash table of the latest position of each context
PIECE = 1 << 20  # bytes of a corpus at a time
_compiled: Any = njit(cache=True, nogil=True, error_model="numpy", boundscheck=False)


class Loop(NamedTuple):
    """The longest loop of a stretch; zeros if there is none.

    Attributes:
        copied: number of bytes that copy the bytes one period earlier.
        period: in bytes.
    """

    copied: float
    period: float


class Repetition:
    """Finds loops in streams.

    Args:
        byte_bits: 9 with parity, else 8.
        unit_bits: of the reference. Symbols of the greatest common divisor are compared, usually bytes.
    """

    def __init__(self, byte_bits: int, unit_bits: int) -> None:
        self.byte_bits, self.width = byte_bits, math.gcd(byte_bits, unit_bits)

    def longest(self, bits_T: NDArray[np.uint8], fresh: int) -> Loop:
        """The longest loop that ends in the last `fresh` bits of a stream. Bits after the last whole symbol are ignored."""
        copied_T, period_T = self._loops(bits_T)
        first = max(0, (len(bits_T) - fresh) // self.width)
        if not copied_T[first:].any():
            return Loop(0.0, 0.0)
        at = first + int(copied_T[first:].argmax())
        scale = self.width / self.byte_bits
        return Loop(int(copied_T[at]) * scale, int(period_T[at]) * scale)

    def of_windows(self, corpus: Corpus, windows: Sequence[tuple[NDArray[np.int64], int]]) -> list[NDArray[np.float64]]:
        """Bytes copied by the longest loop that ends in each window, with the corpus read as one stream.

        Args:
            windows: for each length, the starts of the windows, (N,) and ascending, and the length in bytes.
        """
        longest = [np.zeros(len(starts)) for starts, _ in windows]
        scale = self.width / self.byte_bits
        for begin in range(0, len(corpus), PIECE):
            lead = min(begin, MEMORY)
            data = corpus.read(begin - lead, lead + PIECE)
            copied_T, _ = self._loops(bytes_to_bits(data, parity=self.byte_bits == 9))
            found_E = np.flatnonzero(copied_T)
            place_E = (found_E * scale).astype(np.int64) + begin - lead
            found_E, place_E = found_E[place_E >= begin], place_E[place_E >= begin]
            for longest_N, (starts, size) in zip(longest, windows, strict=True):
                window_E = np.searchsorted(starts, place_E, side="right") - 1
                inside_E = (window_E >= 0) & (place_E - starts[window_E] < size)
                np.maximum.at(longest_N, window_E[inside_E], copied_T[found_E[inside_E]] * scale)
        return longest

    def _loops(self, bits_T: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """For each symbol of a stream, the symbols copied by the loop that ends there, and its period; zeros if there is none."""
        whole = bits_T[: len(bits_T) // self.width * self.width].reshape(-1, self.width)
        symbol_T = whole @ (1 << np.arange(self.width - 1, -1, -1, dtype=np.uint16))
        per_byte = self.byte_bits // self.width
        slots = min(SLOTS, 1 << max(8, len(symbol_T).bit_length()))
        latest = np.full(slots, -1, dtype=np.int64)
        context = CONTEXT // self.width
        copied_T, period_T = _follow(symbol_T, self.width, context, FARTHEST * per_byte, MEMORY * per_byte, latest)
        loop_T = (period_T >= NEAREST * per_byte) & (copied_T >= ROUNDS * period_T)
        return np.where(loop_T, copied_T, 0), np.where(loop_T, period_T, 0)


@_compiled
def _follow(symbol_T, width, context, farthest, most, latest):
    """After each symbol: how many symbols the end of the stream copies, and from how far back."""
    copied_T = np.zeros(len(symbol_T), dtype=np.int32)
    period_T = np.zeros(len(symbol_T), dtype=np.int32)
    copied, period, credit = 0, 0, 0
    recent = np.uint64(0)  # the last 64 bits
    mask = np.uint64(len(latest) - 1)
    for at in range(len(symbol_T)):
        differs = period == 0 or symbol_T[at] != symbol_T[at - period]
        if not differs:
            copied = min(copied + 1, most)
            credit = min(credit + 1, CREDIT)
        elif period:
            copied -= PENALTY
            credit -= PENALTY
            if copied <= 0 or credit <= 0:
                copied, period = 0, 0
        recent = (recent << np.uint64(width)) | np.uint64(symbol_T[at])
        slot = (recent * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40) & mask
        before = latest[slot]
        latest[slot] = at
        if differs and before >= 0 and at - before <= farthest:
            match = 0
            while match <= before and match < most and symbol_T[before - match] == symbol_T[at - match]:
                match += 1
            if match >= context and match > copied:
                copied, period, credit = match, at - before, min(match, CREDIT)
        copied_T[at], period_T[at] = copied, period
    return copied_T, period_T
