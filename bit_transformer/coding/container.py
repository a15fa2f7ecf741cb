"""The container of compressed files: header, frames, end. `docs/format.md` describes it byte by byte.

Every part has a checksum of its own, so that damage is found where it is, and a damaged frame leaves the others readable. All numbers are
little-endian.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from bit_transformer.errors import BitStreamError, CompressedFileError, Give

MAGIC = b"\x89BTLM\r\n\x1a"
VERSION = 1
UNKNOWN = (1 << 64) - 1  # the total length, if it was not known at the start
BANK, MODEL = range(2)  # what predicts
LARGEST_FRAME = (1 << 28, 1 << 22)  # bytes of data, by predictor
STORED, CODED = range(2)
FRAME, END = 1, 2

_HEADER = struct.Struct("<8sBBHQ8s32s")
_FRAME = struct.Struct("<BBBBHBBQQ8s8s")
_ENTRY = struct.Struct("<QQ8s")
_END = struct.Struct("<BxxxxxxxQQQ")
CHECK = 8  # bytes of a checksum
HEADER_SIZE = _HEADER.size + CHECK
FRAME_SIZE = _FRAME.size + CHECK
END_SIZE = _END.size + CHECK


def read_bytes(stream: BinaryIO, size: int) -> bytes:
    """So many bytes, or what is left: a pipe may give fewer at a time.

    Raises:
        BitStreamError: the stream cannot be read.
    """
    parts: list[bytes] = []
    try:
        while size and (part := stream.read(size)):
            parts.append(part)
            size -= len(part)
    except OSError as unreadable:
        raise BitStreamError(f"the data cannot be read ({unreadable.strerror}). Try another file") from None
    return b"".join(parts)


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


class Entry(NamedTuple):
    """A line of the frame table: sizes of a frame, and the checksum of its data, as in its header."""

    size: int
    coded: int
    check: bytes


class Frame(NamedTuple):
    """The header of a frame.

    Attributes:
        method: STORED or CODED.
        profile: which contexts the bank has; 0 with a model.
        filter: 1 if x86 jumps are absolute. Of data made of numbers: what they are, see `compression.profiles`.
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

    @property
    def entry(self) -> Entry:
        """Its line of the frame table."""
        return Entry(self.size, self.coded, self.check)


@dataclass(frozen=True)
class Seal:
    """What ties frames to their file and their place in it: otherwise frames of other files, or in another order, would pass as intact.

    Attributes:
        check: the header's checksum.
        largest: bytes of data that a frame may have.
    """

    check: bytes
    largest: int

    def of_frame(self, packed: bytes, index: int) -> bytes:
        """The checksum of a frame's header."""
        return checksum(self.check + index.to_bytes(8, "little") + packed)


def pack_header(header: Header) -> tuple[bytes, Seal]:
    """The header's bytes."""
    release = header.release.encode("ascii")[:8]
    packed = _HEADER.pack(MAGIC, VERSION, header.predictor, header.rate, header.size, release, header.digest)
    return packed + checksum(packed), Seal(checksum(packed), LARGEST_FRAME[header.predictor])


def read_header(stream: BinaryIO) -> tuple[Header, Seal]:
    """Read the header.

    Raises:
        CompressedFileError: something else, a newer version, or damage.
    """
    packed = read_bytes(stream, HEADER_SIZE)
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
            tries=(f"release {release!r} of bit-transformer",),
        )
    if len(packed) < HEADER_SIZE or checksum(packed[:-CHECK]) != packed[-CHECK:] or packed[9] not in (BANK, MODEL):
        raise CompressedFileError(
            "got a damaged file: its header does not match its checksum", tries=("an intact copy of the file",)
        )
    _, _, predictor, rate, size, release, digest = _HEADER.unpack(packed[:-CHECK])
    header = Header(predictor, rate, size, release.rstrip(b"\0").decode("ascii", "replace"), digest)
    return header, Seal(packed[-CHECK:], LARGEST_FRAME[predictor])


def pack_frame(frame: Frame, index: int, seal: Seal) -> bytes:
    """The bytes before the payload of the frame of a number, from 0."""
    packed = _FRAME.pack(FRAME, *frame)
    return packed + seal.of_frame(packed, index)


