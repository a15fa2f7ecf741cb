"""What the bank is made of that codes a frame without a model; and which of that fits the frame's data."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bit_transformer.coding.filters import (
    Numbers,
    absolute_jumps,
    has_jumps,
    has_markup,
    middle,
    number_kind,
    row_width,
)
from bit_transformer.config import ExpertConfig
from bit_transformer.config.experts import KINDS
from bit_transformer.errors import ConfigError, Give
from bit_transformer.experts.bank import ExpertBank, config_memory
from bit_transformer.machine import free_memory

Bytes = NDArray[np.uint8]

# By number, as in the frame's header: the contexts, and whether words are among them. Part of the format.
PROFILES: tuple[tuple[dict[str, Any], bool], ...] = (
    ({"orders": (1, 2, 3, 4, 5, 6, 7, 9)}, True),
    ({"orders": (1, 2, 3, 4, 5, 6, 8, 12), "sparse": ((2,), (2, 3), (3,), (1, 3))}, False),
    ({"orders": (1, 2, 3, 4, 5, 6, 7, 9), "rich": True}, True),
    ({"orders": (1, 2, 3, 4, 5, 6, 8, 12), "rich": True}, False),
    ({"orders": (1, 2, 3, 4, 5, 6, 8, 12), "rich": True, "instructions": True}, False),
    ({"orders": (1, 2, 3, 4, 5, 6, 7, 9), "rich": True, "markup": True}, True),
    ({"orders": (1, 2, 3, 4, 5, 6, 8, 12), "rich": True, "numbers": KINDS[0]}, False),  # or another kind
)
TEXT, BINARY, RICH_TEXT, RICH_BINARY, RICH_CODE, RICH_MARKUP, RICH_NUMBERS = range(7)
NAMES = (
    "light experts of text",
    "light experts of other data",
    "rich experts of text",
    "rich experts of other data",
    "rich experts of x86 code",
    "rich experts of XML, JSON and tables",
    "rich experts of numbers",
)
Experts = Literal["light", "rich", "auto"]
LIGHT: Experts = "light"
AUTO: Experts = "auto"

_LARGEST_BUCKETS, _SMALLEST_BUCKETS = 22, 10  # log2
_LARGEST_RICH = 20  # with five times as many contexts
_WORTH_IT = 0.97  # a rich bank is chosen by itself where it needs at most this part of a light one's bytes
_LARGEST_HISTORY, _SMALLEST_HISTORY = 26, 10
_SAMPLE = 1 << 17


def bank_of(profile: int, columns: int, buckets: int, history: int, filtered: int = 0) -> ExpertBank:
    """An empty bank. Arguments as in `container.Frame`; sizes as log2.

    Raises:
        ConfigError: it needs more memory than there is.
    """
    fields, words = PROFILES[profile]
    if profile == RICH_NUMBERS:
        fields = fields | fields_of(filtered)
    config = _config(fields, words, columns, buckets, history)
    needed, free = config_memory(config, 8, words), free_memory()
    if free is not None and needed > free:
        raise ConfigError(
            f"got frames that need {needed / 1e9:.1f} GB each; {free / 1e9:.1f} GB are free",
            tries=(
                Give("jobs", 1),
                Give("frame_bytes", 1 << 20),
                *([Give("experts", LIGHT)] if profile >= RICH_TEXT else []),
            ),
        )
    return ExpertBank(config, 8, 0 if words else None)


def has_filter(profile: int, filtered: int) -> bool:
    """Whether a frame's data is filtered: x86 jumps are absolute."""
    return profile != RICH_NUMBERS and filtered == 1


def is_known(profile: int, filtered: int, columns: int) -> bool:
    """Whether this release knows a frame's profile, filter and columns."""
    if profile != RICH_NUMBERS:
        return profile < len(PROFILES) and filtered <= 1
    if filtered & 15 >= len(KINDS):
        return False
    size = int(KINDS[filtered & 15][-1])
    return filtered >> 4 & 3 < size and columns % size == 0


def name_of(profile: int, filtered: int) -> str:
    """Which experts coded a frame, in words; of numbers, which."""
    if profile != RICH_NUMBERS:
        return NAMES[profile]
    found = fields_of(filtered)
    begin, channels = found["numbers_begin"], found["channels"]
    after = f", after {begin} byte{'s' * (begin > 1)}" if begin else ""
    return f"{NAMES[profile]} ({found['numbers']}{f' in {channels} channels' if channels > 1 else ''}{after})"


