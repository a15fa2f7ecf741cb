"""Text and bytes to bits and back, with and without parity. Everything is vectorised; nothing here knows a model.

A byte is 8 bits, most significant first. With parity a ninth bit follows, chosen so that the nine hold an even number of
ones; any single flipped bit is then noticed, and its byte named.
"""

# Shapes: n bytes, T = 8 n or 9 n bits.
from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bit_transformer.errors import BitStreamError, ParityError

Bytes: TypeAlias = NDArray[np.uint8]
Bits: TypeAlias = NDArray[np.uint8]
BitsLike: TypeAlias = "Tensor | NDArray[np.generic] | list[int]"
ParityPolicy: TypeAlias = Literal["raise", "keep", "replace", "drop"]
TextPolicy: TypeAlias = Literal["strict", "replace", "ignore", "backslashreplace"]

REPLACEMENT = ord("?")

# Entry b is the even-parity bit of byte b.
_PARITY = (np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1) & 1).astype(np.uint8)


def bytes_to_bits(data: bytes | bytearray | memoryview | Bytes, *, parity: bool = False) -> Bits:
    """Bits of every byte, most significant first.

    Args:
        data: n bytes; an array may have leading axes, and its last one is expanded.
        parity: follow each byte by its even-parity bit.

    Returns:
        uint8 zeros and ones, 8 (or 9) for each byte.
    """
    values = data if isinstance(data, np.ndarray) else np.frombuffer(data, dtype=np.uint8)
    if not parity:
        return np.unpackbits(values, axis=-1)
    bits = np.empty((*values.shape, 9), dtype=np.uint8)
    bits[..., :8] = np.unpackbits(values, axis=-1).reshape(*values.shape, 8)
    bits[..., 8] = _PARITY[values]
    return bits.reshape(*values.shape[:-1], -1)


def bits_to_bytes(bits: BitsLike, *, parity: bool = False, on_error: ParityPolicy = "raise") -> bytes:
    """The inverse of `bytes_to_bits`.

    Args:
        bits: zeros and ones, one-dimensional.
        on_error: what becomes of a byte whose parity does not fit: `raise` an error, `keep` its eight data bits,
            `replace` it by "?", or `drop` it.

    Raises:
        BitStreamError: values other than 0 and 1, or a length that is no whole number of bytes.
        ParityError: with `on_error="raise"`; it carries the byte offsets.
    """
    width = 9 if parity else 8
    flat = as_bits(bits)
    if len(flat) % width:
        raise BitStreamError(
            f"got {len(flat)} bits; a whole number of {width}-bit bytes is needed. "
            f"Try bits[:{len(flat) // width * width}], or parity={not parity}"
        )
    if not parity:
        return np.packbits(flat).tobytes()
    data = np.packbits(flat.reshape(-1, 9)[:, :8])
    wrong = find_parity_errors(flat)
    if len(wrong) == 0 or on_error == "keep":
        return data.tobytes()
    if on_error == "raise":
        shown = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        raise ParityError(
            f"got odd parity in {len(wrong)} of {len(data)} bytes, at byte offsets {shown}; each nine bits must hold an "
            f"even number of ones. Try on_error='keep', 'replace' or 'drop'",
            wrong.tolist(),
        )
    if on_error == "drop":
        return np.delete(data, wrong).tobytes()
    data[wrong] = REPLACEMENT
    return data.tobytes()


def find_parity_errors(bits: BitsLike) -> NDArray[np.int64]:
    """Offsets of the bytes whose nine bits hold an odd number of ones.

    Raises:
        BitStreamError: a length that is no multiple of 9.
    """
    flat = as_bits(bits)
    if len(flat) % 9:
        raise BitStreamError(f"got {len(flat)} bits; bytes with parity take 9 each. Try bits[:{len(flat) // 9 * 9}]")
    nine = flat.reshape(-1, 9)
    return np.flatnonzero(_PARITY[np.packbits(nine[:, :8])] != nine[:, 8]).astype(np.int64)


def repair_parity(bits: BitsLike) -> Bits:
    """The same data bits with every parity bit set to what it must be."""
    return bytes_to_bits(bits_to_bytes(bits, parity=True, on_error="keep"), parity=True)


def text_to_bits(text: str, *, parity: bool = False) -> Tensor:
    """Bits of the UTF-8 encoding of a text, as a tensor of uint8."""
    return torch.from_numpy(bytes_to_bits(text.encode("utf-8"), parity=parity))


def bits_to_text(
    bits: BitsLike, *, parity: bool = False, on_error: ParityPolicy = "raise", on_text_error: TextPolicy = "replace"
) -> str:
    """The text whose UTF-8 encoding the bits are.

    Args:
        on_error: as in `bits_to_bytes`.
        on_text_error: what becomes of bytes that are not UTF-8: an error (`strict`), U+FFFD (`replace`), nothing
            (`ignore`), or an escape such as \\xff (`backslashreplace`).

    Raises:
        BitStreamError: bits that are not bytes, or, under `strict`, bytes that are not UTF-8.
    """
    data = bits_to_bytes(bits, parity=parity, on_error=on_error)
    try:
        return data.decode("utf-8", errors=on_text_error)
    except UnicodeDecodeError as invalid:
        raise BitStreamError(
            f"got bytes that are not UTF-8 at offset {invalid.start} (0x{data[invalid.start]:02x}); text must be UTF-8. "
            f"Try on_text_error='replace', or bits_to_bytes"
        ) from None


def pack_bits(bits: BitsLike) -> tuple[bytes, int]:
    """Any number of bits, eight to a byte, the last byte filled up with zeros; and how many bits there were."""
    flat = as_bits(bits)
    return np.packbits(flat).tobytes(), len(flat)


def unpack_bits(data: bytes, count: int) -> Bits:
    """The inverse of `pack_bits`.

    Raises:
        BitStreamError: fewer bytes than `count` bits need.
    """
    if count > 8 * len(data) or count < 0:
        raise BitStreamError(f"got {len(data)} bytes and count={count}; they hold at most {8 * len(data)} bits")
    return np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=count)


def as_bits(bits: BitsLike) -> Bits:
    """Bits from a tensor, an array or a list, checked and flat.

    Raises:
        BitStreamError: more than one axis, or a value other than 0 and 1.
    """
    array = bits.detach().cpu().numpy() if isinstance(bits, Tensor) else np.asarray(bits)
    if array.ndim != 1:
        raise BitStreamError(f"got bits of shape {array.shape}; one axis is needed. Try bits.reshape(-1)")
    if array.size and not (array.min() >= 0 and array.max() <= 1 and np.array_equal(array, array.astype(np.uint8))):
        wrong = array[(array != 0) & (array != 1)][0]
        raise BitStreamError(f"got the value {wrong} among the bits; each must be 0 or 1. Try bytes_to_bits for bytes")
    return array.astype(np.uint8, copy=False)
