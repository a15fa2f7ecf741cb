"""From clean text to what is normal. No document is measured by a bank that has read it.

The clean text is cut into blocks, documents that are shorter stay whole, and blocks are dealt to folds by turns, so that each fold is
spread over the text. For each fold a bank reads the other folds, and then measures the blocks of this one. The bank that is kept reads everything: an
eighth more, which makes new clean text a little cheaper than the tables say. Of large texts only some folds are measured.
"""

# Shapes: N bytes.
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bit_transformer.config import ExpertConfig
from bit_transformer.errors import BitStreamError
from bit_transformer.experts.bank import ExpertBank
from bit_transformer.quality.measuring import WINDOW, Measures, Meter
from bit_transformer.quality.normal import LEAST_ROWS, LENGTHS, Normal, rows_of
from bit_transformer.safety.calibration import (
    QUANTILES,
    Calibration,
    block_shares,
    conformal_limits,
    least_windows,
)

Bytes = NDArray[np.uint8]
Tell = Callable[[int, int], None]

ORDERS = (1, 2, 3, 4, 6)  # the text profile without three of its contexts: 1 % more bits, a fifth faster
FOLDS = 8
ENOUGH = 1 << 21  # bytes that are measured; more add little
MOST_ROWS = 1000  # of a length
LEAST_BYTES = 1 << 15
ALPHA = 0.01  # false alarms of the gate
_STARTS_ONLY = 200  # so many documents are enough of a length; what is within them is not measured too
_STRIDES = (
    256,
    1024,
    2048,
    4096,
    8192,
    16384,
    32768,
    1 << 16,
)  # lengths up to each are the first bytes of the same passages
_COINS = 256  # windows of noise of each length
_SNAP = 64  # bytes within which a passage moves to the next word
_LEAST_BLOCK, _LARGEST_BLOCK = 1 << 11, 1 << 17
_SMALLEST_BUCKETS, _LARGEST_BUCKETS = 13, 20  # log2


def new_bank(size: int) -> ExpertBank:
    """A bank for so many bytes of text."""
    bits = max(1, size - 1).bit_length()
    buckets = min(_LARGEST_BUCKETS, max(_SMALLEST_BUCKETS, bits - 2))
    history = min(24, max(14, bits))
    return ExpertBank(ExpertConfig(orders=ORDERS, words=True, buckets=1 << buckets, history=1 << history), 8, 0)


@dataclass(frozen=True)
class Block:
    """A part of a document, or all of it; `first`: whether it has the document's beginning."""

    data: Bytes
    first: bool


def read_and_measure(documents: Sequence[Bytes], tell: Tell, jobs: int) -> tuple[ExpertBank, Normal, Calibration]:
    """A bank that has read clean documents, and what is normal for others like them.

    Raises:
        BitStreamError: too little text.
    """
    size = sum(map(len, documents))
    check_size(size)
    stretches = _stretches(documents, size)
    folds = [[block for stretch in stretches[turn::FOLDS] for block in stretch] for turn in range(FOLDS)]
    measured = min(FOLDS, math.ceil(FOLDS * ENOUGH / size))
    done, total = [0], measured * size + size

    def told(count: int) -> None:
        done[0] += count
        tell(min(done[0], total), total)

    def of_fold(turn: int) -> dict[int, list[Measures]]:
        bank = new_bank(size)
        for other, fold in enumerate(folds):
            if other != turn:
                _learn(bank, fold, told)
        found = _passages(Meter(bank), folds[turn], measured)
        told(sum(len(block.data) for block in folds[turn]))
        return found

    with ThreadPoolExecutor(max(1, jobs)) as pool:
        last = pool.submit(_all, new_bank(size), documents, told)
        parts = list(pool.map(of_fold, range(measured)))
        bank = last.result()
    found = {length: _thinned([each for part in parts for each in part.get(length, ())]) for length in LENGTHS}
    return bank, normal_of(found), calibration_of(found, bank)


def measured_only(bank: ExpertBank, documents: Sequence[Bytes]) -> tuple[Normal, Calibration]:
    """What is normal for documents that a bank has not read.

    Raises:
        BitStreamError: too little text.
    """
    size = sum(map(len, documents))
    check_size(size)
    found = _passages(Meter(bank), [block for stretch in _stretches(documents, size) for block in stretch], 1)
    kept = {length: _thinned(each) for length, each in found.items()}
    return normal_of(kept), calibration_of(kept, bank)


def check_size(size: int) -> None:
    """Refuse too little text.

    Raises:
        BitStreamError: as above.
    """
    if size < LEAST_BYTES:
        raise BitStreamError(
            f"got {size:,} bytes of clean text; at least {LEAST_BYTES:,} are needed, and a megabyte is better",
            tries=("more files",),
        )


