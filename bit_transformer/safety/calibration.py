"""Which K, C and S are normal, by length, measured on reference windows; and limits whose false alarms are known.

Three limits: a floor of C, a floor of S, and a ceiling of S, which text has that says only what is most expected, as greedy decoding does.

Split-conformal: reference windows are divided by chance. One part says how the values are spread: their median, and a quantile on
the bad side. On the other each window gets a score, the least of how far its values lie on the good side of that quantile, in units of
its distance from the median. The k-th lowest score, k = floor((n + 1) alpha) of n windows, sets the limits: of new windows of
the same kind a share of at most alpha is beyond one, whatever the distribution (Vovk et al. 2005, "Algorithmic learning in a random
world"). Short windows scatter more, so each length has limits of its own.
"""

# Shapes: L lengths, N windows, Q quantiles, M = 3 metrics: K, C, S; R = 3 limits: of C from below, of S from below and from above.
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.config import ExpertConfig, ModelConfig
from bit_transformer.data.sources import Corpus
from bit_transformer.errors import BitStreamError, CheckpointError, ConfigError
from bit_transformer.experts.bank import ExpertBank
from bit_transformer.safety.reference import ROWS, Reference, Vitals, as_array
from bit_transformer.telemetry import METRICS
from bit_transformer.tensor_file import prefixed, read_tensors, under, write_tensors

LENGTHS = (32, 64, 128, 256, 512, 1024, 2048)  # bytes
MOST_WINDOWS = 8000  # of one length; more say little more
QUANTILES = 201
SHAPE_SHARE = 1 / 4  # of the windows, for medians and low quantiles
GATE_FILE = "gate.safetensors"
_LIMITED, _SIDE = [1, 2, 2], np.array([1.0, 1.0, -1.0])  # columns of K, C, S; -1: bad is above
_FACTS = ("alpha", "patch_bits", "byte_bits", "unit_bits")
_ARRAYS = ("lengths", "windows", "limits", "medians", "quantiles", "noise")

Kind = Literal["typical", "repetitive", "predictable", "noise", "off-domain"]


class Limits(NamedTuple):
    """Of windows of one length."""

    c_floor: float
    s_floor: float
    s_ceiling: float


