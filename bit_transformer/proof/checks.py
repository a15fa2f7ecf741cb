"""What proves that a file is right: CRCs, Adler-32, hashes, sums of bytes, and CRCs of what a deflate stream inflates to."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from bit_transformer.errors import BitStreamError, ConfigError, Give
from bit_transformer.proof.edits import Edit
from bit_transformer.proof.kernels import crc_forward

# Shapes: N bytes of a check's range.
Bytes = bytes | bytearray | memoryview
Keys = NDArray[np.uint64]

DEFAULT_CRC16 = "crc16-arc"
_ADLER = 65521


class Stream(Protocol):
    """A check that is fed byte by byte; copies go on from where they were made, so that a common beginning is read once.

    Attributes:
        failed: whether it cannot hold any more, whatever comes.
    """

    failed: bool

    def update(self, data: Bytes) -> None:
        """The next bytes of the check's range."""

    def copy(self) -> Stream:
        """The same state, to go on with twice."""

    def good(self) -> bool:
        """Whether the check holds, once all bytes of its range were given."""


class Check(Protocol):
    """What is known of some bytes of a file.

    A range that was found in the received file moves where bytes are inserted or removed before its end; one that is given in terms of the
    file as it should be does not.
    """

    @property
    def name(self) -> str:
        """The kind, and the value where it is known."""

    @property
    def covers(self) -> str:
        """Which bytes, in words."""

    @property
    def begin(self) -> int:
        """The first byte."""

    @property
    def end(self) -> int:
        """One past the last byte."""

    @property
    def bits(self) -> int:
        """A wrong file passes with a chance of one in 2^bits."""

    @property
    def moves(self) -> bool:
        """Whether the range moves with what is inserted."""

    @property
    def to_end(self) -> bool:
        """Whether it ends with the file."""

    def received_end(self, growth: int) -> int:
        """Where the range ends in the file as received, if a solution inserts so many bytes in it."""

    def holds(self, data: Bytes) -> bool:
        """Whether the whole file's bytes pass."""

    def after(self, edits: Iterable[Edit]) -> Self:
        """The check of the file after some edits."""

    def stream(self, data: Bytes) -> Stream:
        """For testing many files that begin alike; `data` is where stored values are read."""


class LinearCheck(Check, Protocol):
    """A check on which changes add up: each change of the file has a key, and those of a solution sum to the target."""

    @property
    def modulus(self) -> int:
        """0: keys are added by XOR. Else their two halves are, modulo this."""

    def target(self, data: Bytes) -> int:
        """What the keys of a solution sum to."""

    def keys(self, data: Bytes) -> tuple[Keys, NDArray[np.bool_]]:
        """(N, 8) the key of each flipped bit of the range, most significant first; (N, 8) which may be flipped."""


@dataclass(frozen=True)
class _Range:
    """The bytes that a check covers."""

    begin: int
    end: int
    what: str = ""
    moves: bool = True
    to_end: bool = False

    @property
    def covers(self) -> str:
        """The bytes, and what they are."""
        bytes_ = f"bytes {self.begin} to {self.end - 1}"
        return f"{self.what} ({bytes_})" if self.what else bytes_

    def _moved(self, edits: Iterable[Edit]) -> tuple[int, int]:
        """The range after edits: what is inserted right at its end is part of it."""
        begin, end = self.begin, self.end
        for edit in edits:
            if edit.growth and (edit.offset < self.end or (edit.offset == self.end and not edit.old)):
                end += edit.growth
                if edit.offset < self.begin:
                    begin += edit.growth
        return begin, end

    def after(self, edits: Iterable[Edit]) -> Self:
        """The check of the file after some edits."""
        edits = tuple(edits)
        if not self.moves:
            return replace(self, end=self.end + sum(edit.growth for edit in edits)) if self.to_end else self
        begin, end = self._moved(edits)
        return replace(self, begin=begin, end=end)

    def received_end(self, growth: int) -> int:
        """Where the range ends in the file as received, if a solution inserts so many bytes in it."""
        return self.end if self.moves or self.to_end else self.end - growth


# CRCs.


