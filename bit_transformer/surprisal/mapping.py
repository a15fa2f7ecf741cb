"""Surprise and damage of bytes in memory, in one call each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bit_transformer.surprisal.damage import Candidate, Damage, Limits, calibrated, candidates, damages, uncalibrated
from bit_transformer.surprisal.reading import BankReader, Bytes, Costs, Reader
from bit_transformer.surprisal.records import SurpriseMap
from bit_transformer.surprisal.segments import segments_of


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
    known = list[tuple[Bytes, Costs, list[Candidate]]]()
    for i, piece in enumerate(pieces if len(pieces) > 1 else []):
        other = BankReader([*pieces[:i], *pieces[i + 1 :]])
        costs = other.costs(piece)
        known.append((piece, costs, candidates(piece, costs, other.banks(piece))))
    given, reader = np.frombuffer(data, dtype=np.uint8), BankReader(pieces)
    costs = reader.costs(given)
    limits = calibrated(known, false_alarms) if known else uncalibrated(costs)
    return damages(candidates(given, costs, reader.banks(given)), limits), limits
