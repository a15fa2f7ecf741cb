"""A binary arithmetic coder in integers, for use inside compiled loops that predict each bit.

The code is a number in [low, high], 64 bits wide. Each bit narrows the interval to the part that its probability takes. Leading bytes that
low and high share are written. The decoder follows the same intervals.

Source: Witten, Neal & Cleary 1987, "Arithmetic coding for data compression", in the carry-less binary form of Mahoney's lpaq (2007), here with
64 bits, so that the loss where low and high straddle a byte boundary is below 1e-9 bits per bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bit_transformer.compiled import inline

# Rows of a coder's state, of uint64.
LOW, HIGH, CODE, PLACE, STATE = 0, 1, 2, 3, 4


def new_coder(count: int = 1) -> NDArray[np.uint64]:
    """The state of `count` coders before their first bit: (count, STATE)."""
    coder = np.zeros((count, STATE), dtype=np.uint64)
    coder[:, HIGH] = np.iinfo(np.uint64).max
    return coder


@inline
def _split(coder, one):
    """The end of the part of the interval that belongs to a one."""
    low, high = coder[LOW], coder[HIGH]
    return low + ((high - low) >> np.uint64(16)) * np.uint64(one)


@inline
def _narrow(coder, split, bit):
    if bit:
        coder[HIGH] = split
    else:
        coder[LOW] = split + np.uint64(1)


@inline
def _settled(coder):
    return (coder[LOW] ^ coder[HIGH]) >> np.uint64(56) == np.uint64(0)


@inline
def _shift(coder):
    coder[LOW] = coder[LOW] << np.uint64(8)
    coder[HIGH] = coder[HIGH] << np.uint64(8) | np.uint64(255)


@inline
def encode_bit(coder, payload, one, bit):
    """Write a bit.

    Args:
        coder: (STATE). If `coder[PLACE]` exceeds the size of `payload` afterwards, the payload was too small.
        payload: the bytes written.
        one: the probability of a one, in 1/65536: 1 to 65535.
    """
    _narrow(coder, _split(coder, one), bit)
    while _settled(coder):
        place = np.int64(coder[PLACE])
        if place < len(payload):
            payload[place] = np.uint8(coder[HIGH] >> np.uint64(56))
        coder[PLACE] = np.uint64(place + 1)
        _shift(coder)


@inline
def end_code(coder, payload):
    """Write the byte that ends the code; the decoder reads zeros after it."""
    place = np.int64(coder[PLACE])
    if place < len(payload):
        payload[place] = np.uint8((coder[LOW] >> np.uint64(56)) + np.uint64(1))
    coder[PLACE] = np.uint64(place + 1)


@inline
def _next(coder, payload):
    place = np.int64(coder[PLACE])
    coder[PLACE] = np.uint64(place + 1)
    byte = np.uint64(payload[place]) if place < len(payload) else np.uint64(0)
    coder[CODE] = coder[CODE] << np.uint64(8) | byte


@inline
def begin_code(coder, payload):
    """Read the first bytes; call before the first `decode_bit`."""
    for _ in range(8):
        _next(coder, payload)


@inline
def decode_bit(coder, payload, one):
    """Read a bit; arguments as in `encode_bit`."""
    split = _split(coder, one)
    bit = np.int64(coder[CODE] <= split)
    _narrow(coder, split, bit)
    while _settled(coder):
        _shift(coder)
        _next(coder, payload)
    return bit
