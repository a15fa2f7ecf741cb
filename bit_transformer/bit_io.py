"""Text and bytes to bits and back, with and without parity. Everything is vectorised; nothing here knows a model or loads torch.

Bits are made as NumPy arrays of uint8, which models take as they are; what takes bits takes tensors and lists too.

A byte is 8 bits, most significant first. With parity a ninth bit follows, chosen so that the nine hold an even number of
ones; any single flipped bit is then noticed, and its byte named.
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
# Entry b is the even-parity bit of byte b; the nine bits of byte b, as one item, so that a look-up copies nine bytes.
_PARITY = (_EIGHT.sum(1) & 1).astype(np.uint8)
_NINE = np.concatenate((_EIGHT, _PARITY[:, None]), axis=1).view("V9")[:, 0]
# Eight bytes of 0 or 1 times this, seen as one little-endian integer, have the packed byte on top.
_GATHER = np.uint64(0x8040201008040201)


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
    return _NINE[values].view(np.uint8).reshape(*values.shape[:-1], -1)


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
    data = _data_bytes(flat)
    wrong = _odd_bytes(flat, data)
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
    return _odd_bytes(flat, _data_bytes(flat))


def _data_bytes(flat: Bits) -> Bytes:
    """The data bytes of bits with parity: of each nine the first eight, packed."""
    eight = np.ndarray(len(flat) // 9, dtype="<u8", buffer=flat, strides=(9,))
    return (eight * _GATHER >> np.uint64(56)).astype(np.uint8)


def _odd_bytes(flat: Bits, data: Bytes) -> NDArray[np.int64]:
    return np.flatnonzero(_PARITY[data] != flat[8::9]).astype(np.int64)


def repair_parity(bits: BitsLike) -> Bits:
    """The same data bits with every parity bit set to what it must be."""
    return bytes_to_bits(bits_to_bytes(bits, parity=True, on_error="keep"), parity=True)


def text_to_bits(text: str, *, parity: bool = False) -> Bits:
    """Bits of the UTF-8 encoding of a text, as `bytes_to_bits` gives them."""
    return bytes_to_bits(text.encode("utf-8"), parity=parity)


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
    array = bits.detach().cpu().numpy() if hasattr(bits, "detach") else np.asarray(bits)
    if array.ndim != 1:
        raise BitStreamError(f"got bits of shape {array.shape}; one axis is needed. Try bits.reshape(-1)")
    bits_8 = array.astype(np.uint8, copy=False)
    if array.size and (bits_8.max() > 1 or (array.dtype not in (np.uint8, np.bool_) and (array != bits_8).any())):
        wrong = array[(array != 0) & (array != 1)][0]
        raise BitStreamError(f"got the value {wrong} among the bits; each must be 0 or 1. Try bytes_to_bits for bytes")
    return np.ascontiguousarray(bits_8)
