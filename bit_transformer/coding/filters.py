"""Reversible filters and what a file's structure says about it: x86 jumps, markup, and the row width of tables and images.

Only an encoder decides, so what is found here may differ between machines; what was decided is written into the frame.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bit_transformer.compiled import compiled

Bytes = NDArray[np.uint8]

WIDEST = 1 << 14  # of the rows that are looked for
_SAMPLE = 1 << 18


@compiled
def _absolute(data):
    for i in range(len(data) - 5, -1, -1):  # from the end, so that the inverse, from the start, meets the same bytes
        if data[i] & 0xFE == 0xE8 and (data[i + 4] == 0 or data[i + 4] == 0xFF):
            target = (data[i + 1] | data[i + 2] << 8 | data[i + 3] << 16) + i
            data[i + 1], data[i + 2], data[i + 3] = target & 255, target >> 8 & 255, target >> 16 & 255


@compiled
def _relative(data):
    for i in range(len(data) - 4):
        if data[i] & 0xFE == 0xE8 and (data[i + 4] == 0 or data[i + 4] == 0xFF):
            distance = (data[i + 1] | data[i + 2] << 8 | data[i + 3] << 16) - i
            data[i + 1], data[i + 2], data[i + 3] = distance & 255, distance >> 8 & 255, distance >> 16 & 255


def absolute_jumps(data: Bytes) -> Bytes:
    """Replace the relative targets of x86 calls and jumps (E8, E9) by absolute ones, which repeat where the same function is called.

    Source: the filter of many compressors for programs; this form is that of libzpaq (Mahoney 2015, "The ZPAQ compression algorithm").
    """
    made = data.copy()
    _absolute(made)
    return made


def relative_jumps(data: Bytes) -> Bytes:
    """The inverse of `absolute_jumps`."""
    made = data.copy()
    _relative(made)
    return made


def middle(data: Bytes, size: int) -> Bytes:
    """At most so many bytes from the middle of data."""
    begin = max(0, (len(data) - size) // 2)
    return data[begin : begin + size]


def has_jumps(data: Bytes) -> bool:
    """Whether data looks like x86 code: calls and jumps with plausible targets in more than one of 400 bytes."""
    if len(data) < 4096:
        return False
    calls = (data[:-4] & 0xFE == 0xE8) & ((data[4:] == 0) | (data[4:] == 0xFF))
    return bool(calls.mean() > 1 / 400)


def has_markup(data: Bytes) -> bool:
    """Whether data looks like XML, HTML, JSON or a table of text: a tag in 200 bytes, a key in 400, or rows, most of
    them with as many commas, semicolons, tabs or bars as the row before."""
    sample = middle(data, _SAMPLE)
    letters = ((sample | 32) >= 97) & ((sample | 32) <= 122)
    tags = (sample[:-1] == 60) & (letters[1:] | (sample[1:] == 47))
    packed = sample[sample != 32]
    keys = (packed[:-1] == 34) & (packed[1:] == 58)
    if tags.sum() * 200 > len(sample) or keys.sum() * 400 > len(sample):
        return True
    ends = np.flatnonzero(sample == 10)
    if len(ends) < 16:
        return False
    quotes, row = np.cumsum(sample == 34), np.cumsum(sample == 10)
    outside = (quotes - np.concatenate(([0], quotes[ends]))[row]) % 2 == 0
    for delimiter in b",;\t|":
        per_row = np.diff(np.searchsorted(np.flatnonzero((sample == delimiter) & outside), ends))
        if np.mean((per_row[1:] == per_row[:-1]) & (per_row[1:] > 0)) > 0.6:
            return True
    return False


def row_width(data: Bytes) -> int:
    """The distance in bytes at which data resembles itself most, if it has rows; else 0. From a sample of its middle.

    The autocorrelation of a table or an image has a sharp peak at the width of a row. A peak must stand out from its surroundings.
    """
    sample = middle(data, _SAMPLE).astype(np.float64)
    if len(sample) < 4 * 1024:
        return 0
    sample -= sample.mean()
    power = np.abs(np.fft.rfft(sample, 2 * len(sample))) ** 2
    correlation = np.fft.irfft(power)[: min(WIDEST, len(sample) // 4)]
    if correlation[0] <= 0:
        return 0
    correlation /= correlation[0]
    # The excess over the mean of the surroundings, at distances beyond those that contexts of order 8 cover.
    smooth = np.convolve(correlation, np.ones(33) / 33, mode="same")
    excess = correlation - smooth
    excess[:16], excess[-17:] = 0, 0
    width = int(excess.argmax())
    return width if excess[width] > 0.05 and correlation[width] > 0.1 else 0
