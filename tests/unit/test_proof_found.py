"""Checks that are named, and checks that are inside files."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest

from bit_transformer.errors import BitStreamError, ConfigError
from bit_transformer.proof import apply, block_checks, checksum_file, flips, found_checks, parse_proof
from bit_transformer.proof.edits import Edit

TEXT = b"What is written here is long enough to be packed, packed and packed again. " * 9


def png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(range(i, i + 24)) for i in range(8))
    header = struct.pack(">2I5B", 8, 8, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"tEXt", b"Comment\0" + TEXT[:40])
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def zipped() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr("stored.txt", TEXT, zipfile.ZIP_STORED)
        file.writestr("packed.txt", TEXT, zipfile.ZIP_DEFLATED)
    return made.getvalue()


def tarred() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for name in ("one.txt", "two.txt"):
            info = tarfile.TarInfo(name)
            info.size = len(TEXT)
            file.addfile(info, io.BytesIO(TEXT))
    return made.getvalue()


HEX = b":10010000214601360121470136007EFE09D2190140\r\n:100110002146017E17C20001FF5F16002148011928\r\n:00000001FF\r\n"

FILES = {  # a file, how many checks it has, where a byte of the second is
    "png": (png(), 4, png().find(b"Comment") + 12),
    "zip": (zipped(), 2, zipped().find(b"packed.txt") + 20),
    "gzip": (gzip.compress(TEXT, mtime=0) + gzip.compress(TEXT[::-1], mtime=0), 2, len(gzip.compress(TEXT)) + 30),
    "tar": (tarred(), 2, tarred().find(b"two.txt") + 1),
    "hex": (HEX, 3, HEX.find(b"7E17")),
}


@pytest.mark.parametrize("name", FILES)
def test_files_have_checks_inside(name: str) -> None:
    data, count, at = FILES[name]
    checks = found_checks(data)
    assert len(checks) == count and all(check.holds(data) for check in checks)
    assert all(0 <= check.begin < check.end <= len(data) and check.covers for check in checks)
    bad = apply(data, flips(data, [8 * at + 6]))
    again = found_checks(bad)
    failing = [check for check in again if not check.holds(bad)]
    assert len(again) == count and [(check.begin, check.end) for check in failing] == [(checks[1].begin, checks[1].end)]
    assert failing[0].begin <= at < failing[0].end
    fed = failing[0].stream(data)
    fed.update(data[failing[0].begin : at])
    other = fed.copy()
    fed.update(data[at : failing[0].end])
    other.update(bad[at : failing[0].end])
    assert fed.good() and not other.good()


def test_a_damaged_length_of_a_png_chunk_hides_no_other() -> None:
    data = png()
    at = data.find(b"tEXt") - 3
    bad = data[:at] + b"\x77" + data[at + 1 :]
    assert [(check.begin, check.end) for check in found_checks(bad)] == [
        (check.begin, check.end) for check in found_checks(data)
    ]


def test_checks_move_with_what_is_inserted() -> None:
    data = png()
    first, second, *_ = found_checks(data)
    edit = Edit(first.begin + 5, b"", b"xy")
    assert second.after([edit]).holds(apply(data, [edit])) and not first.after([edit]).holds(apply(data, [edit]))


def test_plain_text_has_none() -> None:
    assert found_checks(TEXT) == [] and found_checks(b"") == []


def test_lists_of_checksums_are_read() -> None:
    sha, md5 = hashlib.sha256(TEXT).hexdigest(), hashlib.md5(TEXT).hexdigest()
    for lines, name in (
        (f"{sha}  other.txt\n{sha} *dir/file.txt\n", "file.txt"),
        (f"SHA256 (file.txt) = {sha}\n", None),
        (f"{md5}  file.txt\n", None),
        (f"{zlib.crc32(TEXT):08x}  file.txt\n", "/home/x/file.txt"),
    ):
        (check,) = checksum_file(lines, len(TEXT), name)
        assert check.holds(TEXT) and not check.holds(TEXT[::-1])
    with pytest.raises(ConfigError, match="2 names"):
        checksum_file(f"{sha}  a\n{sha}  b\n", 5)
    with pytest.raises(ConfigError, match="no line for c"):
        checksum_file(f"{sha}  a\n", 5, "c")
    with pytest.raises(BitStreamError, match="without a line"):
        checksum_file("hello\n", 5)


def test_blocks_have_checks_of_their_own() -> None:
    blocks = [TEXT[at : at + 100] for at in range(0, len(TEXT), 100)]
    lines = [f"{zlib.crc32(block):08x}" for block in blocks]
    checks = block_checks(["# crc32", *lines], 100, len(TEXT))
    assert all(check.holds(TEXT) for check in checks) and checks[-1].end == len(TEXT)
    offsets = block_checks([f"{lines[2]} 200", f"{lines[4]} 0x190"], 100, len(TEXT))
    assert [check.begin for check in offsets] == [200, 400] and all(check.holds(TEXT) for check in offsets)
    for wrong, error in ((["12345"], ConfigError), ([lines[0]], ConfigError)):
        with pytest.raises(error):
            block_checks(wrong, 100, len(TEXT))
    with pytest.raises(ConfigError, match="begin in the file"):
        block_checks(lines, 200, len(TEXT))


def test_proofs_are_named() -> None:
    for text in (
        f"crc32:{zlib.crc32(TEXT):08X}",
        f"CRC32: 0x{zlib.crc32(TEXT):x}".replace("0x", "0x" + "0" * (8 - len(f"{zlib.crc32(TEXT):x}"))),
        f"adler32:{zlib.adler32(TEXT):08x}",
        f"sha256:{hashlib.sha256(TEXT).hexdigest()}",
        f"md5:{hashlib.md5(TEXT).hexdigest()}",
        f"blake2b:{hashlib.blake2b(TEXT).hexdigest()}",
    ):
        assert parse_proof(text, len(TEXT)).holds(TEXT)
    assert parse_proof("crc16:bb3d", 9).name == "crc16-arc:bb3d" and parse_proof("crc16:bb3d", 9).holds(b"123456789")
    assert parse_proof("crc16-xmodem:31c3", 9).holds(b"123456789")


@pytest.mark.parametrize(
    ("text", "size", "words"),
    [
        ("crc99:12", 9, "got 'crc99'; must be one of"),
        ("crc32:1234567", 9, "got 7 characters for crc32; must be 8 hex digits"),
        ("crc32:1234567g", 9, "got '1234567g' for crc32"),
        ("sha256", 9, "must be 64 hex digits"),
        ("crc32:12345678", 0, "got an empty file"),
    ],
)
def test_proofs_that_are_none_say_why(text: str, size: int, words: str) -> None:
    with pytest.raises((ConfigError, BitStreamError)) as raised:
        parse_proof(text, size)
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_ranges_are_inside_the_file() -> None:
    with pytest.raises(ConfigError, match="range must be in the file"):
        parse_proof("crc32:12345678", 9, 5, 12)


def test_edits_are_said_in_words() -> None:
    assert str(Edit(0x1F40, b"e", b"m")) == "bit 3 of byte 0x1f40: 'e' -> 'm'"
    assert str(Edit(16, b"", b"x")) == "lost before byte 0x10: 'x'"
    assert str(Edit(16, b"\1\2", b"ab")) == "bytes 0x10 to 0x11: 01 02 -> 'ab'"
    random = np.random.default_rng(0)
    data = random.bytes(50)
    for wrong in ([Edit(3, b"??", b"")], [Edit(1, data[1:3], b""), Edit(2, data[2:4], b"x")]):
        with pytest.raises(BitStreamError, match="edits"):
            apply(data, wrong)
