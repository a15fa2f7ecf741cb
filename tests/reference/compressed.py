"""A decoder of compressed files, written from `docs/format.md` alone: Python's integers, the slow bank, one bit at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from bit_transformer.experts import contexts as lists
from tests.reference.experts import SlowBank
from tests.reference.rich import SlowRich

TOP = (1 << 64) - 1
PROFILES = (
    [*(("order", n) for n in (1, 2, 3, 4, 5, 6, 7, 9)), ("word",), ("pair",), ("skip",)],
    [*(("order", n) for n in (1, 2, 3, 4, 5, 6, 8, 12)), *(("sparse", d) for d in ((2,), (2, 3), (3,), (1, 3)))],
)


def checksum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()


def number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def frames(file: bytes, most: int) -> Iterator[tuple[int, bytes]]:
    """The offset of each frame in the data, and its first `most` bytes."""
    header, check = file[:60], file[60:68]
    assert header[:10] == bytes.fromhex("89 42 54 4C 4D 0D 0A 1A 01 00") and checksum(header) == check
    place, offset, table = 68, 0, b""
    while file[place] == 1:
        head, index = file[place : place + 40], len(table) // 24
        assert checksum(check + index.to_bytes(8, "little") + head) == file[place + 40 : place + 48]
        method, profile, filtered, columns = head[1], head[2], head[3], number(head[4:6])
        buckets, history, size, coded = head[6], head[7], number(head[8:16]), number(head[16:24])
        payload = file[place + 48 : place + 48 + coded]
        assert checksum(payload) == head[32:40]
        wanted = min(most + 4, size)  # a jump needs the four bytes after it
        data = payload if method == 0 else decode(payload, profile, filtered, columns, buckets, history, wanted)
        if filtered and profile != 6:
            data = without_jumps(data)
        if len(data) >= size:
            assert checksum(data) == head[24:32]
        yield offset, data[:most]
        table += head[8:32]
        place, offset = place + 48 + coded, offset + size
    end = file[place:]
    assert end[0] == 2 and end[1:9] == checksum(check + table) and end[9 : 9 + len(table)] == table
    last = end[9 + len(table) :]
    assert last[:8] == bytes([2, *bytes(7)]) and checksum(check + last[:32]) == last[32:] and len(last) == 40
    assert [number(last[i : i + 8]) for i in (8, 16, 24)] == [len(table) // 24, offset, len(table)]


def without_jumps(data: bytes) -> bytes:
    made = bytearray(data)
    for i in range(len(made) - 4):
        if made[i] in (0xE8, 0xE9) and made[i + 4] in (0, 0xFF):
            made[i + 1 : i + 4] = ((number(made[i + 1 : i + 4]) - i) % (1 << 24)).to_bytes(3, "little")
    return bytes(made)


def rich_bank(profile: int, filtered: int, columns: int, buckets: int, history: int) -> SlowRich:
    orders = (1, 2, 3, 4, 5, 6, 7, 9) if profile in (2, 5) else (1, 2, 3, 4, 5, 6, 8, 12)
    contexts: list[tuple] = [("order", n) for n in orders]
    contexts += [("sparse", d) for d in (((columns,), (1, columns)) if columns else ())]
    units, terms = ("", lists.WORDS)
    if profile == 3:
        units, terms = (lists.ROW_UNITS, lists.ROWS) if columns else (lists.UNITS, lists.RECORDS)
    if profile == 4:
        units, terms = lists.UNITS, lists.RECORDS
        contexts += [("terms", tuple(line.split())) for line in lists.INSTRUCTIONS.split("\n") if line]
    if profile == 5:
        contexts += [("terms", tuple(line.split())) for line in lists.MARKUP.split("\n") if line]
    numbers = None
    if profile == 6:
        units, terms = lists.NUMBER_UNITS, lists.NUMBER_ROWS if columns else lists.NUMBER_TERMS
        contexts += [("terms", tuple(line.split())) for line in lists.NUMBERS.split("\n") if line]
        kinds = ["u1", "i1", "<u2", "<i2", ">u2", ">i2", "<u3", "<i3", ">u3", ">i3", "<u4", "<i4", ">u4", ">i4"]
        numbers = kinds[filtered & 15], (filtered >> 6) + 1, filtered >> 4 & 3
    contexts += [("sparse", tuple(map(int, line.split()))) for line in units.strip().split("\n") if line]
    if profile in (3, 6) and columns:
        w = columns
        contexts += [("sparse", d) for d in ((2, w), (w, w + 2), (1, w, w + 1), (2 * w,))]
    contexts += [("terms", tuple(line.split())) for line in terms.split("\n") if line]
    direct = [0, 1, 2, 3, 8, 9]
    return SlowRich(contexts, 8, buckets, history, 7, 0, direct, columns, profile == 4, profile == 5, numbers)


def decode(payload: bytes, profile: int, filtered: int, columns: int, buckets: int, history: int, count: int) -> bytes:
    contexts = [*PROFILES[profile % 2], *([("sparse", (columns,)), ("sparse", (1, columns))] if columns else [])]
    bank = SlowBank(contexts, 8, 1 << buckets, 1 << history, 7, 0 if profile == 0 else -1)
    if profile >= 2:
        bank = rich_bank(profile, filtered, columns, 1 << buckets, 1 << history)
    low, high, code, place = 0, TOP, int.from_bytes(payload[:8].ljust(8, b"\0"), "big"), 8

    def next_bit(one: int) -> int:
        nonlocal low, high, code, place
        split = low + ((high - low) >> 16) * one
        bit = int(code <= split)
        low, high = (low, split) if bit else (split + 1, high)
        while low >> 56 == high >> 56:
            byte = payload[place] if place < len(payload) else 0
            low, high, code, place = low << 8 & TOP, (high << 8 | 255) & TOP, (code << 8 | byte) & TOP, place + 1
        return bit

    for _ in range(count):
        bank.go(next_bit)
    return bytes(bank.units)
