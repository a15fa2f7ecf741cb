"""What the parts of a file are: named block by block from bytes and costs, then joined."""

# Shapes: N bytes, B blocks.
from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from bit_transformer.compression.profiles import is_text
from bit_transformer.surprisal.reading import Bytes, Costs
from bit_transformer.surprisal.records import Kind, Segment

LEAST_BLOCK, MOST_BLOCKS = 256, 1 << 14
INCOMPRESSIBLE = 7.2  # bits per byte: neither way of reading finds anything
REPEATED = 0.05  # bits per byte of a pattern that comes again and again
ISLAND = 8  # blocks of another style that do not make a segment
_STYLES = ("text", "code", "table", "markup")
_CODE = np.frombuffer(b"{}()[];=_#*&|+<>!", dtype=np.uint8)
_MARKS = np.frombuffer(b"<>", dtype=np.uint8)
_DELIMITERS = np.frombuffer(b",;\t|", dtype=np.uint8)
_DIGITS = np.frombuffer(b"0123456789", dtype=np.uint8)


def segments_of(data: Bytes, costs: Costs, normal_bpb: float | None = None) -> tuple[Segment, ...]:
    """Cut a file into stretches of one kind.

    Args:
        normal_bpb: bits per byte that parts like the reference do not exceed; None without a reference.
    """
    block = block_size(len(data))
    mean_N, lower_N = costs.mean, costs.lower  # each is made anew when it is asked for
    names = [kind_of(data[b : b + block], mean_N[b : b + block]) for b in range(0, len(data), block)]
    made = list[Segment]()
    first = 0
    names = _without_islands(names)
    for index in range(1, len(names) + 1):
        if index < len(names) and names[index] == names[first]:
            continue
        begin, end = first * block, min(len(data), index * block)
        bpb = float(lower_N[begin:end].mean(dtype=np.float64))
        ahead = float(costs.ahead[begin:end].mean(dtype=np.float64))
        made.append(Segment(begin, end, names[first], bpb, None if normal_bpb is None else ahead <= normal_bpb))
        first = index
    return tuple(made)


def block_size(size: int) -> int:
    """Bytes of a block in a file of so many."""
    return max(LEAST_BLOCK, 1 << max(0, (size // MOST_BLOCKS - 1)).bit_length())


def kind_of(data: Bytes, cost_N: NDArray[np.float32]) -> Kind:
    """What a block is, by its bytes and the mean of their costs both ways."""
    count = np.bincount(data, minlength=256)
    size, bpb = len(data), float(cost_N.mean(dtype=np.float64))
    if count.max() == size:
        return "zeros"
    if bpb >= INCOMPRESSIBLE:
        return "compressed"
    if not is_text(data):
        return "repeated" if bpb < REPEATED else "binary"
    marks, digits, delimiters, code = (float(count[of].sum()) / size for of in (_MARKS, _DIGITS, _DELIMITERS, _CODE))
    if marks >= 0.03 and count[ord("<")] and abs(int(count[ord("<")]) - int(count[ord(">")])) <= 4:
        return "markup"
    if digits + delimiters >= 0.3 and delimiters >= 0.02:
        return "table"
    return "code" if code >= 0.045 else "text"


def _without_islands(names: list[Kind]) -> list[Kind]:
    """Short runs of text, code, table or markup beside longer ones of another of these are counted to them: they are lines of another style."""
    made = list(names)
    for most in (1, 3, ISLAND):  # the shortest first
        runs = [(kind, len(list(of))) for kind, of in itertools.groupby(made)]
        made = []
        for index, (kind, count) in enumerate(runs):
            sides = [runs[i] for i in (index - 1, index + 1) if 0 <= i < len(runs) and runs[i][0] in _STYLES]
            longer = max(sides, key=lambda side: side[1], default=None)
            lost = kind in _STYLES and count <= most and longer is not None and longer[1] > count
            made += [longer[0] if lost and longer else kind] * count
    return made
