"""Edits of a file: what was there, what should be; solutions made of them, and how they are said in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bit_transformer.errors import BitStreamError

SHOWN = 12  # bytes of an edit that are written out


@dataclass(frozen=True)
class Edit:
    """Replace the bytes `old` at an offset by `new`. Lengths may differ: a lost byte has an empty `old`, a doubled one an empty `new`."""

    offset: int
    old: bytes
    new: bytes

    @property
    def end(self) -> int:
        """One past the last byte that is replaced."""
        return self.offset + len(self.old)

    @property
    def growth(self) -> int:
        """By how much the file gets longer."""
        return len(self.new) - len(self.old)

    @property
    def flipped(self) -> tuple[int, ...]:
        """The flat numbers of the flipped bits, 8 offset + bit, the most significant bit of a byte first; empty where lengths differ."""
        if self.growth:
            return ()
        return tuple(
            8 * (self.offset + i) + bit
            for i, (a, b) in enumerate(zip(self.old, self.new, strict=True))
            for bit in range(8)
            if (a ^ b) >> (7 - bit) & 1
        )

    def __str__(self) -> str:
        if not self.growth and len(self.flipped) == 1:
            number = 7 - self.flipped[0] % 8
            return f"bit {number} of byte {self.offset:#x}: {_byte(self.old[0])} -> {_byte(self.new[0])}"
        if not self.old:
            return f"lost before byte {self.offset:#x}: {_bytes(self.new)}"
        if not self.new:
            return f"too much at byte {self.offset:#x}: {_bytes(self.old)}"
        where = f"byte {self.offset:#x}" if len(self.old) == 1 else f"bytes {self.offset:#x} to {self.end - 1:#x}"
        return f"{where}: {_bytes(self.old)} -> {_bytes(self.new)}"


@dataclass(frozen=True)
class Solution:
    """Edits after which the checks hold.

    Attributes:
        edits: by offset; none overlap.
        log_odds: of the whole solution against the file as received, in nats, priors included.
        probability: that it is the right one: its share among all solutions that were found, and what was not looked at.
        kind: "flips", "burst", "lost", "extra", "range" or "edits".
    """

    edits: tuple[Edit, ...]
    log_odds: float
    probability: float = 0.0
    kind: str = "flips"

    def __str__(self) -> str:
        return "; ".join(map(str, self.edits))


def apply(data: bytes, edits: Iterable[Edit]) -> bytes:
    """The file after some edits; all offsets are of the file before.

    Raises:
        BitStreamError: `old` is not what is there, or edits overlap.
    """
    made, at, last = [], 0, None
    for edit in sorted(edits, key=lambda edit: (edit.offset, edit.end)):
        if edit.offset < at or (last is not None and last.offset == edit.offset):
            raise BitStreamError(f"edits: got two that overlap at byte {edit.offset:#x}; each byte must be edited once")
        if edit.offset < 0 or data[edit.offset : edit.end] != edit.old:
            raise BitStreamError(
                f"edits: got one for byte {edit.offset:#x} that replaces other bytes than are there; it must be of this file"
            )
        made += [data[at : edit.offset], edit.new]
        at, last = edit.end, edit
    return b"".join([*made, data[at:]])


def flips(data: bytes, bits: Iterable[int]) -> tuple[Edit, ...]:
    """Flipped bits as edits, one for each byte that is touched. Bits are counted through the file, most significant first."""
    masks: dict[int, int] = {}
    for bit in bits:
        masks[bit // 8] = masks.get(bit // 8, 0) ^ (0x80 >> bit % 8)
    return tuple(Edit(at, data[at : at + 1], bytes([data[at] ^ mask])) for at, mask in sorted(masks.items()) if mask)


def merged(edits: Sequence[Edit], data: bytes) -> tuple[Edit, ...] | None:
    """Edits by offset, those that only flip bits of one byte made one; None where others overlap."""
    bits = [bit for edit in edits if len(edit.flipped) == 1 for bit in edit.flipped]
    others = [edit for edit in edits if len(edit.flipped) != 1]
    made = sorted([*flips(data, bits), *others], key=lambda edit: (edit.offset, edit.end))
    for before, after in pairwise(made):
        if after.offset < before.end or after.offset == before.offset:
            return None
    return tuple(made)


def _byte(value: int) -> str:
    return f"'{chr(value)}'" if 32 <= value < 127 else f"{value:#04x}"


def _bytes(data: bytes) -> str:
    printable = all(32 <= value < 127 for value in data)
    text = f"'{data[:SHOWN].decode('ascii')}'" if printable else data[:SHOWN].hex(" ")
    return text if len(data) <= SHOWN else f"{text}... ({len(data)} bytes)"
