"""What a bank has learned, without loss in a fraction of its tables' size: for files.

Most of a bank is empty. What is not is a bucket: a check, and a tree of 15 histories. Checks are hashes, and stay as they are. A history nearly
follows from the one above it: of a context that was seen once, the bit tells which of the two nodes below was reached, and the other is empty.
So every history is coded given the one above it, with the arithmetic coder that compresses files. Heads of matches follow from the history
of units, and small tables are stored as their difference from a new bank's.
"""

# Shapes: N bytes of slots, C codes of a piece.
from __future__ import annotations

import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bit_transformer.coding.arithmetic import PLACE, new_coder
from bit_transformer.errors import CheckpointError
from bit_transformer.experts import kernels
from bit_transformer.experts.histories import histories
from bit_transformer.experts.layout import BUCKET, Shape, Tables
from bit_transformer.machine import cores

VERSION = 1
HEADER = "packing"  # int64: the version, and the number of elements of every table
SMALL = ("chance", "first", "match", "weights", "last", "maps")
# Of rich banks.
RICH = ("runs", "direct", "run_logits", "mixing", "visits", "blend", "refined", "far", "followed", "seen", "next_words")
_LEVEL = 1  # of zlib: level 6 takes six times as long, for a tenth less
_AHEAD = 7  # bytes that a decoder asks for beyond the end


def packed(tables: Tables, new: Tables, shape: Shape) -> dict[str, NDArray[Any]]:
    """The tables of a bank, packed.

    Args:
        new: those of a bank that has learned nothing.
    """
    with ThreadPoolExecutor(cores()) as threads:
        parts = list(threads.map(_packed_slots, _pieces(tables, shape)))
    more = {}
    if shape.rich:
        more = {name: _squeezed(_unsigned(getattr(tables, name)) - _unsigned(getattr(new, name))) for name in RICH}
        more["far_heads"] = _squeezed(tables.far_heads - _expected_heads(tables, shape)[1])
    return {
        HEADER: np.array([VERSION, *(table.size for table in tables)], dtype=np.int64),
        "learned": tables.learned,
        "slots.sizes": np.array([[len(part) for part in both] for both in parts], dtype=np.int64),
        "slots.checks": np.concatenate([checks for checks, _ in parts]),
        "slots.code": np.concatenate([code for _, code in parts]),
        "history": _squeezed(tables.history),
        "heads": _squeezed(tables.heads - _expected_heads(tables, shape)[0]),
        "small": _squeezed(*(_unsigned(getattr(tables, name)) - _unsigned(getattr(new, name)) for name in SMALL)),
        **more,
    }


def unpack(state: Mapping[str, NDArray[Any]], new: Tables, shape: Shape) -> None:
    """Fill the tables of a new bank with what `packed` gave.

    Raises:
        CheckpointError: of another version, of a bank of another size, or damaged.
    """
    more = (*RICH, "far_heads") if shape.rich else ()
    for name in (HEADER, "learned", "slots.sizes", "slots.checks", "slots.code", "history", "heads", "small", *more):
        got = str(state[name].dtype) if name in state else "nothing"
        needed = "int64" if name in (HEADER, "learned", "slots.sizes") else "uint8"
        if got != needed:
            raise _damaged(name, got, needed)
    version, *elements = state[HEADER].reshape(-1).tolist() or [0]
    if version != VERSION:
        raise CheckpointError(
            f"got experts packed in form {version}; form {VERSION} is needed. Try the version that wrote them"
        )
    for name, table, size in zip(Tables._fields, new, [*elements, *(0 for _ in new)], strict=False):
        if table.size != size:
            raise CheckpointError(
                f"got {size:,} elements for the bank's {name}; {table.size:,} are needed: units of {shape.unit_bits} bits, "
                f"{len(shape.spec)} contexts, {1 << shape.bucket_bits} buckets. Try the bank it was saved with"
            )
    learned = state["learned"].reshape(-1)
    if len(learned) != 1 or learned[0] < 0:
        raise _damaged("learned", str(learned.tolist()), "one number, 0 or more")
    new.learned[...] = learned
    _unpack_slots(state, new, shape)
    _fill(state["history"], "history", new.history)
    heads = np.zeros_like(new.heads)
    _fill(state["heads"], "heads", heads)
    expected, far_expected = _expected_heads(new, shape)
    new.heads[...] = heads + expected
    changes = [np.zeros_like(_unsigned(getattr(new, name))) for name in SMALL]
    _fill(state["small"], "small", *changes)
    for name, change in zip(SMALL, changes, strict=True):
        table = _unsigned(getattr(new, name))
        table += change
    for name in RICH if shape.rich else ():
        table = _unsigned(getattr(new, name))
        change = np.zeros_like(table)
        _fill(state[name], name, change)
        table += change
    if shape.rich:
        far_heads = np.zeros_like(new.far_heads)
        _fill(state["far_heads"], "far_heads", far_heads)
        new.far_heads[...] = far_heads + far_expected


def _damaged(part: str, got: str, needed: str) -> CheckpointError:
    return CheckpointError(
        f"the packed experts are damaged: got {got} for {part}; {needed} is needed. Try an earlier one"
    )


