"""Surprise and damage of bytes in memory, in one call each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from bit_transformer.experts.bank import Tell, ignore
from bit_transformer.surprisal.damage import (
    Candidate,
    Damage,
    Limits,
    calibrated,
    candidates,
    damages,
    tried_of,
    uncalibrated,
)
from bit_transformer.surprisal.reading import BankReader, Bytes, Costs, Reader
from bit_transformer.surprisal.records import SurpriseMap
from bit_transformer.surprisal.segments import segments_of

Telling = Callable[[str, int, int], Tell]


def surprise_map(data: bytes, reader: Reader | None = None, name: str = "") -> SurpriseMap:
    """What each byte costs, bit by bit, and what the parts are.

    >>> found = surprise_map(b"To be, or not to be. " * 100)
    >>> found.costs.shape, found.bit_costs.shape, found.segments[0].kind
    ((2100,), (2100, 8), 'text')

    Args:
        reader: who reads. Default: experts alone, which begin empty, from both sides.
    """
    given, reader = np.frombuffer(data, dtype=np.uint8), reader or BankReader()
    costs = reader.costs(given, bits=True)
    lower = costs.lower.astype(np.float16)
    return SurpriseMap(name, given, lower, costs.bits, segments_of(given, costs), reader.words)


def find_damage(data: bytes, clean: Sequence[bytes] = (), false_alarms: float = 1.0) -> tuple[list[Damage], Limits]:
    """Damaged ranges, by descending evidence, and the limits that they exceed.

    Args:
        clean: two or more pieces of intact data of the same kind. Each in turn is judged by what the others taught: what would be reported in
            them sets the limits. Without them it is not known how many alarms are false.
        false_alarms: ranges per megabyte of clean data that are reported.

    Raises:
        BitStreamError: too little clean data to know so low a rate.
    """
    pieces = [np.frombuffer(piece, dtype=np.uint8) for piece in clean]
    folds = [(piece, BankReader([*pieces[:i], *pieces[i + 1 :]])) for i, piece in enumerate(pieces)]
    given, reader = np.frombuffer(data, dtype=np.uint8), BankReader(pieces)
    return judged(given, reader.costs(given), reader, folds if len(folds) > 1 else [], false_alarms)


def judged(
    data: Bytes,
    costs: Costs,
    reader: Reader,
    folds: Sequence[tuple[Bytes, Reader]],
    false_alarms: float,
    *,
    memorised: bool = False,
    telling: Telling = lambda doing, total, done: ignore,
) -> tuple[list[Damage], Limits]:
    """The same of data that was read already.

    Args:
        costs: of the data, to the reader.
        folds: clean data, and a reader that has not read it.
        memorised: it has read it, so what is alike costs nothing, and of what differs nobody knows how much is damage.
        telling: gives what readers call with the bytes that they passed, by what is done, of how many bytes, after how many.

    Raises:
        BitStreamError: too little clean data to know so low a rate.
    """
    total, done, tried = sum(len(piece) for piece, _ in folds), 0, tried_of(len(data))
    known = list[tuple[Bytes, Costs, list[Candidate]]]()
    for piece, other in folds:
        normal = other.costs(piece, tell=telling("clean data: read", total, done))
        tell = telling("clean data: looked through", total, done)
        known.append((piece, normal, candidates(piece, normal, other.banks(piece), tried, tell)))
        done += len(piece)
    if memorised:
        limits = replace(
            calibrated(known, 1.5e6 / total),  # one range: not a fraction that rounding loses
            false_alarms=math.nan,
            between=(math.nan, math.nan),
        )
    else:
        limits = calibrated(known, false_alarms) if known else uncalibrated(costs)
    found = candidates(data, costs, reader.banks(data), tried, telling("looked through", len(data), 0))
    return damages(found, limits), limits