@dataclass(frozen=True)
class CrcKind:
    """A CRC by the parameters of Rocksoft's model: https://reveng.sourceforge.io/crc-catalogue/."""

    name: str
    width: int
    poly: int
    init: int
    refin: bool
    refout: bool
    xorout: int

    @property
    def mask(self) -> int:
        """All bits of the register."""
        return (1 << self.width) - 1

    @property
    def order(self) -> Keys:
        """(256,) each byte as it meets the reflected register."""
        return _byte_order(self.refin)

    @property
    def table(self) -> Keys:
        """(256,) what a byte does to the reflected register."""
        return _tables(self.width, self.poly)[0]

    @property
    def inverse(self) -> Keys:
        """(256,) the index in the table by an entry's highest byte: all differ."""
        return _tables(self.width, self.poly)[1]

    @property
    def last_bit(self) -> int:
        """What the last bit of a file does to the reflected register."""
        return _reflected(self.poly, self.width)

    @property
    def start(self) -> int:
        """The reflected register before the first byte."""
        return _reflected(self.init, self.width)

    def register(self, value: int) -> int:
        """The reflected register with which a file of some value ends."""
        value ^= self.xorout
        return value if self.refout else _reflected(value, self.width)

    def value(self, register: int) -> int:
        """The value that a register is read as."""
        return (register if self.refout else _reflected(register, self.width)) ^ self.xorout

    def run(self, data: Bytes, register: int | None = None) -> int:
        """The register after some bytes."""
        register = self.start if register is None else register
        if self.name == "crc32":
            return zlib.crc32(data, register ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
        bytes_N = np.frombuffer(data, np.uint8)
        return int(crc_forward(self.table, self.order, np.uint64(register), bytes_N))

    def of(self, data: Bytes) -> int:
        """The CRC of some bytes."""
        return self.value(self.run(data))


def _reflected(value: int, width: int) -> int:
    return int(f"{value:0{width}b}"[::-1], 2)


@lru_cache(maxsize=2)
def _byte_order(reflected: bool) -> Keys:
    return np.array([value if reflected else _reflected(value, 8) for value in range(256)], np.uint64)


@lru_cache(maxsize=32)
def _tables(width: int, poly: int) -> tuple[Keys, Keys]:
    reflected = _reflected(poly, width)
    entries = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (reflected if value & 1 else 0)
        entries.append(value)
    inverse = [0] * 256
    for i, entry in enumerate(entries):
        inverse[entry >> width - 8] = i
    return np.array(entries, np.uint64), np.array(inverse, np.uint64)


CRCS = {
    kind.name: kind
    for kind in (
        CrcKind("crc8", 8, 0x07, 0, False, False, 0),
        CrcKind("crc16-arc", 16, 0x8005, 0, True, True, 0),
        CrcKind("crc16-modbus", 16, 0x8005, 0xFFFF, True, True, 0),
        CrcKind("crc16-ccitt", 16, 0x1021, 0xFFFF, False, False, 0),
        CrcKind("crc16-xmodem", 16, 0x1021, 0, False, False, 0),
        CrcKind("crc16-kermit", 16, 0x1021, 0, True, True, 0),
        CrcKind("crc16-x25", 16, 0x1021, 0xFFFF, True, True, 0xFFFF),
        CrcKind("crc32", 32, 0x04C11DB7, 0xFFFFFFFF, True, True, 0xFFFFFFFF),
        CrcKind("crc32c", 32, 0x1EDC6F41, 0xFFFFFFFF, True, True, 0xFFFFFFFF),
        CrcKind("crc32-bzip2", 32, 0x04C11DB7, 0xFFFFFFFF, False, False, 0xFFFFFFFF),
        CrcKind("crc32-mpeg2", 32, 0x04C11DB7, 0xFFFFFFFF, False, False, 0),
        CrcKind("crc64-xz", 64, 0x42F0E1EBA9EA3693, 2**64 - 1, True, True, 2**64 - 1),
        CrcKind("crc64-ecma", 64, 0x42F0E1EBA9EA3693, 0, False, False, 0),
    )
}


@dataclass(frozen=True)
class Crc(_Range):
    """A CRC of a range, with a value that is known, or stored in the file.

    Attributes:
        stored: where the value is in the file; then it may be damaged too, and `known` is not looked at.
        byte_order: of the stored value.
    """

    kind: CrcKind = CRCS["crc32"]
    known: int = 0
    stored: int | None = None
    byte_order: Literal["little", "big"] = "big"

    modulus = 0

    @property
    def name(self) -> str:
        """The kind, and the value if it is known."""
        return f"{self.kind.name}:{self.known:0{self.kind.width // 4}x}" if self.stored is None else self.kind.name

    @property
    def bits(self) -> int:
        """The width."""
        return self.kind.width

    def expected(self, data: Bytes) -> int:
        """The value that the range should have."""
        if self.stored is None:
            return self.known
        return int.from_bytes(data[self.stored : self.stored + self.kind.width // 8], self.byte_order)

    def holds(self, data: Bytes) -> bool:
        """Whether the range has that value."""
        return self.end <= len(data) and self.kind.of(memoryview(data)[self.begin : self.end]) == self.expected(data)

    def after(self, edits: Iterable[Edit]) -> Self:
        """The check of the file after some edits; the stored value moves too."""
        if self.stored is None or not self.moves:
            return super().after(edits)
        edits = tuple(edits)
        growth = sum(edit.growth for edit in edits if edit.offset < self.stored + (not edit.old))
        begin, end = self._moved(edits)
        return replace(self, begin=begin, end=end, stored=self.stored + growth)

    def target(self, data: Bytes) -> int:
        """What the register at the end must change by."""
        found = self.kind.run(memoryview(data)[self.begin : self.end])
        return found ^ self.kind.register(self.expected(data))

    def keys(self, data: Bytes) -> tuple[Keys, NDArray[np.bool_]]:
        """(N, 8) what each bit of the range does to the register at its end; all may be flipped."""
        from bit_transformer.proof.kernels import bit_keys

        keys_N8 = np.empty((self.end - self.begin, 8), np.uint64)
        bit_keys(np.uint64(self.kind.last_bit), self.kind.refin, np.uint64(self.kind.last_bit), keys_N8)
        return keys_N8, np.ones(keys_N8.shape, bool)

    def stored_keys(self) -> tuple[NDArray[np.int64], Keys]:
        """The bits of the stored value, counted through the file, and their keys; none where it is not stored."""
        if self.stored is None:
            return np.zeros(0, np.int64), np.zeros(0, np.uint64)
        size, bits, keys = self.kind.width // 8, [], []
        for at in range(size):
            for bit in range(8):
                place = at if self.byte_order == "little" else size - 1 - at
                bits.append(8 * (self.stored + at) + bit)
                keys.append(self.kind.register(0) ^ self.kind.register(1 << (8 * place + 7 - bit)))
        return np.array(bits, np.int64), np.array(keys, np.uint64)

    def stream(self, data: Bytes) -> Stream:
        """Fed byte by byte."""
        return _CrcStream(self.kind, self.expected(data), self.kind.start)


@dataclass
class _CrcStream:
    kind: CrcKind
    expected: int
    register: int
    failed: bool = False

    def update(self, data: Bytes) -> None:
        self.register = self.kind.run(data, self.register)

    def copy(self) -> _CrcStream:
        return _CrcStream(self.kind, self.expected, self.register)

    def good(self) -> bool:
        return self.kind.value(self.register) == self.expected


# Sums.


@dataclass(frozen=True)
class Adler32(_Range):
    """The sums of zlib's Adler-32."""

    known: int = 0

    bits = 32
    modulus = _ADLER

    @property
    def name(self) -> str:
        """The kind and the value."""
        return f"adler32:{self.known:08x}"

    def holds(self, data: Bytes) -> bool:
        """Whether the range has that value."""
        return self.end <= len(data) and zlib.adler32(memoryview(data)[self.begin : self.end]) == self.known

    def target(self, data: Bytes) -> int:
        """The difference of both sums."""
        found = zlib.adler32(memoryview(data)[self.begin : self.end])
        sums = ((self.known >> shift & 0xFFFF) - (found >> shift & 0xFFFF) for shift in (0, 16))
        low, high = (value % _ADLER for value in sums)
        return high << 32 | low

    def keys(self, data: Bytes) -> tuple[Keys, NDArray[np.bool_]]:
        """(N, 8): a flip changes the first sum by a power of two, the second by that times the distance to the end."""
        changes_N8 = _bit_changes(data, self.begin, self.end)
        distance_N1 = np.arange(len(changes_N8), 0, -1, dtype=np.int64)[:, None] % _ADLER
        low_N8, high_N8 = changes_N8 % _ADLER, changes_N8 * distance_N1 % _ADLER
        return (high_N8 << 32 | low_N8).astype(np.uint64), np.ones(changes_N8.shape, bool)

    def stream(self, data: Bytes) -> Stream:
        """Fed byte by byte."""
        return _AdlerStream(self.known, 1)


@dataclass
class _AdlerStream:
    expected: int
    value: int
    failed: bool = False

    def update(self, data: Bytes) -> None:
        self.value = zlib.adler32(data, self.value)

    def copy(self) -> _AdlerStream:
        return _AdlerStream(self.expected, self.value)

    def good(self) -> bool:
        return self.value == self.expected


def _bit_changes(data: Bytes, begin: int, end: int) -> NDArray[np.int64]:
    """(N, 8) by how much the value of a byte changes when a bit of it is flipped."""
    weights_8 = 1 << np.arange(7, -1, -1, dtype=np.int64)
    values_N1 = np.frombuffer(data, np.uint8)[begin:end, None].astype(np.int64)
    changes: NDArray[np.int64] = np.where(values_N1 & weights_8, -weights_8, weights_8)
    return changes


TAR_FIELD = (148, 156)  # where a tar header has its checksum, in octal digits
TAR_SIZE = 512
_HEX = {ord(digit): value for value, digit in enumerate("0123456789abcdef")} | {
    ord(digit): value for value, digit in enumerate("0123456789ABCDEF")
}


@dataclass(frozen=True)
class ByteSum(_Range):
    """A sum of bytes: of a tar header ("tar"), which is stored in it, or of a line of Intel HEX ("hex"), which is 0 modulo 256."""

    form: Literal["tar", "hex"] = "tar"

    @property
    def name(self) -> str:
        """The kind."""
        return f"{self.form}-sum"

    @property
    def bits(self) -> int:
        """Few: other bytes often have the same sum."""
        return 12 if self.form == "tar" else 8

    @property
    def modulus(self) -> int:
        """More than the largest sum of a header, or 256."""
        return 1 << 17 if self.form == "tar" else 256

    def holds(self, data: Bytes) -> bool:
        """Whether the sum is right; a line must have the length that it says, too."""
        part = bytes(data[self.begin : self.end])
        if self.form == "tar":
            stored = _octal(part[slice(*TAR_FIELD)])
            return len(part) == TAR_SIZE and stored is not None and _tar_sum(part) == stored
        try:
            decoded = bytes.fromhex(part[1:].decode("ascii"))
        except ValueError:
            return False
        # fromhex skips spaces, which are no part of a line.
        return (
            part[:1] == b":"
            and 2 * len(decoded) + 1 == len(part)
            and len(decoded) >= 5
            and decoded[0] == len(decoded) - 5
            and not sum(decoded) % 256
        )

    def target(self, data: Bytes) -> int:
        """What the sum must change by. For a header whose checksum cannot be read, one that no change has."""
        part = bytes(data[self.begin : self.end])
        if self.form == "tar":
            stored = _octal(part[slice(*TAR_FIELD)])
            return 1 << 32 if stored is None else (stored - _tar_sum(part)) % self.modulus
        return -sum(_HEX.get(digit, 0) << (4 if i % 2 == 0 else 0) for i, digit in enumerate(part[1:])) % 256

    def keys(self, data: Bytes) -> tuple[Keys, NDArray[np.bool_]]:
        """(N, 8) what each bit does to the sum. Of a line, only flips that make a digit of a digit may be made, one for each."""
        part = bytes(data[self.begin : self.end])
        if self.form == "tar":
            changes_N8 = _bit_changes(data, self.begin, self.end)
            usable_N8 = np.ones(changes_N8.shape, bool)
            usable_N8[slice(*TAR_FIELD)] = False
        else:
            changes_N8 = np.zeros((len(part), 8), np.int64)
            usable_N8 = np.zeros(changes_N8.shape, bool)
            for i, digit in enumerate(part[1:], 1):
                for bit in range(8):
                    made = digit ^ 0x80 >> bit
                    if made in _HEX:
                        usable_N8[i, bit] = True
                        changes_N8[i, bit] = (_HEX[made] - _HEX.get(digit, 0)) << (4 if i % 2 else 0)
        return (changes_N8 % self.modulus).astype(np.uint64), usable_N8

    def stream(self, data: Bytes) -> Stream:
        """Fed byte by byte."""
        return _WholeStream(replace(self, begin=0, end=self.end - self.begin), b"")


def _octal(field: bytes) -> int | None:
    digits = field.strip(b" \0")
    return int(digits, 8) if digits and all(0x30 <= digit < 0x38 for digit in digits) else None


def _tar_sum(header: bytes) -> int:
    return sum(header) - sum(header[slice(*TAR_FIELD)]) + 0x20 * (TAR_FIELD[1] - TAR_FIELD[0])


@dataclass
class _WholeStream:
    """For short ranges: read once they are there."""

    check: ByteSum
    data: bytes
    failed: bool = False

    def update(self, data: Bytes) -> None:
        self.data += data

    def copy(self) -> _WholeStream:
        return _WholeStream(self.check, self.data)

    def good(self) -> bool:
        return self.check.holds(self.data)


# Hashes.

DIGESTS = {"md5": 16, "sha1": 20, "sha224": 28, "sha256": 32, "sha384": 48, "sha512": 64, "blake2b": 64}
BY_LENGTH = {2 * size: name for name, size in DIGESTS.items() if name != "blake2b"} | {8: "crc32"}  # hex digits


@dataclass(frozen=True)
class Digest(_Range):
    """A hash: whatever passes is right."""

    kind: str = "sha256"
    known: bytes = b""

    @property
    def name(self) -> str:
        """The kind and the value."""
        return f"{self.kind}:{self.known.hex()}"

    @property
    def bits(self) -> int:
        """The length."""
        return 8 * DIGESTS[self.kind]

    def holds(self, data: Bytes) -> bool:
        """Whether the range has that hash."""
        return (
            self.end <= len(data) and _hash(self.kind, memoryview(data)[self.begin : self.end]).digest() == self.known
        )

    def stream(self, data: Bytes) -> Stream:
        """Fed byte by byte."""
        return _DigestStream(self.known, _hash(self.kind))


def _hash(kind: str, data: Bytes = b"") -> Any:
    return hashlib.blake2b(data) if kind == "blake2b" else hashlib.new(kind, data, usedforsecurity=False)


class _DigestStream:
    def __init__(self, expected: bytes, made: Any) -> None:
        self.expected, self.hash, self.failed = expected, made, False

    def update(self, data: Bytes) -> None:
        self.hash.update(data)

    def copy(self) -> _DigestStream:
        return _DigestStream(self.expected, self.hash.copy())

    def good(self) -> bool:
        return bool(self.hash.digest() == self.expected)


# Deflate.


@dataclass(frozen=True)
class Inflated(_Range):
    """A deflate stream whose inflated bytes have a known CRC-32 and size: members of ZIP files, gzip.

    Attributes:
        size: of the inflated bytes, modulo 2^32 in gzip. No more than that is ever inflated.
        zlib: whether the stream has zlib's header and trailer; else it is raw.
    """

    known: int = 0
    size: int = 0
    zlib: bool = False

    bits = 32

    @property
    def name(self) -> str:
        """The kind and the value."""
        return f"inflated-crc32:{self.known:08x}"

    def holds(self, data: Bytes) -> bool:
        """Whether it inflates to the last byte of the range, to bytes of that size and CRC."""
        if self.end > len(data):
            return False
        stream = self.stream(data)
        stream.update(memoryview(data)[self.begin : self.end])
        return stream.good()

    def stream(self, data: Bytes) -> Stream:
        """Fed byte by byte; after an error it reads no more."""
        return _InflatedStream(self, zlib.decompressobj(zlib.MAX_WBITS if self.zlib else -zlib.MAX_WBITS), 0, 0, False)


_PIECE = 1 << 16


@dataclass
class _InflatedStream:
    check: Inflated
    inflater: Any
    crc: int
    size: int
    failed: bool

    def update(self, data: Bytes) -> None:
        waiting: Bytes = data
        while not self.failed:
            if self.inflater.eof:
                self.failed = bool(len(waiting))
                return
            try:
                # One byte more than there should be shows that there is too much.
                made = self.inflater.decompress(waiting, min(_PIECE, self.check.size - self.size + 1))
            except zlib.error:
                self.failed = True
                return
            self.crc = zlib.crc32(made, self.crc)
            self.size += len(made)
            waiting = self.inflater.unconsumed_tail
            self.failed = self.size > self.check.size or bool(self.inflater.unused_data)
            if not waiting and not made:
                return

    def copy(self) -> _InflatedStream:
        return _InflatedStream(self.check, self.inflater.copy(), self.crc, self.size, self.failed)

    def good(self) -> bool:
        return not self.failed and self.inflater.eof and self.size == self.check.size and self.crc == self.check.known


# By name.

_NAMES = ("crc16", *CRCS, "adler32", *DIGESTS)


def parse_proof(
    text: str,
    size: int,
    begin: int = 0,
    end: int | None = None,
    *,
    moves: bool = True,
    to_end: bool = False,
    what: str = "",
) -> Check:
    """A check from words: "crc32:1c291ca3", "sha256:...". "crc16" is CRC-16/ARC, the one that catalogues call CRC-16.

    Args:
        size: of the file. `begin`, `end`: the bytes that the check covers; all by default.
        moves, to_end, what: see `Check`.

    Raises:
        ConfigError: an unknown kind, a wrong number of digits, or a range outside of the file.
        BitStreamError: an empty file.
    """
    end = size if end is None else end
    if size == 0:
        raise BitStreamError("proof: got an empty file; it must have at least one byte", field="data")
    if not 0 <= begin < end <= size:
        raise ConfigError(
            f"proof: got bytes {begin}:{end} of a file of {size}; the range must be in the file and not empty",
            field="proofs",
        )
    kind, _, digits = text.strip().partition(":")
    kind = kind.strip().lower().replace("_", "-")
    digits = digits.strip().lower().removeprefix("0x")
    if not digits and len(kind) in BY_LENGTH and all(digit in "0123456789abcdef" for digit in kind):
        kind, digits = BY_LENGTH[len(kind)], kind  # a bare checksum
    kind = DEFAULT_CRC16 if kind == "crc16" else kind
    kind = {"sha-1": "sha1", "sha-256": "sha256", "sha-512": "sha512", "crc-32": "crc32"}.get(kind, kind)
    if kind not in _NAMES:
        raise ConfigError(
            f"proof: got {kind[:40]!r}; must be one of {', '.join(_NAMES)}",
            field="proofs",
            tries=(Give("proofs", "crc32:1c291ca3"),),
        )
    length = CRCS[kind].width // 4 if kind in CRCS else 8 if kind == "adler32" else 2 * DIGESTS[kind]
    if len(digits) != length or any(digit not in "0123456789abcdef" for digit in digits):
        got = f"{len(digits)} characters" if len(digits) != length else f"{digits[:40]!r}"
        raise ConfigError(
            f"proof: got {got} for {kind}; must be {length} hex digits",
            field="proofs",
            tries=(
                Give("proofs", f"{kind}:{'0123456789abcdef' * (length // 16) + '0123456789abcdef'[: length % 16]}"),
            ),
        )
    if kind in CRCS:
        return Crc(begin, end, what, moves, to_end, CRCS[kind], int(digits, 16))
    if kind == "adler32":
        return Adler32(begin, end, what, moves, to_end, int(digits, 16))
    return Digest(begin, end, what, moves, to_end, kind, bytes.fromhex(digits))
