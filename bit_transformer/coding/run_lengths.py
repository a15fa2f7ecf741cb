"""Run-length coding of bits: short for long runs, and never more than a few bytes longer than the bits packed into bytes.

byte 0       method: 0 packed, 1 runs that begin with a zero, 2 runs that begin with a one
bytes 1..8   number of bits, little-endian
then         packed: the bits, first bit most significant. Runs: the lengths of alternating runs, each as its length less 1 in base 255:
             a byte of 255 for every whole 255, then the rest
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bit_transformer.bit_io import Bits
from bit_transformer.errors import BitStreamError

_PACKED, _FROM_ZERO, _FROM_ONE = range(3)
HEADER = 9


def compress_row(bits: NDArray[Any]) -> bytes:
    """Code one row of bits, (T,), zeros and ones."""
    size = len(bits).to_bytes(8, "little")
    coded = _runs(bits)
    if coded is None:
        return bytes([_PACKED]) + size + np.packbits(bits).tobytes()
    return bytes([_FROM_ONE if bits[0] else _FROM_ZERO]) + size + coded.tobytes()


def _runs(bits: NDArray[Any]) -> NDArray[np.uint8] | None:
    """The coded lengths of the runs; None if they are no shorter than the packed bits."""
    most = len(bits) // 8
    ends = np.flatnonzero(bits[1:] != bits[:-1])
    if len(bits) == 0 or len(ends) + 1 >= most:
        return None
    length = np.diff(ends, prepend=-1, append=len(bits) - 1) - 1
    whole = length // 255
    total = len(length) + int(whole.sum())
    if total >= most:
        return None
    if total == len(length):
        return length.astype(np.uint8)
    coded = np.full(total, 255, dtype=np.uint8)
    coded[np.cumsum(whole + 1) - 1] = length - 255 * whole
    return coded


def decompress_row(data: bytes) -> Bits:
    """The inverse of `compress_row`.

    Raises:
        BitStreamError: damaged data.
    """
    method, count = data[0] if data else -1, int.from_bytes(data[1:HEADER], "little")
    body = np.frombuffer(data, dtype=np.uint8)[HEADER:]
    if len(data) < HEADER or method not in (_PACKED, _FROM_ZERO, _FROM_ONE):
        raise _damaged("a header of a method and a number of bits is needed")
    if method == _PACKED:
        if len(body) != -(-count // 8):
            raise _damaged(f"{count} bits in {len(body)} bytes")
        return np.unpackbits(body, count=count)
    last = body != 255
    if not len(body) or not last[-1]:
        raise _damaged("the last run has no end")
    # A run's length is 1, its last byte, and 255 for each byte before that.
    place = np.flatnonzero(last)
    length = body[place].astype(np.int64) + 1 + 255 * (np.diff(place, prepend=-1) - 1)
    if int(length.sum()) != count:
        raise _damaged(f"runs of {int(length.sum())} bits where {count} were declared")
    value = (np.arange(len(length)) + (method == _FROM_ONE)) & 1
    return np.repeat(value.astype(np.uint8), length)


def _damaged(what: str) -> BitStreamError:
    return BitStreamError(f"got damaged run-length data: {what}. Try the data as compress_bits gave it")
