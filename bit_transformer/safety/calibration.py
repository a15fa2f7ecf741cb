"""Measures the normal values of K, C and S on reference windows of several lengths, and sets limits with a known false-alarm rate.

There are three limits: a lower limit ("floor") of C, a floor of S, and the most bytes that a loop may copy (`repetition.py`).

They are split conformal. Reference windows are divided at random into two parts. The first part gives the median of each value and a
quantile on its bad side. In the second part each window gets a score: the smallest distance of its values from that quantile, in
units of the quantile's distance from the median. The k-th lowest score, k = floor((n + 1) alpha) of n windows, sets the limits. Of
new windows of the same kind, a fraction of at most alpha is then beyond a limit, for any distribution (Vovk et al. 2005,
"Algorithmic learning in a random world"). Values of short windows vary more, so each length has its own limits.

Neighbouring windows of a text are similar, so the false-alarm rate differs between chapters more than for independent windows. To
measure that, the reference is also cut into blocks, and each block is judged by limits from the others. Their false-alarm rates give
an interval for the rate on new text: see `Calibration.alarms`.
"""

# Shapes: L lengths, N windows, Q quantiles, M = 3 metrics: K, C, S; R = 3 limits: of C and S (lower), of copied bytes (upper);
# G blocks.
from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.config import ExpertConfig, ModelConfig
from bit_transformer.data.sources import Corpus
from bit_transformer.errors import Ask, BitStreamError, CheckpointError, ConfigError, Give
from bit_transformer.experts.bank import ExpertBank
from bit_transformer.safety.reference import ROWS, Reference, Vitals, as_array
from bit_transformer.telemetry import METRICS
from bit_transformer.tensor_file import prefixed, read_tensors, under, write_tensors

LENGTHS = (32, 64, 128, 256, 512, 1024, 2048)  # bytes
MOST_WINDOWS = 8000  # per length; more windows add little
QUANTILES = 201
BLOCKS = 16  # of the reference, to measure how much the false-alarm rate varies
T_95 = 2.120  # the 97.5 % quantile of Student's t with as many degrees of freedom as blocks
MOST_COPIED = 64.0  # bytes, without a calibration: a line of dashes
SHAPE_SHARE = 1 / 4  # fraction of the windows that gives medians and quantiles
GATE_FILE = "gate.safetensors"
_SIDE = np.array([1.0, 1.0, -1.0])  # of C, S and copied bytes; -1: large values are bad
_MOST = np.array([1.0, 1.0, np.inf])
_LEAST_SCALE = np.array([1e-3, 1e-3, 16.0])  # smallest distance from median to limit
_FACTS = ("alpha", "patch_bits", "byte_bits", "unit_bits")
_ARRAYS = ("lengths", "windows", "limits", "medians", "quantiles", "noise", "shares")

Kind = Literal["typical", "repetitive", "noise", "off-domain"]


class Limits(NamedTuple):
    """Limits for windows of one length."""

    c_floor: float
    s_floor: float
    most_copied: float  # bytes


