"""Reversible filters and what a file's structure says about it: x86 jumps, markup, numbers, and the row width of tables and images.

Only an encoder decides, so what is found here may differ between machines; what was decided is written into the frame.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bit_transformer.compiled import compiled

Bytes = NDArray[np.uint8]

WIDEST = 1 << 14  # of the rows that are looked for
_SAMPLE = 1 << 18
_NUMBERS_SAMPLE = 1 << 15
_SMOOTH = 0.95  # numbers are worth a trial where they need less than this part of what their bytes need by themselves


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
    """At most so many bytes from the middle of data; they begin at a multiple of 12, where numbers of one to four bytes begin as they do in the data."""
    begin = max(0, (len(data) - size) // 2) // 12 * 12
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


class Numbers(NamedTuple):
    """What numbers data is made of: bytes of one, channels that come in turn, bytes before the first, whether the high byte comes first, whether they have a sign."""

    size: int
    channels: int
    begin: int
    big: bool
    signed: bool

    @property
    def kind(self) -> str:
        """As NumPy writes the type."""
        return f"{'' if self.size == 1 else '>' if self.big else '<'}{'i' if self.signed else 'u'}{self.size}"


def number_kind(data: Bytes, width: int) -> Numbers | None:
    """The numbers that data is most likely made of, if it looks like numbers that follow each other smoothly. From a sample of its middle.

    All kinds are tried with four rules that guess a number from those before it. The best one's bits are estimated from the logarithms of its errors; they must
    be fewer than bytes have by how often each occurs at its place in a number.

    Args:
        width: bytes of a row, or 0.
    """
    sample = middle(data, _NUMBERS_SAMPLE)
    if len(sample) < 1 << 12:
        return None
    best, found = np.inf, None
    for size in range(1, 5):
        for begin in range(size):
            bytes_NS = sample[begin : begin + (len(sample) - begin) // size * size].reshape(-1, size)
            plain = sum(_entropy(bytes_NS[:, place]) for place in range(size))
            for big in (False, True)[: 1 + (size > 1)]:
                place = 256 ** np.arange(size, dtype=np.int64)
                number_N = bytes_NS.astype(np.int64) @ (place[::-1] if big else place)
                bits_C = [_bits_along(number_N, size, channels) for channels in range(1, 5)]
                channels = 1 + int(np.argmin(bits_C))
                bits = bits_C[channels - 1]
                if width and width % size == 0:
                    bits = min(bits, _bits_across(number_N, size, channels, width // size))
                if bits < _SMOOTH * plain and bits / size < best:
                    best = bits / size
                    found = Numbers(size, channels, begin, big, _has_sign(number_N, size, channels))
    return found  # `begin` is that of all of the data: the sample begins at a multiple of 12


def _bits_along(number_N: NDArray[np.int64], size: int, channels: int) -> float:
    """Bits that a number needs after the better of two guesses: the number before in the channel, and the line through the last two."""
    step = number_N[channels:] - number_N[:-channels]
    return min(_bits_of(step, size), _bits_of(step[channels:] - step[:-channels], size))


def _bits_across(number_N: NDArray[np.int64], size: int, channels: int, width: int) -> float:
    """The same of the number above, and of the plane through it and the two to their left."""
    rise = number_N[width:] - number_N[:-width]
    return min(_bits_of(rise, size), _bits_of(rise[channels:] - rise[:-channels], size))


def _bits_of(error_N: NDArray[np.int64], size: int) -> float:
    """About the bits of errors, modulo the numbers there are: 11/4 more than their mean logarithm, between those of a uniform and of a normal distribution (2.4 and 3)."""
    span = 1 << (8 * size)
    return float(np.log2(1.0 + np.abs((error_N + span // 2) % span - span // 2)).mean()) + 2.75


def _has_sign(number_N: NDArray[np.int64], size: int, channels: int) -> bool:
    """Whether numbers follow each other more smoothly with a sign."""
    half = 1 << (8 * size - 1)
    plain, turned = number_N, number_N ^ half
    jumps = [int((np.abs(number[channels:] - number[:-channels]) >= half).sum()) for number in (plain, turned)]
    return jumps[1] < jumps[0]


def _entropy(byte_N: Bytes) -> float:
    """Bits of a byte, by how often each occurs."""
    share = np.bincount(byte_N, minlength=256) / len(byte_N)
    return float(-(share * np.log2(np.maximum(share, 1e-12))).sum())
