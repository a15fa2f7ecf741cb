"""Bytes as cells that a reader can look at one by one: what is shown for each, and how surprising it was."""

from __future__ import annotations

import html
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bit_transformer.errors import ConfigError

Ranges = Sequence[tuple[int, int]]
STEPS = (0.5, 1.0, 2.0, 4.0, 6.0, 8.0)  # bits; a byte that costs more than the last is in the darkest class


@dataclass(frozen=True)
class Cell:
    """One byte on the page.

    Attributes:
        text: what is shown; of a character of several bytes, the first shows it, and the others a dot.
        breaks: whether a line ends after it.
        odd: whether it is not part of readable text.
    """

    value: int
    text: str
    breaks: bool = False
    odd: bool = False


def parse_bytes(text: str, kind: str) -> bytes:
    """The bytes that somebody typed, as text or as hexadecimal digits.

    Raises:
        ConfigError: digits that are not hexadecimal, or half a byte.
    """
    if kind == "text":
        return text.encode("utf-8", "surrogatepass")
    digits = "".join(text.replace("0x", " ").replace(",", " ").split())
    try:
        return bytes.fromhex(digits)
    except ValueError:
        wrong = next((c for c in digits if c not in "0123456789abcdefABCDEF"), None)
        got = f"the character {wrong!r}" if wrong else f"{len(digits)} digits"
        raise ConfigError(
            f"got {got}; two hexadecimal digits a byte are needed. Try 48 65 6c", field="prompt"
        ) from None


def as_hex(data: bytes) -> str:
    """Bytes as pairs of digits."""
    return data.hex(" ")


def cells(data: bytes) -> list[Cell]:
    """Each byte with what is shown for it."""
    found: list[Cell] = []
    at = 0
    while at < len(data):
        length = _character(data, at)
        if length > 1:
            found.append(Cell(data[at], data[at : at + length].decode()))
            found += [Cell(data[at + i], "·") for i in range(1, length)]
        else:
            found.append(_single(data[at]))
        at += length
    return found


def _character(data: bytes, at: int) -> int:
    """Length of the UTF-8 character that begins here; 1 if none does."""
    lead = data[at]
    length = 2 if lead >> 5 == 6 else 3 if lead >> 4 == 14 else 4 if lead >> 3 == 30 else 1
    try:
        text = data[at : at + length].decode()
    except UnicodeDecodeError:
        return 1
    return length if len(text) == 1 and text.isprintable() else 1


def _single(value: int) -> Cell:
    if value == 10:
        return Cell(value, "↵", breaks=True)
    if value == 9:
        return Cell(value, "⇥")
    if value == 32:
        return Cell(value, "\u00a0")
    if 32 < value < 127:
        return Cell(value, chr(value))
    return Cell(value, f"{value:02x}", odd=True)


def surprise_class(cost: float | None) -> str:
    """The CSS class of a byte by its cost in bits: s0 (expected) to s6 (very surprising)."""
    if cost is None or math.isnan(cost):
        return "sx"
    return f"s{sum(cost > step for step in STEPS)}"


def byte_name(value: int) -> str:
    """A byte in words: its character where it has one, and its number."""
    names = {0: "NUL", 9: "tab", 10: "line feed", 13: "carriage return", 32: "space", 127: "delete"}
    name = names.get(value) or (f"“{chr(value)}”" if 32 < value < 127 else "")
    return f"{name} {value} · 0x{value:02x}".strip()


def cells_html(
    data: bytes,
    costs: Sequence[float] | None = None,
    *,
    prompt: int = 0,
    masked: Ranges = (),
    marked: Mapping[str, Ranges] | None = None,
    first: int = 0,
) -> str:
    """Bytes as HTML, coloured by cost. All text is escaped.

    Args:
        costs: bits of each byte; not given: no colours.
        prompt: bytes at the beginning that were given.
        masked: ranges of bytes that are still missing.
        marked: further CSS classes, and the ranges of bytes that have them.
        first: place of the first byte that is shown.
    """
    kinds = [["b"] for _ in data]
    for kind, ranges in {"masked": masked, **(marked or {})}.items():
        for at in _places(ranges, len(data)):
            kinds[at].append(kind)
    missing = set(_places(masked, len(data)))
    parts: list[str] = []
    for at, cell in enumerate(cells(data[first:]), first):
        kinds[at] += [surprise_class(costs[at] if at < len(costs) else None)] if costs is not None else []
        kinds[at] += ["given"] if at < prompt else []
        kinds[at] += ["odd"] if cell.odd and at not in missing else []
        shown = "▒" if at in missing else html.escape(cell.text)
        parts.append(f'<span class="{" ".join(kinds[at])}" data-at="{at}">{shown}</span>')
        if cell.breaks and at not in missing:
            parts.append("<br>")
    return "".join(parts)


def plain_html(data: bytes, prompt: int = 0) -> str:
    """Bytes as running text, to be sent often while it grows. All text is escaped."""
    shown = [html.escape(cell.text) + ("<br>" if cell.breaks else "") for cell in cells(data)]
    return f'<span class="given">{"".join(shown[:prompt])}</span>{"".join(shown[prompt:])}'


def _places(ranges: Ranges, size: int) -> list[int]:
    return [at for begin, end in ranges for at in range(max(0, begin), min(end, size))]


def marked_ranges(data: bytes, mark: bytes) -> list[tuple[int, int]]:
    """Where a mark stands in data, from left to right without overlap; touching ones are one range."""
    found: list[tuple[int, int]] = []
    at = data.find(mark) if mark else -1
    while at >= 0:
        end = at + len(mark)
        if found and found[-1][1] == at:
            found[-1] = (found[-1][0], end)
        else:
            found.append((at, end))
        at = data.find(mark, end)
    return found


def with_flips(data: bytes, flips: int, seed: int) -> bytes:
    """Data with some of its bits flipped, always the same for a seed."""
    damaged = bytearray(data)
    places = random.Random(seed).sample(range(8 * len(data)), min(flips, 8 * len(data)))
    for place in places:
        damaged[place // 8] ^= 128 >> place % 8
    return bytes(damaged)