@dataclass(frozen=True)
class Calibration:
    """Normal values and limits, by window length.

    Attributes:
        alpha: largest fraction of reference windows beyond a limit.
        lengths: (L,) in bytes.
        windows: (L,) number of windows measured per length.
        limits: (L, R); `medians`: (L, R) of the same values.
        quantiles: (L, M, Q) of reference windows, evenly spaced from minimum to maximum.
        noise: (L, M, Q) quantiles of windows of fair coin flips.
        shares: (L, G) false-alarm rates of blocks of the reference, judged by limits from the other blocks.
        patch_bits, byte_bits, unit_bits: of the model it was made for.

    Raises:
        ConfigError: arrays that do not fit together, values outside [0, 1], or negative bytes.
    """

    alpha: float
    lengths: NDArray[np.float64]
    windows: NDArray[np.float64]
    limits: NDArray[np.float64]
    medians: NDArray[np.float64]
    quantiles: NDArray[np.float64]
    noise: NDArray[np.float64]
    shares: NDArray[np.float64]
    patch_bits: int
    byte_bits: int
    unit_bits: int

    def __post_init__(self) -> None:
        L, tables = len(self.lengths), (self.limits, self.medians, self.quantiles, self.noise, self.shares)
        shapes = [(L, 3), (L, 3), (L, 3, QUANTILES), (L, 3, QUANTILES), (L, BLOCKS if self.shares.size else 0)]
        fit = L and self.windows.shape == (L,) and [table.shape for table in tables] == shapes
        of_bits = [self.limits[:, :2], self.medians[:, :2], *tables[2:]] if fit else []
        of_bytes = [self.limits[:, 2], self.medians[:, 2]] if fit else []
        most = [(table, 1.0) for table in of_bits] + [(table, sys.float_info.max) for table in of_bytes]
        if not fit or not all(bool(((table >= 0) & (table <= bound)).all()) for table, bound in most):
            raise ConfigError("got calibration tables that do not fit together or leave [0, 1]. Try calibrating again")
        if not (self.lengths[0] >= 1 and bool((np.diff(self.lengths) > 0).all())):
            raise ConfigError(f"got lengths {self.lengths.tolist()}; they must ascend. Try calibrating again")

    def __repr__(self) -> str:
        """In one line, without the tables."""
        lengths = f"{len(self.lengths)} lengths from {self.shortest} to {self.longest:,} bytes"
        shape = f"patch_bits={self.patch_bits}, byte_bits={self.byte_bits}, unit_bits={self.unit_bits}"
        return f"Calibration(alpha={self.alpha}, {lengths}, {shape})"

    @property
    def shortest(self) -> int:
        """Shortest window that can be judged, in bytes."""
        return int(self.lengths[0])

    @property
    def longest(self) -> int:
        """Longest window that can be judged, in bytes."""
        return int(self.lengths[-1])

    def limits_at(self, size: float) -> Limits:
        """Limits for windows of `size` bytes, interpolated by the logarithm of the length.

        Raises:
            BitStreamError: a window that is too short or too long to be judged.
        """
        return Limits(*self._at(size, self.limits).tolist())

    def medians_at(self, size: float) -> Limits:
        """Medians of the same values; see `limits_at`."""
        return Limits(*self._at(size, self.medians).tolist())

    def _at(self, size: float, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """A table's row for windows of `size` bytes."""
        if not self.shortest <= size <= self.longest:
            raise BitStreamError(
                f"got a window of {size:g} bytes; it must have {self.shortest} to {self.longest:,}, which were calibrated. "
                f"Try {min(max(self.shortest, 256), self.longest)}, or calibrate with more bytes for longer windows"
            )
        place = float(np.interp(math.log(size), np.log(self.lengths), np.arange(len(self.lengths))))
        below, part = int(place), place % 1
        row: NDArray[np.float64] = (1 - part) * table[below] + part * table[min(below + 1, len(table) - 1)]
        return row

    def alarms(self, index: int) -> tuple[float, float]:
        """Interval of the false-alarm rate on new text of this kind, for windows of `lengths[index]`: see `alarm_band`."""
        return alarm_band(self.alpha, self.shares[index])

    def ranks(self, vitals: Vitals) -> dict[str, float]:
        """For each metric, the fraction of reference windows of this length with a lower value."""
        rows = self._at(vitals.size, self.quantiles)
        return {name: _fraction_below(row, getattr(vitals, name)) for name, row in zip(METRICS, rows, strict=True)}

    def kind(self, vitals: Vitals) -> Kind:
        """Classify a window. `repetitive`: C is below its floor, or a loop copies too much. `noise`: S is below its floor, and K and C
        are as in 99 of 100 windows of fair coin flips. `off-domain`: S is below its floor otherwise. Else `typical`."""
        limits = self.limits_at(vitals.size)
        if not (limits.c_floor <= vitals.C and vitals.copied <= limits.most_copied):
            return "repetitive"
        if not limits.s_floor <= vitals.S:
            k_noise, c_noise, _ = self._at(vitals.size, self.noise)
            last = QUANTILES - 1
            in_noise = k_noise[last * 99 // 100] >= vitals.K and c_noise[last // 100] <= vitals.C
            return "noise" if in_noise else "off-domain"
        return "typical"

    def check_fits(self, model: ModelConfig, source: object) -> None:
        """Refuse a calibration that was made for another kind of model.

        Raises:
            CheckpointError: other patches, parity or units.
        """
        for name in ("patch_bits", "byte_bits", "unit_bits"):
            if getattr(self, name) != getattr(model, name):
                raise CheckpointError(
                    f"{source}: was calibrated for {name}={getattr(self, name)}; the model has {getattr(model, name)}",
                    tries=(Ask("calibrate"),),
                )


def calibrate(
    reference: Reference,
    corpus: Corpus,
    model: ModelConfig,
    *,
    alpha: float = 0.01,
    lengths: Sequence[int] = LENGTHS,
    most: int = MOST_WINDOWS,
    seed: int = 0,
    passed: Callable[[int, int], None] = lambda done, total: None,
) -> Calibration:
    """Measure normal values on windows of a corpus, evenly spread and without overlap. Loops are those of the corpus as one stream.

    Args:
        alpha: false-alarm rate, in (0, 0.5).
        lengths: window lengths in bytes, ascending. A length is skipped if the corpus has too few windows.
        most: most windows per length, unless alpha needs more.
        passed: called with the bytes measured so far, and their total.

    Raises:
        ConfigError: an invalid alpha or invalid lengths.
        BitStreamError: the corpus is too small for the shortest length; says how much is needed.
    """
    if not 0 < alpha < 0.5:
        raise ConfigError(f"got alpha={alpha}; it must be in (0, 0.5). Try 0.01")
    if list(lengths) != sorted(set(lengths)) or not lengths or lengths[0] < 8:
        raise ConfigError(f"got lengths={tuple(lengths)}; they must ascend, from 8 bytes or more. Try {LENGTHS}")
    needed = least_windows(alpha)
    kept = [size for size in lengths if len(corpus) // _aligned(size, model) >= needed]
    if not kept:
        size = _aligned(lengths[0], model)
        raise BitStreamError(
            f"got {len(corpus):,} reference bytes; alpha={alpha} needs {needed} windows, {needed * size:,} bytes for the "
            f"shortest length of {size}",
            tries=("more files", Give("alpha")),
        )
    random = np.random.default_rng(seed)
    sizes = np.array([_aligned(size, model) for size in kept], dtype=np.float64)
    counts = [min(max(most, needed), len(corpus) // int(size)) for size in sizes]
    total, done = int(sizes @ counts), 0
    spread = [(_starts(corpus, int(size), count), int(size)) for size, count in zip(sizes, counts, strict=True)]
    copied = reference.repetition.of_windows(corpus, spread)
    tables = []
    for (starts, size), copied_N in zip(spread, copied, strict=True):
        values: list[NDArray[np.float64]] = []
        for at in range(0, len(starts), ROWS):
            rows = np.stack([corpus.read(int(start), size) for start in starts[at : at + ROWS]])
            values.append(as_array(reference.measure(bytes_to_bits(rows, parity=model.parity))))
            done += rows.size
            passed(done, total)
        tables.append(_normal(np.concatenate(values), copied_N, reference, model, size, alpha, random))
    windows, limits, medians, quantiles, noise, shares = (np.stack(column) for column in zip(*tables, strict=True))
    shape = model.patch_bits, model.byte_bits, model.unit_bits
    return Calibration(alpha, sizes, windows, limits, medians, quantiles, noise, shares, *shape)


def least_windows(alpha: float) -> int:
    """Fewest reference windows of one length for a limit: the lowest score must have a rank of at most alpha."""
    scored = math.ceil(1 / alpha - 1e-9) - 1
    return math.ceil(scored / (1 - SHAPE_SHARE))


def _aligned(size: int, model: ModelConfig) -> int:
    return -(-size // model.align_bytes) * model.align_bytes


def _starts(corpus: Corpus, size: int, count: int) -> NDArray[np.int64]:
    """Starts of `count` windows, evenly spread and without overlap."""
    room = len(corpus) // size
    return np.array([int(i * room / count) * size for i in range(count)], dtype=np.int64)


def _normal(
    values_NM: NDArray[np.float64],
    copied_N: NDArray[np.float64],
    reference: Reference,
    model: ModelConfig,
    size: int,
    alpha: float,
    random: np.random.Generator,
) -> tuple[NDArray[np.float64], ...]:
    """One row of each table, from K, C, S and copied bytes of windows of one length, in the order of the corpus."""
    limited_NR = np.column_stack((values_NM[:, 1:], copied_N))
    limits, medians = conformal_limits(random.permutation(limited_NR), alpha)
    coins = random.integers(0, 256, (ROWS, size), dtype=np.uint8)
    noise_NM = as_array(reference.measure(bytes_to_bits(coins, parity=model.parity)))
    at = np.linspace(0, 1, QUANTILES)
    return (
        np.array(len(values_NM), dtype=np.float64),
        limits,
        medians,
        np.quantile(values_NM, at, axis=0).T,
        np.quantile(noise_NM, at, axis=0).T,
        block_shares(limited_NR, alpha, random),
    )


def conformal_limits(limited_NR: NDArray[np.float64], alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Split-conformal limits and medians of C, S and copied bytes. Rows must be exchangeable, for example shuffled."""
    shape = max(1, len(limited_NR) - math.ceil(len(limited_NR) * (1 - SHAPE_SHARE)))
    shape_NR, scored_NR = limited_NR[:shape] * _SIDE, limited_NR[shape:] * _SIDE  # so that low is bad
    medians = np.median(shape_NR, axis=0)
    low = np.minimum(np.quantile(shape_NR, alpha / shape_NR.shape[1], axis=0), medians - _LEAST_SCALE)
    scores = np.sort(((scored_NR - low) / (medians - low)).min(1))
    rank = max(1, math.floor((len(scores) + 1) * alpha * (1 + 1e-12)))
    score = scores[rank - 1]
    return np.clip((low + score * (medians - low)) * _SIDE, 0.0, _MOST), medians * _SIDE


def beyond(limited_NR: NDArray[np.float64], limits_R: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which windows have C, S or copied bytes beyond the limits."""
    over_N: NDArray[np.bool_] = ((limited_NR - limits_R) * _SIDE < 0).any(1)
    return over_N


def block_shares(limited_NR: NDArray[np.float64], alpha: float, random: np.random.Generator) -> NDArray[np.float64]:
    """False-alarm rate in each block of windows, judged by limits from the other blocks. Windows must be in order."""
    shares = []
    for block in np.array_split(np.arange(len(limited_NR)), BLOCKS):
        limits, _ = conformal_limits(random.permutation(np.delete(limited_NR, block, axis=0)), alpha)
        shares.append(beyond(limited_NR[block], limits).mean())
    return np.array(shares)


def alarm_band(alpha: float, shares_G: NDArray[np.float64]) -> tuple[float, float]:
    """95 % prediction interval of the false-alarm rate on new text of the reference's kind.

    From the deviations of the blocks' rates from alpha, by Student's t on the arc sine of their square root, which makes the
    variance independent of the rate. It holds for text at least as long as a block, if the reference is a representative sample.
    Without blocks: (0, 1).

    Source: Anscombe 1948, "The transformation of Poisson, binomial and negative-binomial data" (the arc sine).
    """
    if not len(shares_G):
        return 0.0, 1.0
    middle = math.asin(math.sqrt(alpha))
    square = float(((np.arcsin(np.sqrt(shares_G)) - middle) ** 2).mean())
    half = T_95 * math.sqrt(square * (1 + 1 / len(shares_G)))
    return math.sin(max(0.0, middle - half)) ** 2, math.sin(min(math.pi / 2, middle + half)) ** 2


def _fraction_below(quantiles: NDArray[np.float64], value: float) -> float:
    return float(np.searchsorted(quantiles, value) / len(quantiles))


# ---- files ----


def save_calibration(path: str | Path, calibration: Calibration, reference: Reference, *, of_model: bool) -> None:
    """Write a calibration.

    Args:
        of_model: whether the reference is the model's own bank; if not, the bank is written too.

    Raises:
        CheckpointError: the file could not be written.
    """
    tensors = {name: torch.from_numpy(np.array(getattr(calibration, name))) for name in _ARRAYS}
    if not of_model:
        tensors |= prefixed("bank.", reference.bank.packed())
    document = {
        **{name: getattr(calibration, name) for name in _FACTS},
        "reference": reference.bank.digest(),
        "experts": None if of_model else reference.bank.config.model_dump(mode="json"),
        "limits": Limits._fields,
    }
    write_tensors(Path(path), tensors, document)


def load_calibration(path: str | Path, model: ModelConfig, bank: ExpertBank | None) -> tuple[Calibration, Reference]:
    """Read a calibration that `save_calibration` wrote.

    Files from before loop detection have an upper limit of S instead, which blocked normal text at temperature 0.7. It is
    ignored, and a loop may copy `MOST_COPIED` bytes. The floors stay.

    Args:
        bank: the model's own, if it has experts.

    Raises:
        CheckpointError: the file is missing or damaged, or was made for another model or another state of its experts.
    """
    tensors, document = read_tensors(Path(path))
    try:
        if "limits" not in document:
            tensors["limits"][:, 2], tensors["medians"][:, 2] = MOST_COPIED, 0.0
            tensors["shares"] = tensors["limits"][:, :0]
        parts: dict[str, Any] = {name: tensors[name].numpy() for name in _ARRAYS}
        calibration = Calibration(**parts, **{name: document[name] for name in _FACTS})
        experts, known = document["experts"], document["reference"]
    except (KeyError, IndexError, TypeError, ConfigError):
        raise CheckpointError(f"{path}: contains no valid calibration", tries=(Ask("calibrate"),)) from None
    calibration.check_fits(model, path)
    if experts is not None:
        config = model.model_copy(update={"experts": ExpertConfig.of(experts)})
        bank = ExpertBank.of(config)
        bank.load_state_dict({name: table.numpy() for name, table in under("bank.", tensors).items()})
    if bank is None or bank.digest() != known:
        raise CheckpointError(
            f"{path}: was calibrated for another state of this model's experts", tries=(Ask("calibrate"),)
        )
    return calibration, Reference(bank, model.byte_bits)
