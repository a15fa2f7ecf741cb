"""Checks that are found: inside PNG, ZIP, gzip, tar and Intel HEX files, in files of checksums, and one for each block.

What each covers is in `Check.covers`. In PNG: type and data of each chunk, with its CRC, not its length. In ZIP: the bytes of each member, not
names and headers. In gzip: the compressed bytes, not the header. In tar: each header, not what the files hold. In Intel HEX: each line.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable

from bit_transformer.errors import BitStreamError, ConfigError, Give
from bit_transformer.proof.checks import (
    BY_LENGTH,
    TAR_SIZE,
    ByteSum,
    Check,
    Crc,
    Inflated,
    parse_proof,
)

_PNG = b"\x89PNG\r\n\x1a\n"
_CHUNKS = (
    *b"IHDR PLTE IDAT IEND tRNS cHRM gAMA iCCP sBIT sRGB tEXt zTXt iTXt bKGD hIST pHYs sPLT tIME eXIf acTL fcTL fdAT cICP".split(),
)
_CHUNK_TYPE = re.compile(b"|".join(_CHUNKS))


def found_checks(data: bytes) -> list[Check]:
    """All checks that a file has inside, by its own format, in order. Which of them hold is not looked at; none where nothing was found."""
    if _alike(data[:8], _PNG) or data[12:16] == b"IHDR":
        return list(_png(data))
    if b"PK\x01\x02" in data or b"PK\x05\x06" in data:
        return list(_zip(data))
    if data[:2] == b"\x1f\x8b" or _alike(data[:3], b"\x1f\x8b\x08"):
        return list(_gzip(data))
    if data[257:262] == b"ustar" or (len(data) >= TAR_SIZE and _tar_at(data, 0).holds(data)):
        return list(_tar(data))
    lines = data[:4096].splitlines()
    if lines and sum(line[:1] == b":" for line in lines) > len(lines) / 2:
        return list(_intel_hex(data))
    return []


def _alike(data: bytes, magic: bytes) -> bool:
    """Whether a file begins with these bytes, but for two bits."""
    return len(data) == len(magic) and sum((a ^ b).bit_count() for a, b in zip(data, magic, strict=True)) <= 2


def _png(data: bytes) -> Iterable[Check]:
    at = 8
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 8 + length
        following = data[end + 8 : end + 12]
        known = following in _CHUNKS or following.isalpha()
        if not (end + 4 == len(data) or (end + 12 <= len(data) and known)):
            # The length is damaged, or bytes were lost: the chunk ends where the next that is known begins.
            found = _CHUNK_TYPE.search(data, at + 16)
            end = found.start() - 8 if found else len(data) - 4
        if end < at + 8:
            return
        name = kind.decode("ascii", "replace") if kind.isalpha() else "?"
        yield Crc(at + 4, end, f"PNG chunk {name} at byte {at}", stored=end)
        at = end + 4


def _zip(data: bytes) -> Iterable[Check]:
    at = data.find(b"PK\x01\x02")
    while at >= 0 and at + 46 <= len(data):
        entry = struct.unpack("<6H3I5H2I", data[at + 4 : at + 46])
        _, _, flags, method, _, _, crc, packed, size, name_size, extra, comment, _, _, _, local = entry
        name = data[at + 46 : at + 46 + name_size].decode("utf-8", "replace")
        header = data[local : local + 30]
        if len(header) == 30 and not flags & 1 and packed:
            begin = local + 30 + sum(struct.unpack("<2H", header[26:30]))
            end = begin + packed
            crcs = [crc]
            if not flags & 8:
                crcs.append(struct.unpack("<I", header[14:18])[0])
            checks: list[Check] = []
            for value in crcs:
                what = f"ZIP member {name}"
                if method == 0:
                    checks.append(Crc(begin, end, what, known=value))
                elif method == 8:
                    checks.append(Inflated(begin, end, what, known=value, size=size))
            if checks and end <= len(data):
                # Where header and directory disagree, the one that holds is right.
                yield next((check for check in checks if check.holds(data)), checks[0])
        at = data.find(b"PK\x01\x02", at + 46 + name_size + extra + comment if name_size < 4096 else at + 4)


def _gzip(data: bytes) -> Iterable[Check]:
    at, member = 0, 0
    while at + 18 <= len(data):
        begin = _gzip_body(data, at)
        if begin is None:
            return
        member += 1
        end = _inflated_end(data, begin)
        if end is None:  # damaged: it ends where the next member begins, or at the end
            following = data.find(b"\x1f\x8b\x08", begin)
            while following >= 0 and _inflated_end(data, _gzip_body(data, following) or len(data)) is None:
                following = data.find(b"\x1f\x8b\x08", following + 1)
            end = (following if following >= 0 else len(data)) - 8
        if end <= begin:
            return
        crc, size = struct.unpack("<2I", data[end : end + 8])
        yield Inflated(begin, end, f"gzip member {member}", known=crc, size=size)
        at = end + 8
        while data[at : at + 1] == b"\0":
            at += 1


def _gzip_body(data: bytes, at: int) -> int | None:
    """Where the deflate stream of a member begins."""
    if at + 18 > len(data):
        return None
    flags, at = data[at + 3], at + 10
    if flags & 4:
        at += 2 + int.from_bytes(data[at : at + 2], "little")
    for flag in (8, 16):
        if flags & flag:
            end = data.find(b"\0", at)
            if end < 0:
                return None
            at = end + 1
    return at + 2 if flags & 2 else at


def _inflated_end(data: bytes, begin: int) -> int | None:
    """Where a deflate stream ends, if it and what follows are sound."""
    inflater, crc, size, waiting = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0, data[begin:]
    try:
        while not inflater.eof:
            made = inflater.decompress(waiting, 1 << 20)
            crc, size, waiting = zlib.crc32(made, crc), size + len(made), inflater.unconsumed_tail
            if not made and not waiting and not inflater.eof:
                return None
    except zlib.error:
        return None
    end = len(data) - len(inflater.unused_data)
    return end if data[end : end + 8] == struct.pack("<2I", crc, size & 0xFFFFFFFF) else None


def _tar_at(data: bytes, at: int) -> ByteSum:
    name = data[at : at + 100].split(b"\0")[0].decode("utf-8", "replace")
    return ByteSum(at, at + TAR_SIZE, f"tar header {name} at byte {at}", form="tar")


def _tar(data: bytes) -> Iterable[Check]:
    at = 0
    while at + TAR_SIZE <= len(data):
        check = _tar_at(data, at)
        sound = check.holds(data)
        if sound or data[at + 257 : at + 262] == b"ustar":
            yield check
        digits = data[at + 124 : at + 136].strip(b" \0")
        # The length of the file is trusted where the header is sound; else the next header is looked for.
        size = int(digits, 8) if sound and digits and all(0x30 <= digit < 0x38 for digit in digits) else 0
        at += TAR_SIZE + -(-size // TAR_SIZE) * TAR_SIZE


def _intel_hex(data: bytes) -> Iterable[Check]:
    at = 0
    for number, line in enumerate(data.split(b"\n"), 1):
        size = len(line.rstrip(b"\r"))
        if size:
            yield ByteSum(at, at + size, f"Intel HEX line {number}", form="hex")
        at += len(line) + 1


# Files of checksums.

_PLAIN = re.compile(r"^\\?([0-9A-Fa-f]{8,128}) [ *](.+)$")
_BSD = re.compile(r"^\\?([A-Za-z0-9-]+) ?\((.+)\) ?= ?([0-9A-Fa-f]+)$")


def checksum_file(text: str, size: int, name: str | None = None, kind: str | None = None) -> list[Check]:
    """Checks of a file from a list in the format of sha256sum or md5sum, or of BSD.

    Args:
        size: of the file. `name`: which one of the list; may be left out where it lists one file.
        kind: of the checksums; by their length, where it is not given.
    """
    found: list[tuple[str, str, str]] = []
    for line in text.splitlines():
        if plain := _PLAIN.match(line.rstrip()):
            digits = plain[1]
            found.append((kind or BY_LENGTH.get(len(digits), "?"), plain[2], digits))
        elif bsd := _BSD.match(line.rstrip()):
            found.append((bsd[1].lower(), bsd[2], bsd[3]))
        elif re.fullmatch(r"[0-9A-Fa-f]{8,128}", line.strip()):
            found.append((kind or BY_LENGTH.get(len(line.strip()), "?"), name or "", line.strip()))
    names = {entry[1] for entry in found}
    if not found:
        raise BitStreamError(
            "checksums: got a file without a line of a checksum and a name; must be lines 'HEX  NAME' or 'SHA256 (NAME) = HEX'",
            field="proofs",
        )
    if name is None and len(names) > 1:
        raise ConfigError(
            f"checksums: got {len(names)} names and none to look for; name one",
            field="proofs",
            tries=(Give("name", min(names)),),
        )
    short = (name or min(names)).replace("\\", "/").rsplit("/", 1)[-1]
    chosen = [entry for entry in found if entry[1] == name] or [
        entry for entry in found if entry[1].replace("\\", "/").rsplit("/", 1)[-1] == short
    ]
    if not chosen:
        raise ConfigError(
            f"checksums: got no line for {short}; there are {len(names)}, {min(names)} first", field="proofs"
        )
    return [parse_proof(f"{kind_}:{digits}", size) for kind_, _, digits in chosen]


def block_checks(lines: Iterable[str], block_size: int, size: int, kind: str | None = None) -> list[Check]:
    """One check for each block of a file, from a list with one checksum on each line: `HEX`, or `HEX OFFSET`.

    The blocks are those of the file as it should be, so they stay where they are if a byte was lost. Empty lines and lines that begin
    with # are left out.

    Args:
        block_size: in bytes; the last block may be shorter. `size`: of the file as received.
        kind: by the number of digits if it is not given: 4 crc16, 8 crc32, 32 md5, 40 sha1, 64 sha256, 128 sha512.
    """
    if block_size < 1:
        raise ConfigError(
            f"block_size: got {block_size}; must be 1 or more", field="block_size", tries=(Give("block_size", 4096),)
        )
    checks: list[Check] = []
    entries = [line.split() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    for number, words in enumerate(entries):
        digits = words[0].removeprefix("0x")
        try:
            begin = int(words[1], 0) if len(words) > 1 else number * block_size
        except ValueError:  # the name of a block, as sha256sum writes it
            begin = number * block_size
        name = kind or {4: "crc16"}.get(len(digits)) or BY_LENGTH.get(len(digits))
        if name is None:
            raise ConfigError(
                f"checksums: got {len(digits)} digits in line {number + 1}; must be 4, 8, 32, 40, 64 or 128",
                field="proofs",
            )
        if begin >= size:
            raise ConfigError(
                f"checksums: got a block at {begin} of a file of {size} bytes; blocks must begin in the file",
                field="block_size",
                tries=(Give("block_size", -(-size // len(entries))),),
            )
        end = min(begin + block_size, size)
        checks.append(
            parse_proof(f"{name}:{digits}", size, begin, end, moves=False, to_end=end == size, what=f"block {number}")
        )
    # A file may be longer by less than a block: bytes may be too much.
    if len(entries) * block_size + block_size <= size and all(len(words) == 1 for words in entries):
        raise ConfigError(
            f"checksums: got {len(entries)} blocks of {block_size} bytes for a file of {size}; they must cover it",
            field="block_size",
            tries=(Give("block_size", -(-size // max(1, len(entries)))),),
        )
    return checks