def normal_of(found: dict[int, list[Measures]]) -> Normal:
    """Tables of the lengths of which enough was measured."""
    return Normal({length: rows_of(rows) for length, rows in sorted(found.items()) if len(rows) >= LEAST_ROWS})


def calibration_of(found: dict[int, list[Measures]], bank: ExpertBank) -> Calibration:
    """The gate's limits, from the same measurements: as `safety.calibrate`, of the beginnings of documents."""
    random = np.random.default_rng(0)
    lengths = [n for n in sorted(found) if n <= WINDOW and len(found[n]) >= least_windows(ALPHA)]
    at, meter, tables = np.linspace(0, 1, QUANTILES), Meter(bank), []
    for length in lengths:
        values_NM = np.array([(m.K, m.C, m.S) for m in found[length]])
        limited_NR = np.column_stack((values_NM[:, 1:], [m.copied for m in found[length]]))
        coins = random.integers(0, 256, (_COINS, length), dtype=np.uint8)
        noise_NM = np.array([(m.K, m.C, m.S) for m in map(meter.measure, coins)])
        limits, medians = conformal_limits(random.permutation(limited_NR), ALPHA)
        shares = block_shares(limited_NR, ALPHA, random)
        counts = np.array(len(values_NM), dtype=np.float64)
        quantiles = np.quantile(values_NM, at, axis=0).T, np.quantile(noise_NM, at, axis=0).T
        tables.append((counts, limits, medians, *quantiles, shares))
    if not tables:
        raise BitStreamError(
            f"got clean text with {max(map(len, found.values()), default=0)} passages of one length; {least_windows(ALPHA)} are needed",
            tries=("more text",),
        )
    windows, limits, medians, quantile, noise, shares = (np.stack(column) for column in zip(*tables, strict=True))
    sizes = np.array(lengths, dtype=np.float64)
    return Calibration(ALPHA, sizes, windows, limits, medians, quantile, noise, shares, 8, 8, 8)


def _all(bank: ExpertBank, documents: Sequence[Bytes], told: Callable[[int], None]) -> ExpertBank:
    _learn(bank, [Block(document, True) for document in documents], told)
    return bank


def _learn(bank: ExpertBank, blocks: Sequence[Block], told: Callable[[int], None]) -> None:
    """Read blocks, each from an empty context, as documents will be."""
    for block in blocks:
        stream = bank.stream()
        for begin in range(0, len(block.data), _LARGEST_BLOCK):
            piece = block.data[begin : begin + _LARGEST_BLOCK]
            bank.read(piece, stream, learn=True, wanted=False)
            told(len(piece))


def _stretches(documents: Sequence[Bytes], size: int) -> list[list[Block]]:
    """Documents, those cut that are long, in stretches of about one size: short ones stay with their neighbours, which may be like them."""
    most = min(_LARGEST_BLOCK, max(_LEAST_BLOCK, size // (4 * FOLDS)))
    stretches: list[list[Block]] = []
    held = most
    for document in documents:
        for begin in range(0, len(document), most):
            block = Block(np.ascontiguousarray(document[begin : begin + most]), begin == 0)
            if held + len(block.data) // 2 >= most:
                stretches.append([])
                held = 0
            stretches[-1].append(block)
            held += len(block.data)
    return stretches


def _passages(meter: Meter, blocks: Sequence[Block], folds: int) -> dict[int, list[Measures]]:
    """Measures by length: of the first bytes of documents or, where these are few, of passages that begin anywhere."""
    found: dict[int, list[Measures]] = {length: [] for length in LENGTHS}
    below = 0
    for stride in _STRIDES:
        lengths = [length for length in LENGTHS if below < length <= stride]
        for data in _thinned(_beginnings(blocks, lengths[0], stride, folds), folds):
            for each in meter.prefixes(data, [length for length in lengths if length <= len(data)]):
                found[each.size].append(each)
        below = stride
    return found


def _beginnings(blocks: Sequence[Block], least: int, stride: int, folds: int) -> list[Bytes]:
    """What follows each place where a passage of at least so many bytes begins."""
    documents = [block.data for block in blocks if block.first and len(block.data) >= least]
    if len(documents) * folds >= _STARTS_ONLY:
        return documents
    made = []
    for block in blocks:
        for begin in range(0, len(block.data) - least + 1, stride):
            data = block.data[begin:]
            made.append(
                data if begin == 0 and block.first else data[_next_word(data[: min(_SNAP, len(data) - least)]) :]
            )
    return made


def _next_word(data: Bytes) -> int:
    """Where a word begins; 0 if none does here."""
    spaces = np.flatnonzero((data == 32) | (data == 10))
    return int(spaces[0]) + 1 if len(spaces) else 0


def _thinned(found: list[Any], folds: int = 1) -> list[Any]:
    """At most so many, evenly spread."""
    most = -(-MOST_ROWS // folds)
    return found if len(found) <= most else [found[len(found) * i // most] for i in range(most)]
