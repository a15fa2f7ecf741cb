"""The container of compressed files: header, frames, end. `docs/format.md` describes it byte by byte.

Every part has a checksum of its own, so that damage is found where it is, and a damaged frame leaves the others readable. All numbers are
little-endian.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from bit_transformer.errors import CompressedFileError, Give

MAGIC = b"\x89BTLM\r\n\x1a"
VERSION = 1
UNKNOWN = (1 << 64) - 1  # the total length, if it was not known at the start
LARGEST_FRAME = 1 << 28  # bytes of data

BANK, MODEL = range(2)  # what predicts
STORED, CODED = range(2)
FRAME, END = 1, 2

_HEADER = struct.Struct("<8sBBHQ8s32s")
_FRAME = struct.Struct("<BBBBHBBQQ8s8s")
_ENTRY = struct.Struct("<QQ")
_END = struct.Struct("<BxxxxxxxQQQ")
CHECK = 8  # bytes of a checksum
HEADER_SIZE = _HEADER.size + CHECK
FRAME_SIZE = _FRAME.size + CHECK
END_SIZE = _END.size + CHECK


def checksum(data: bytes) -> bytes:
    """BLAKE2b of 64 bits."""
    return hashlib.blake2b(data, digest_size=CHECK).digest()


class Header(NamedTuple):
    """What a file begins with.

    Attributes:
        predictor: BANK or MODEL.
        rate: what head and mixer learn by while coding, in 1/2^16; 0: nothing.
        size: bytes of the data, or UNKNOWN.
        release: of the program that wrote it.
        digest: SHA-256 of the model; zeros for BANK.
    """

    predictor: int
    rate: int
    size: int
    release: str
    digest: bytes


class Frame(NamedTuple):
    """The header of a frame.

    Attributes:
        method: STORED or CODED.
        profile: which contexts the bank has; 0 with a model.
        filter: 1 if x86 jumps are absolute.
        columns: row width as a context; 0: none.
        buckets, history: log2 of the bank's sizes; 0 with a model.
        size: bytes of data. `coded`: bytes of the payload.
        check: checksum of the data. `payload_check`: of the payload.
    """

    method: int
    profile: int
    filter: int
    columns: int
    buckets: int
    history: int
    size: int
    coded: int
    check: bytes
    payload_check: bytes


@dataclass(frozen=True)
class Entry:
    """A line of the frame table: the sizes of a frame, as in its header."""

    size: int
    coded: int


def pack_header(header: Header) -> bytes:
    """The header's bytes."""
    release = header.release.encode("ascii")[:8]
    packed = _HEADER.pack(MAGIC, VERSION, header.predictor, header.rate, header.size, release, header.digest)
    return packed + checksum(packed)


def read_header(stream: BinaryIO) -> Header:
    """Read the header.

    Raises:
        CompressedFileError: something else, a newer version, or damage.
    """
    packed = stream.read(HEADER_SIZE)
    if not packed:
        raise CompressedFileError("got an empty file; a compressed file is needed", tries=("another file",))
    if packed[:8] != MAGIC[: len(packed)]:
        raise CompressedFileError(
            "got a file that does not begin as compressed files do; one that `compress` wrote is needed",
            tries=("another file",),
        )
    if len(packed) > 8 and packed[8] != VERSION:
        release = packed[20:28].rstrip(b"\0").decode("ascii", "replace") if len(packed) >= 28 else "another"
        raise CompressedFileError(
            f"got a file of format version {packed[8]}, written by release {release!r}; this release reads version {VERSION}",
            tries=(f"release {release} of bit-transformer",),
        )
    if len(packed) < HEADER_SIZE or checksum(packed[:-CHECK]) != packed[-CHECK:]:
        raise _damaged("the header")
    _, _, predictor, rate, size, release, digest = _HEADER.unpack(packed[:-CHECK])
    if predictor not in (BANK, MODEL):
        raise _damaged("the header")
    return Header(predictor, rate, size, release.rstrip(b"\0").decode("ascii", "replace"), digest)


def pack_frame(frame: Frame) -> bytes:
    """The bytes before a frame's payload."""
    packed = _FRAME.pack(FRAME, *frame)
    return packed + checksum(packed)