# ---- all but the buckets ----


def _unsigned(table: NDArray[Any]) -> NDArray[Any]:
    return table.view(f"u{table.itemsize}")


def _squeezed(*arrays: NDArray[Any]) -> NDArray[np.uint8]:
    """Arrays by zlib: first bytes of all elements, then second ones, and so on."""
    packer = zlib.compressobj(_LEVEL)
    code = bytearray()
    for array in arrays:
        bytes_NS = array.reshape(-1).view(np.uint8).reshape(-1, array.itemsize)
        for plane in range(array.itemsize):
            code += packer.compress(np.ascontiguousarray(bytes_NS[:, plane]).data)
    return np.frombuffer(code + packer.flush(), dtype=np.uint8)


def _fill(code: NDArray[np.uint8], name: str, *arrays: NDArray[Any]) -> None:
    """The inverse of `_squeezed`, into arrays of the right size."""
    unpacker, rest = zlib.decompressobj(), np.ascontiguousarray(code).tobytes()
    try:
        for array in arrays:
            bytes_NS = array.reshape(-1).view(np.uint8).reshape(-1, array.itemsize)
            for plane in range(array.itemsize):
                part = unpacker.decompress(rest, len(bytes_NS))
                rest = unpacker.unconsumed_tail
                if len(part) < len(bytes_NS):
                    raise _damaged(name, f"{len(part):,} bytes", f"{len(bytes_NS):,}")
                bytes_NS[:, plane] = np.frombuffer(part, dtype=np.uint8)
        more = unpacker.decompress(rest, 1)
    except zlib.error as broken:
        raise _damaged(name, f"what zlib does not read ({broken})", "its code") from None
    if more or not unpacker.eof or unpacker.unused_data:
        raise _damaged(name, f"{len(code):,} bytes that end elsewhere", "the end of its code")


def _expected_heads(tables: Tables, shape: Shape) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The heads, near and far, of a bank that has read the units in its history as one stream."""
    count = int(tables.learned[0])
    kept = min(count, len(tables.history))
    units = tables.history[np.arange(count - kept, count) % len(tables.history)]
    blank = tables._replace(
        history=np.zeros_like(tables.history),
        heads=np.zeros_like(tables.heads),
        far_heads=np.zeros_like(tables.far_heads),
        learned=np.array([count - kept], dtype=np.int64),
    )
    kernels.remember(shape, blank, units)
    return blank.heads, blank.far_heads


# ---- buckets ----


def _pieces(tables: Tables, shape: Shape) -> list[NDArray[np.uint8]]:
    """The slots of every expert, and the bucket of unknown contexts; views."""
    size = BUCKET << shape.bucket_bits
    return [tables.slots[begin : begin + size] for begin in range(0, len(tables.slots), size)]


def _packed_slots(slots_N: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Checks, and the code of the rest."""
    checks = np.empty(kernels.used_buckets(slots_N), dtype=np.uint8)
    room = 4 * len(checks) + 1024  # twice what is usual
    while True:
        code = np.empty(room, dtype=np.uint8)
        _, size = _coded(slots_N, checks, code, decoding=False)
        if size <= room:
            return checks, code[:size]
        room = size


def _coded(
    slots_N: NDArray[np.uint8], checks: NDArray[np.uint8], code: NDArray[np.uint8], *, decoding: bool
) -> tuple[int, int]:
    """Number of used buckets, and bytes of their code."""
    coder, probabilities = new_coder()[0], np.full((kernels.ROWS, 256), 1 << 15, dtype=np.uint16)
    known = histories()
    count = kernels.code_slots(slots_N, checks, code, coder, probabilities, known.counts, known.after[0], decoding)
    return int(count), int(coder[PLACE])


def _unpack_slots(state: Mapping[str, NDArray[Any]], new: Tables, shape: Shape) -> None:
    pieces, sizes = _pieces(new, shape), state["slots.sizes"]
    checks, code = state["slots.checks"].reshape(-1), state["slots.code"].reshape(-1)
    most = len(checks) + len(code)
    fits = sizes.shape == (len(pieces), 2) and (sizes >= 0).all() and (sizes <= most).all()
    if not fits or sizes.sum(0).tolist() != [len(checks), len(code)]:
        raise _damaged("slots.sizes", f"sizes {sizes.shape}", f"{len(pieces)} that sum to the bytes there are")
    ends = sizes.cumsum(0)[:-1]
    parts = zip(pieces, np.split(checks, ends[:, 0]), np.split(code, ends[:, 1]), strict=True)

    def fill(part: tuple[NDArray[np.uint8], ...]) -> bool:
        slots_N, own_checks, own_code = part
        count, read = _coded(slots_N, own_checks.copy(), own_code.copy(), decoding=True)
        return count == len(own_checks) and read == len(own_code) + _AHEAD

    with ThreadPoolExecutor(cores()) as threads:
        if not all(threads.map(fill, parts)):
            raise _damaged("slots.code", "other buckets", "a code of as many as there are checks")