def pack_end(entries: list[Entry], seal: Seal) -> bytes:
    """The frame table and the end, which are the last bytes of a file."""
    table = b"".join(_ENTRY.pack(*entry) for entry in entries)
    packed = _END.pack(END, len(entries), sum(entry.size for entry in entries), len(table))
    return bytes([END]) + checksum(seal.check + table) + table + packed + checksum(seal.check + packed)


def read_frame(stream: BinaryIO, index: int, seal: Seal) -> Frame | None:
    """Read the header of the next frame, number `index`; None at the frame table.

    Raises:
        CompressedFileError: the file is damaged or ends here.
    """
    kind = read_bytes(stream, 1)
    if kind == bytes([END]):
        return None
    packed = kind + read_bytes(stream, FRAME_SIZE - 1)
    if len(packed) < FRAME_SIZE:
        raise _ends_early()
    if seal.of_frame(packed[:-CHECK], index) != packed[-CHECK:] or packed[0] != FRAME:
        raise _damaged(f"the header of frame {index}")
    _, *fields = _FRAME.unpack(packed[:-CHECK])
    frame = Frame(*fields)
    fits = frame.coded == frame.size if frame.method == STORED else frame.coded < frame.size
    if (
        frame.method not in (STORED, CODED)
        or not 0 < frame.size <= seal.largest
        or not fits
        or (frame.method == STORED and frame.filter > 1)
    ):
        raise _damaged(f"the header of frame {index}")
    return frame


def read_payload(stream: BinaryIO, frame: Frame) -> bytes:
    """The payload after a frame's header.

    Raises:
        CompressedFileError: the file ends here, or the payload is damaged.
    """
    payload = read_bytes(stream, frame.coded)
    if len(payload) < frame.coded:
        raise _ends_early()
    if checksum(payload) != frame.payload_check:
        raise _damaged("the payload of a frame")
    return payload


def read_end(stream: BinaryIO, entries: list[Entry], seal: Seal) -> None:
    """Read what follows the first byte of the frame table, and check it against the frames that were read.

    Raises:
        CompressedFileError: damage, missing bytes, or bytes after the end.
    """
    expected = pack_end(entries, seal)[1:]
    found = read_bytes(stream, len(expected))
    if len(found) < len(expected) and found == expected[: len(found)]:
        raise _ends_early()
    if found != expected:
        raise _damaged("the frame table")
    if read_bytes(stream, 1):
        raise CompressedFileError(
            "got more bytes after the end of the compressed file; nothing may follow", tries=("the file alone",)
        )


@dataclass(frozen=True)
class Table:
    """The frame table of a file.

    Attributes:
        entries: the frames' sizes.
        begin: where the table begins in the file.
    """

    entries: list[Entry]
    begin: int

    @property
    def size(self) -> int:
        """Bytes of data."""
        return sum(entry.size for entry in self.entries)


def read_table(stream: BinaryIO, seal: Seal) -> Table | None:
    """The frame table of a file that can be searched, from its end; None if it is damaged. The position in the stream does not change."""
    here = stream.tell()
    try:
        length = stream.seek(0, 2)
        if length < HEADER_SIZE + END_SIZE + 1 + CHECK:
            return None
        stream.seek(length - END_SIZE)
        packed = read_bytes(stream, END_SIZE)
        if checksum(seal.check + packed[:-CHECK]) != packed[-CHECK:] or packed[0] != END:
            return None
        _, count, total, size = _END.unpack(packed[:-CHECK])
        begin = length - END_SIZE - size - CHECK - 1
        if size != count * _ENTRY.size or begin < HEADER_SIZE:
            return None
        stream.seek(begin + 1)
        check, table = read_bytes(stream, CHECK), read_bytes(stream, size)
        entries = [Entry(*_ENTRY.unpack_from(table, _ENTRY.size * i)) for i in range(count)]
        whole = checksum(seal.check + table) == check and sum(entry.size for entry in entries) == total
        return Table(entries, begin) if whole else None
    finally:
        stream.seek(here)


def _ends_early() -> CompressedFileError:
    return CompressedFileError(
        "got a file that ends too early; the end of it is missing", tries=("the whole file", Give("keep_going", True))
    )


def _damaged(where: str) -> CompressedFileError:
    return CompressedFileError(
        f"got a damaged file: {where} does not match its checksum",
        tries=("an intact copy of the file", Give("keep_going", True)),
    )
