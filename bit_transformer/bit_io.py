"""Converts text and bytes to bits and back, with or without parity. Vectorised, without torch.

Functions return bits as NumPy arrays of uint8, which models accept. They accept arrays, tensors and lists.

A byte is 8 bits, most significant first. With parity, a ninth bit follows that makes the number of ones even. Any single
flipped bit is then detected, and its byte located.
"""

# Shapes: n bytes, T = 8 n or 9 n bits.
from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bit_transformer.errors import BitStreamError, ParityError

if TYPE_CHECKING:
    from torch import Tensor

Bytes: TypeAlias = NDArray[np.uint8]
Bits: TypeAlias = NDArray[np.uint8]
BitsLike: TypeAlias = "Tensor | NDArray[np.generic] | list[int]"
ParityPolicy: TypeAlias = Literal["raise", "keep", "replace", "drop"]
TextPolicy: TypeAlias = Literal["strict", "replace", "ignore", "backslashreplace"]

REPLACEMENT = ord("?")

_EIGHT = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
# Entry b: the even-parity bit of byte b; the nine bits of byte b as one item, so that a look-up copies nine bytes.
_PARITY = (_EIGHT.sum(1) & 1).astype(np.uint8)
_NINE = np.concatenate((_EIGHT, _PARITY[:, None]), axis=1).view("V9")[:, 0]
# Eight bytes of 0 or 1, read as one little-endian integer and multiplied by this, have the packed byte on top.
_GATHER = np.uint64(0x8040201008040201)


def bytes_to_bits(data: bytes | bytearray | memoryview | Bytes, *, parity: bool = False) -> Bits:
    """The bits of bytes, most significant first.

    Args:
        data: n bytes. An array may have more axes; the last one is expanded.
        parity: add an even-parity bit after each byte.

    Returns:
        uint8 array of zeros and ones, 8 (or 9) per byte.
    """
    values = data if isinstance(data, np.ndarray) else np.frombuffer(data, dtype=np.uint8)
    if not parity:
        return np.unpackbits(values, axis=-1)
    return _NINE[values].view(np.uint8).reshape(*values.shape[:-1], -1)


def bits_to_bytes(bits: BitsLike, *, parity: bool = False, on_error: ParityPolicy = "raise") -> bytes:
    """The inverse of `bytes_to_bits`.

    Args:
        bits: zeros and ones, one-dimensional.
        on_error: for bytes with wrong parity: `raise` an error, `keep` their eight data bits, `replace` them with "?",
            or `drop` them.

    Raises:
        BitStreamError: values other than 0 and 1, or a length that is not a whole number of bytes.
        ParityError: wrong parity with `on_error="raise"`; it has the byte offsets.
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
    data = _data_bytes(flat)
    wrong = _odd_bytes(flat, data)
    if len(wrong) == 0 or on_error == "keep":
        return data.tobytes()
    if on_error == "raise":
        shown = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        raise ParityError(
            f"got odd parity in {len(wrong)} of {len(data)} bytes, at byte offsets {shown}; nine bits must have an even "
            f"number of ones. Try on_error='keep', 'replace' or 'drop'",
            wrong.tolist(),
        )
    if on_error == "drop":
        return np.delete(data, wrong).tobytes()
    data[wrong] = REPLACEMENT
    return data.tobytes()


def find_parity_errors(bits: BitsLike) -> NDArray[np.int64]:
    """Offsets of the bytes with wrong parity.

    Raises:
        BitStreamError: the length is not a multiple of 9.
    """
    flat = as_bits(bits)
    if len(flat) % 9:
        raise BitStreamError(f"got {len(flat)} bits; bytes with parity take 9 each. Try bits[:{len(flat) // 9 * 9}]")
    return _odd_bytes(flat, _data_bytes(flat))


def _data_bytes(flat: Bits) -> Bytes:
    """The data bytes of bits with parity: the first eight of each nine bits, packed."""
    eight = np.ndarray(len(flat) // 9, dtype="<u8", buffer=flat, strides=(9,))
    return (eight * _GATHER >> np.uint64(56)).astype(np.uint8)


def _odd_bytes(flat: Bits, data: Bytes) -> NDArray[np.int64]:
    return np.flatnonzero(_PARITY[data] != flat[8::9]).astype(np.int64)


def repair_parity(bits: BitsLike) -> Bits:
    """The same data bits with correct parity bits."""
    return bytes_to_bits(bits_to_bytes(bits, parity=True, on_error="keep"), parity=True)


def text_to_bits(text: str, *, parity: bool = False) -> Bits:
    """The bits of the UTF-8 encoding of a text, as from `bytes_to_bits`."""
    return bytes_to_bits(text.encode("utf-8"), parity=parity)


def bits_to_text(
    bits: BitsLike, *, parity: bool = False, on_error: ParityPolicy = "raise", on_text_error: TextPolicy = "replace"
) -> str:
    """The text that bits encode in UTF-8.

    Args:
        on_error: for wrong parity, as in `bits_to_bytes`.
        on_text_error: for bytes that are not UTF-8: an error (`strict`), U+FFFD (`replace`), skip them (`ignore`), or an
            escape such as \\xff (`backslashreplace`).

    Raises:
        BitStreamError: bits that are not whole bytes, or, with `strict`, bytes that are not UTF-8.
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
    """Pack any number of bits, eight per byte, with zeros at the end of the last byte. Also returns the number of bits."""
    flat = as_bits(bits)
    return np.packbits(flat).tobytes(), len(flat)


def unpack_bits(data: bytes, count: int) -> Bits:
    """The inverse of `pack_bits`.

    Raises:
        BitStreamError: the bytes contain fewer than `count` bits.
    """
    if count > 8 * len(data) or count < 0:
        raise BitStreamError(
            f"got {len(data)} bytes and count={count}; they contain at most {8 * len(data)} bits. Try a smaller count"
        )
    return np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=count)


def as_bits(bits: BitsLike) -> Bits:
    """One-dimensional bits from a tensor, an array or a list, validated.

    Raises:
        BitStreamError: more than one axis, or a value other than 0 and 1.
    """
    array = bits.detach().cpu().numpy() if hasattr(bits, "detach") else np.asarray(bits)
    if array.ndim != 1:
        raise BitStreamError(f"got bits of shape {array.shape}; one axis is needed. Try bits.reshape(-1)")
    bits_8 = array.astype(np.uint8, copy=False)
    if array.size and (bits_8.max() > 1 or (array.dtype not in (np.uint8, np.bool_) and (array != bits_8).any())):
        wrong = array[(array != 0) & (array != 1)][0]
        raise BitStreamError(f"got the value {wrong} among the bits; each must be 0 or 1. Try bytes_to_bits for bytes")
    return np.ascontiguousarray(bits_8)