def filter_of(numbers: Numbers) -> int:
    """Numbers as the filter byte of a frame's header: from the lowest bit, which of `KINDS` (4 bits), the bytes before the first (2), the channels less 1 (2)."""
    return KINDS.index(numbers.kind) | numbers.begin << 4 | (numbers.channels - 1) << 6


def fields_of(filtered: int) -> dict[str, Any]:
    """Fields of `ExpertConfig` for a filter byte."""
    return {
        "numbers": KINDS[filtered & 15],
        "numbers_begin": filtered >> 4 & 3,
        "channels": 1 + (filtered >> 6),
    }


def _config(fields: dict[str, Any], words: bool, columns: int, buckets: int, history: int) -> ExpertConfig:
    return ExpertConfig.of(
        {
            **fields,
            "words": words,
            "columns": (columns,) if columns else (),
            "buckets": 1 << buckets,
            "history": 1 << history,
        }
    )


def bank_memory(buckets: int, history: int, *, rich: bool) -> int:
    """Bytes of the largest bank, light or rich, with a row width; sizes as log2."""
    of_kind = PROFILES[RICH_TEXT:] if rich else PROFILES[:RICH_TEXT]
    return max(config_memory(_config(fields, words, 1, buckets, history), 8, words) for fields, words in of_kind)


def sizes_for(size: int, *, rich: bool = False) -> tuple[int, int]:
    """Log2 of the buckets and of the history for a frame of so many bytes: larger ones would stay empty."""
    bits = max(1, size - 1).bit_length()
    return (
        min(_LARGEST_RICH if rich else _LARGEST_BUCKETS, max(_SMALLEST_BUCKETS, bits - 1)),
        min(_LARGEST_HISTORY, max(_SMALLEST_HISTORY, bits)),
    )


def is_text(data: Bytes) -> bool:
    """Whether nearly all bytes are printable ASCII, white space or parts of UTF-8."""
    control = (data < 32) & (data != 9) & (data != 10) & (data != 13)
    return bool(control.mean() < 0.005) and bool((data >= 127).mean() < 0.3)


def plan(data: Bytes) -> tuple[int, int, int]:
    """Choose profile, filter and columns for a frame. Each is tried on a sample and kept if the code gets shorter."""
    return _plan(data, row_width(data))


def _plan(data: Bytes, columns: int) -> tuple[int, int, int]:
    wanted = min(len(data), _SAMPLE, max(1 << 14, len(data) // 32))
    sample = middle(data, wanted)
    profile, filtered, used = (TEXT if is_text(sample) else BINARY), 0, 0
    if profile == TEXT and not columns:
        return profile, filtered, used
    best = _cost(sample, profile, 0, 0)
    if profile == BINARY:
        as_text = _cost(sample, TEXT, 0, 0)
        if as_text < best:
            profile, best = TEXT, as_text
    if columns:
        with_rows = _cost(sample, profile, 0, columns)
        if with_rows < best:
            used, best = columns, with_rows
    if has_jumps(data):
        absolute = _cost(sample, profile, 1, used)
        if absolute < best:
            filtered = 1
    return profile, filtered, used


def planned(data: Bytes, experts: Experts) -> tuple[int, int, int]:
    """Profile, filter and columns for light or rich experts, or for those that fit."""
    width = row_width(data)
    profile, filtered, columns = light = _plan(data, width)
    if experts == LIGHT:
        return light
    sample = middle(data, _SAMPLE)
    choices = [(profile + RICH_TEXT, filtered, columns)]
    if has_jumps(data) and not columns:
        choices.append((RICH_CODE, filtered, 0))
    if has_markup(data):
        choices.append((RICH_MARKUP, filtered, columns))
    if not filtered:
        numbers = number_kind(data, width)
        if numbers is not None:
            widths = [0, width] if width and width % numbers.size == 0 else [0]
            choices += [(RICH_NUMBERS, filter_of(numbers), rows) for rows in widths]
    if choices[1:] or experts == AUTO:
        costs = {choice: _cost(sample, *choice) for choice in choices}
        choices.sort(key=costs.__getitem__)
        if experts == AUTO and costs[choices[0]] > _WORTH_IT * _cost(sample, *light):
            return light
    return choices[0]


def _cost(sample: Bytes, profile: int, filtered: int, columns: int) -> int:
    buckets, history = sizes_for(len(sample), rich=profile >= RICH_TEXT)
    bank = bank_of(profile, columns, buckets, history, filtered)
    code = bank.encode(absolute_jumps(sample) if has_filter(profile, filtered) else sample, bank.stream())
    return len(sample) + 1 if code is None else len(code)