def pack_end(entries: list[Entry]) -> bytes:
    """The frame table and the end, which are the last bytes of a file."""
    table = b"".join(_ENTRY.pack(entry.size, entry.coded) for entry in entries)
    packed = _END.pack(END, len(entries), sum(entry.size for entry in entries), len(table))
    return bytes([END]) + checksum(table) + table + packed + checksum(packed)


def read_frame(stream: BinaryIO) -> Frame | None:
    """Read the header of the next frame; None at the frame table.

    Raises:
        CompressedFileError: the file is damaged or ends here.
    """
    kind = stream.read(1)
    if kind == bytes([END]):
        return None
    packed = kind + stream.read(FRAME_SIZE - 1)
    return parse_frame(packed)


def parse_frame(packed: bytes) -> Frame:
    """The header of a frame.

    Raises:
        CompressedFileError: it is damaged.
    """
    if len(packed) < FRAME_SIZE:
        raise CompressedFileError(
            "got a file that ends too early; the end of it is missing", tries=("the whole file", _KEEP_GOING)
        )
    if checksum(packed[:-CHECK]) != packed[-CHECK:] or packed[0] != FRAME:
        raise _damaged("the header of a frame")
    _, *fields = _FRAME.unpack(packed[:-CHECK])
    frame = Frame(*fields)
    if (
        frame.method not in (STORED, CODED)
        or not 0 < frame.size <= LARGEST_FRAME
        or frame.coded > frame.size + 64
        or frame.filter > 1
    ):
        raise _damaged("the header of a frame")
    return frame


def read_payload(stream: BinaryIO, frame: Frame) -> bytes:
    """The payload after a frame's header.

    Raises:
        CompressedFileError: the file ends here, or the payload is damaged.
    """
    payload = stream.read(frame.coded)
    if len(payload) < frame.coded:
        raise CompressedFileError(
            "got a file that ends too early; the end of it is missing", tries=("the whole file", _KEEP_GOING)
        )
    if checksum(payload) != frame.payload_check:
        raise _damaged("the payload of a frame")
    return payload


def read_end(stream: BinaryIO, entries: list[Entry]) -> None:
    """Read what follows the first byte of the frame table, and check it against the frames that were read.

    Raises:
        CompressedFileError: damage, missing bytes, or bytes after the end.
    """
    expected = pack_end(entries)[1:]
    found = stream.read(len(expected))
    if len(found) < len(expected) and found == expected[: len(found)]:
        raise CompressedFileError(
            "got a file that ends too early; the end of it is missing", tries=("the whole file", _KEEP_GOING)
        )
    if found != expected:
        raise _damaged("the frame table")
    if stream.read(1):
        raise CompressedFileError(
            "got more bytes after the end of the compressed file; nothing may follow", tries=("the file alone",)
        )


def read_table(stream: BinaryIO) -> list[Entry] | None:
    """The frame table of a file that can be searched, from its end; None if it is damaged. The position in the stream does not change."""
    here = stream.tell()
    try:
        length = stream.seek(0, 2)
        if length < HEADER_SIZE + END_SIZE + 1 + CHECK:
            return None
        stream.seek(length - END_SIZE)
        packed = stream.read(END_SIZE)
        if checksum(packed[:-CHECK]) != packed[-CHECK:] or packed[0] != END:
            return None
        _, count, total, size = _END.unpack(packed[:-CHECK])
        if size != count * _ENTRY.size or length < HEADER_SIZE + END_SIZE + 1 + CHECK + size:
            return None
        stream.seek(length - END_SIZE - size - CHECK)
        check, table = stream.read(CHECK), stream.read(size)
        if checksum(table) != check:
            return None
        entries = [Entry(*_ENTRY.unpack_from(table, _ENTRY.size * i)) for i in range(count)]
        return entries if sum(entry.size for entry in entries) == total else None
    finally:
        stream.seek(here)


_KEEP_GOING = Give("keep_going", True)


def _damaged(where: str) -> CompressedFileError:
    return CompressedFileError(
        f"got a damaged file: {where} does not match its checksum",
        tries=("an intact copy of the file", _KEEP_GOING),
    )