@dataclass(frozen=True)
class Calibration:
    """What is normal, by length.

    Attributes:
        alpha: share of reference windows that are beyond a limit, at most.
        lengths: (L,) in bytes.
        windows: (L,) how many were measured of each length.
        limits: (L, R); `medians`: (L, R) of what they limit, so that S is there twice.
        quantiles: (L, M, Q) of reference windows, evenly spaced from the least to the most.
        noise: (L, M, Q) of windows of fair coins.
        patch_bits, byte_bits, unit_bits: of the model that it is for.

    Raises:
        ConfigError: arrays that do not fit together, or values outside [0, 1].
    """

    alpha: float
    lengths: NDArray[np.float64]
    windows: NDArray[np.float64]
    limits: NDArray[np.float64]
    medians: NDArray[np.float64]
    quantiles: NDArray[np.float64]
    noise: NDArray[np.float64]
    patch_bits: int
    byte_bits: int
    unit_bits: int

    def __post_init__(self) -> None:
        L, tables = len(self.lengths), (self.limits, self.medians, self.quantiles, self.noise)
        shapes = [(L, 3), (L, 3), (L, 3, QUANTILES), (L, 3, QUANTILES)]
        fit = L and self.windows.shape == (L,) and [table.shape for table in tables] == shapes
        if not fit or not all(bool(((table >= 0) & (table <= 1)).all()) for table in tables):
            raise ConfigError(
                "got a calibration whose tables do not fit together or leave [0, 1]. Try calibrating again"
            )
        if not (self.lengths[0] >= 1 and bool((np.diff(self.lengths) > 0).all())):
            raise ConfigError(f"got lengths {self.lengths.tolist()}; they must ascend. Try calibrating again")

    @property
    def shortest(self) -> int:
        """Bytes of the shortest window that can be judged."""
        return int(self.lengths[0])

    @property
    def longest(self) -> int:
        """Bytes of the longest window that can be judged."""
        return int(self.lengths[-1])

    def limits_at(self, size: float) -> Limits:
        """Limits for windows of so many bytes; between the lengths that were measured, by the logarithm.

        Raises:
            BitStreamError: shorter than the shortest, or longer than the longest.
        """
        return Limits(*self._at(size, self.limits).tolist())

    def medians_at(self, size: float) -> Limits:
        """Medians of what they limit; see `limits_at`."""
        return Limits(*self._at(size, self.medians).tolist())

    def _at(self, size: float, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """A table's row for windows of so many bytes."""
        if not self.shortest <= size <= self.longest:
            raise BitStreamError(
                f"got a window of {size:g} bytes; it must have {self.shortest} to {self.longest:,}, for which there is a "
                f"calibration. Try {min(max(self.shortest, 256), self.longest)}, or more reference bytes for longer ones"
            )
        place = float(np.interp(math.log(size), np.log(self.lengths), np.arange(len(self.lengths))))
        below, share = int(place), place % 1
        row: NDArray[np.float64] = (1 - share) * table[below] + share * table[min(below + 1, len(table) - 1)]
        return row

    def ranks(self, vitals: Vitals) -> dict[str, float]:
        """For each metric the share of reference windows of this length that lie below."""
        rows = self._at(vitals.size, self.quantiles)
        return {name: _share_below(row, getattr(vitals, name)) for name, row in zip(METRICS, rows, strict=True)}

    def kind(self, vitals: Vitals) -> Kind:
        """What a window is like: `repetitive` where C is below its floor, `predictable` where S is above its ceiling, `noise` where S
        is below its floor, and K and C are as 99 of 100 windows of fair coins have them, `off-domain` where S is below
        otherwise; else `typical`."""
        limits = self.limits_at(vitals.size)
        if not limits.c_floor <= vitals.C:
            return "repetitive"
        if limits.s_ceiling < vitals.S:
            return "predictable"
        if not limits.s_floor <= vitals.S:
            k_noise, c_noise, _ = self._at(vitals.size, self.noise)
            last = QUANTILES - 1
            in_noise = k_noise[last * 99 // 100] >= vitals.K and c_noise[last // 100] <= vitals.C
            return "noise" if in_noise else "off-domain"
        return "typical"

    def check_fits(self, model: ModelConfig, source: object) -> None:
        """Refuse a calibration for another kind of model.

        Raises:
            CheckpointError: other patches, parity or units.
        """
        for name in ("patch_bits", "byte_bits", "unit_bits"):
            if getattr(self, name) != getattr(model, name):
                raise CheckpointError(
                    f"{source}: was calibrated for {name}={getattr(self, name)}; the model has {getattr(model, name)}. "
                    f"Try `btlm calibrate` for this model"
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
    """Measure what is normal on windows of a corpus that do not overlap, evenly spread.

    Args:
        alpha: share of false alarms, in (0, 0.5).
        lengths: in bytes, ascending; those that the corpus has not windows enough for are left out.
        most: windows of one length, at most, unless alpha needs more.
        passed: told how many bytes of how many were measured.

    Raises:
        ConfigError: alpha or lengths that cannot be.
        BitStreamError: a corpus too small for even the shortest length; says how much is needed.
    """
    if not 0 < alpha < 0.5:
        raise ConfigError(f"alpha={alpha}; it must be in (0, 0.5). Try 0.01")
    if list(lengths) != sorted(set(lengths)) or not lengths or lengths[0] < 8:
        raise ConfigError(f"lengths={tuple(lengths)}; they must ascend from 8 bytes or more. Try {LENGTHS}")
    needed = least_windows(alpha)
    kept = [size for size in lengths if len(corpus) // _aligned(size, model) >= needed]
    if not kept:
        size = _aligned(lengths[0], model)
        raise BitStreamError(
            f"got {len(corpus):,} bytes of reference; alpha={alpha} needs {needed} windows, {needed * size:,} bytes for the "
            f"shortest length of {size}. Try more files, or a larger --alpha"
        )
    random = np.random.default_rng(seed)
    sizes = np.array([_aligned(size, model) for size in kept], dtype=np.float64)
    counts = [min(max(most, needed), len(corpus) // int(size)) for size in sizes]
    total, done = int(sizes @ counts), 0
    tables = []
    for size, count in zip(sizes.astype(int).tolist(), counts, strict=True):
        values: list[NDArray[np.float64]] = []
        for rows in _windows(corpus, size, count):
            values.append(as_array(reference.measure(bytes_to_bits(rows, parity=model.parity))))
            done += rows.size
            passed(done, total)
        tables.append(_normal(np.concatenate(values), reference, model, size, alpha, random))
    columns = [np.stack(column) for column in zip(*tables, strict=True)]
    windows, limits, medians, quantiles, noise = columns
    shape = model.patch_bits, model.byte_bits, model.unit_bits
    return Calibration(alpha, sizes, windows, limits, medians, quantiles, noise, *shape)


def least_windows(alpha: float) -> int:
    """Reference windows of one length without which there is no floor: the lowest score must have a rank of alpha."""
    scored = math.ceil(1 / alpha - 1e-9) - 1
    return math.ceil(scored / (1 - SHAPE_SHARE))


def _aligned(size: int, model: ModelConfig) -> int:
    return -(-size // model.align_bytes) * model.align_bytes


def _windows(corpus: Corpus, size: int, count: int) -> Iterator[NDArray[np.uint8]]:
    """So many windows that do not overlap, evenly spread, some at a time."""
    room = len(corpus) // size
    starts = [int(i * room / count) * size for i in range(count)]
    for at in range(0, count, ROWS):
        yield np.stack([corpus.read(start, size) for start in starts[at : at + ROWS]])


def _normal(
    values_NM: NDArray[np.float64],
    reference: Reference,
    model: ModelConfig,
    size: int,
    alpha: float,
    random: np.random.Generator,
) -> tuple[NDArray[np.float64], ...]:
    """One row of each table, from K, C and S of windows of one length."""
    random.shuffle(values_NM)
    count = len(values_NM)
    shape = max(1, count - math.ceil(count * (1 - SHAPE_SHARE)))
    limited_NR = values_NM[:, _LIMITED]
    limits, medians = _limits(limited_NR[:shape], limited_NR[shape:], alpha)
    coins = random.integers(0, 256, (ROWS, size), dtype=np.uint8)
    noise_NM = as_array(reference.measure(bytes_to_bits(coins, parity=model.parity)))
    at = np.linspace(0, 1, QUANTILES)
    return (
        np.array(count, dtype=np.float64),
        limits,
        medians,
        np.quantile(values_NM, at, axis=0).T,
        np.quantile(noise_NM, at, axis=0).T,
    )


def _limits(
    shape_NR: NDArray[np.float64], scored_NR: NDArray[np.float64], alpha: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Split-conformal limits, and medians, of the columns."""
    shape_NR, scored_NR = shape_NR * _SIDE, scored_NR * _SIDE  # so that low is bad
    medians = np.median(shape_NR, axis=0)
    low = np.minimum(np.quantile(shape_NR, alpha / shape_NR.shape[1], axis=0), medians - 1e-3)
    scores = np.sort(((scored_NR - low) / (medians - low)).min(1))
    rank = math.floor((len(scores) + 1) * alpha * (1 + 1e-12))
    assert rank >= 1, "least_windows sees to it"
    score = scores[rank - 1]
    return np.clip((low + score * (medians - low)) * _SIDE, 0.0, 1.0), medians * _SIDE


def _share_below(quantiles: NDArray[np.float64], value: float) -> float:
    return float(np.searchsorted(quantiles, value) / len(quantiles))


# ---- with a checkpoint ----


def save_calibration(path: str | Path, calibration: Calibration, reference: Reference, *, of_model: bool) -> None:
    """Write a calibration.

    Args:
        of_model: whether the reference is the model's own bank; else it is written too.

    Raises:
        CheckpointError: the disk refused.
    """
    tensors = {name: torch.from_numpy(np.array(getattr(calibration, name))) for name in _ARRAYS}
    if not of_model:
        tensors |= prefixed("bank.", reference.bank.state_dict())
    document = {
        **{name: getattr(calibration, name) for name in _FACTS},
        "reference": reference.bank.digest(),
        "experts": None if of_model else reference.bank.config.model_dump(mode="json"),
    }
    write_tensors(Path(path), tensors, document)


def load_calibration(path: str | Path, model: ModelConfig, bank: ExpertBank | None) -> tuple[Calibration, Reference]:
    """The inverse of `save_calibration`.

    Args:
        bank: the model's own, if it has experts.

    Raises:
        CheckpointError: no such file, a damaged one, or one for another model or another state of its experts.
    """
    tensors, document = read_tensors(Path(path))
    try:
        parts: dict[str, Any] = {name: tensors[name].numpy() for name in _ARRAYS}
        calibration = Calibration(**parts, **{name: document[name] for name in _FACTS})
        experts = document["experts"]
    except (KeyError, TypeError, ConfigError):
        raise CheckpointError(f"{path}: holds no calibration that can be used. Try `btlm calibrate`") from None
    calibration.check_fits(model, path)
    if experts is not None:
        config = model.model_copy(update={"experts": ExpertConfig.of(experts)})
        bank = ExpertBank.of(config)
        bank.load_state_dict({name: table.numpy() for name, table in under("bank.", tensors).items()})
    if bank is None or bank.digest() != document["reference"]:
        raise CheckpointError(
            f"{path}: was calibrated for another state of this model's experts. Try `btlm calibrate` again"
        )
    return calibration, Reference(bank, model.byte_bits)
