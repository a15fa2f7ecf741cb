"""Detects whether data was read before, at any position, from the smallest hashes of its windows of 32 bytes.

Equal windows have equal hashes. So the smallest hashes of one collection of data are a fair sample of it that can be looked up in the
other's. A quarter of a megabyte is enough for any amount of data.

Source: Broder 1997, "On the resemblance and containment of documents" (bottom-k sketches).
"""

# Shapes: N bytes; K hashes, ascending.
from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Sketch = NDArray[np.uint64]

WINDOW, KEPT = 32, 1 << 15
_PIECE = 1 << 20  # bytes hashed at a time
_BASE = 0x9E3779B97F4A7C15
_OUT = pow(_BASE, WINDOW, 1 << 64)  # factor of the byte that leaves a window
_compiled: Any = njit(cache=True, nogil=True, error_model="numpy", boundscheck=False)


def empty() -> Sketch:
    """The sketch of no data."""
    return np.empty(0, dtype=np.uint64)


def sketched(data_N: NDArray[np.uint8], so_far: Sketch) -> Sketch:
    """A sketch of earlier data and some more bytes."""
    if len(data_N) < WINDOW:
        data_N = np.pad(data_N, (0, WINDOW - len(data_N)))
    for begin in range(0, len(data_N) - WINDOW + 1, _PIECE):
        piece_N = np.ascontiguousarray(data_N[begin : begin + _PIECE + WINDOW - 1])
        found = np.empty(len(piece_N), dtype=np.uint64)
        limit = so_far[-1] if len(so_far) == KEPT else np.uint64(0xFFFFFFFFFFFFFFFF)
        so_far = joined(so_far, found[: _hashes(piece_N, limit, found)])
    return so_far


def joined(one: Sketch, other: Sketch) -> Sketch:
    """A sketch of both."""
    return np.unique(np.concatenate((one, other)))[:KEPT]


def known_fraction(known: Sketch, other: Sketch) -> float:
    """Fraction of the other's data that is in the known data: 0 to 1."""
    within = other[other <= known[-1]] if len(known) == KEPT else other
    return float(np.isin(within, known).mean()) if len(within) else 0.0


@_compiled
def _hashes(data_N: Any, limit: Any, found: Any) -> int:
    """Rolling polynomial hashes of all windows, with mixed bits. Stores those up to a limit; returns their number."""
    base, out, count = np.uint64(_BASE), np.uint64(_OUT), 0
    value = np.uint64(0)
    for i in range(len(data_N)):
        value = value * base + np.uint64(data_N[i]) + np.uint64(1)
        if i >= WINDOW:
            value -= (np.uint64(data_N[i - WINDOW]) + np.uint64(1)) * out
        if i >= WINDOW - 1:
            mixed = (value ^ (value >> np.uint64(29))) * np.uint64(0xFF51AFD7ED558CCD)
            mixed ^= mixed >> np.uint64(32)
            if mixed <= limit:
                found[count] = mixed
                count += 1
    return count
