"""Passes of the experts over data, in order: predict each bit, then learn from it.

The features of a position depend only on earlier data. The passes here store nothing on disk. `feature_cache.py` has one that does,
`training/streamed.py` one that runs during training.
"""

# Shapes: N windows or units, T bits, F features.
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.config import ModelConfig
from bit_transformer.data.sources import Corpus
from bit_transformer.errors import BitStreamError
from bit_transformer.experts.bank import ExpertBank, Features, feature_count, pack_units
from bit_transformer.experts.sketch import WINDOW, Sketch, empty, joined, sketched

WHOLE = 27_720  # whole units of any size, in bytes: the least common multiple of 1 .. 12
PIECE = 28 * WHOLE  # bytes read at a time
PASS_RATE, RICH_RATE = (
    400_000,
    50_000,
)  # lowest speed of a pass in bytes per second, light and rich; for decisions, not as a measurement

Say = Callable[[str], None]
Passed = Callable[[int, int], None]


def corpus_units(corpus: Corpus, offset: int, length: int, model: ModelConfig) -> NDArray[Any]:
    """Bytes of a corpus as the units that a model's experts read; `offset` must be the start of a unit."""
    data = corpus.read(offset, length)
    if model.unit_bits == model.byte_bits and not model.parity:
        return data
    return pack_units(bytes_to_bits(data, parity=model.parity), model.unit_bits)


def feature_bytes(corpus: Corpus, model: ModelConfig) -> int:
    """Size of a corpus's features."""
    return len(corpus) * model.byte_bits * feature_count(model)


def corpus_sketch(corpus: Corpus) -> Sketch:
    """A sketch of a corpus, to recognise whether experts have learned from it."""
    found = empty()
    for offset in range(0, len(corpus), PIECE):
        found = sketched(np.asarray(corpus.read(offset, PIECE + WINDOW - 1)), found)
    return found


def window_sketch(bits_NT: Tensor) -> Sketch:
    """The same for windows given as bits."""
    found = empty()
    for row in np.packbits(bits_NT.cpu().numpy().astype(np.uint8), axis=1):
        found = sketched(row, found)
    return found


def begin_with(start: ExpertBank | None, model: ModelConfig) -> ExpertBank:
    """A bank to learn in: a copy of `start`, or an empty one."""
    return ExpertBank.of(model) if start is None else start.copy()


class FeatureReader:
    """Features of a corpus from its start, for overlapping windows in order; memory is constant.

    Args:
        bank: the bank from before the corpus; trained if `learn`.
    """

    def __init__(self, corpus: Corpus, model: ModelConfig, bank: ExpertBank, *, learn: bool) -> None:
        self.corpus, self.model, self.bank, self.learn = corpus, model, bank, learn
        self._stream = bank.stream()
        self._begin, self._done = 0, 0  # bytes: what is kept, and what was read
        self._kept: Features = np.empty((0, bank.features), dtype=np.int8)

    def read(self, offset: int, length: int) -> Features:
        """Features of the bits of bytes [offset, offset + length), zeros beyond the end: (T, F). Offsets must not decrease."""
        width = self.model.byte_bits
        stop = min(offset + length, len(self.corpus))
        parts = [self._kept[(offset - self._begin) * width :]]  # what no later window needs goes
        skipped = max(0, offset - self._done) * width  # read, because the experts' state needs it, but not wanted
        while self._done < stop:
            units = corpus_units(self.corpus, self._done, 2 * WHOLE, self.model)
            made = self.bank.read(units, self._stream, learn=self.learn)
            parts.append(made.reshape(-1, self.bank.features))
            self._done = min(len(self.corpus), self._done + 2 * WHOLE)
        self._kept, self._begin = (np.concatenate(parts) if len(parts) > 1 else parts[0])[skipped:], offset
        return _padded(self._kept, length * width)


class KeptFeatures:
    """Features of a short corpus from its start, computed once, for windows in any order, any number of times.

    Args:
        bank: the bank from before the corpus; it stays as it is.
        learn: whether a copy of it learns from the corpus.
    """

    def __init__(self, corpus: Corpus, model: ModelConfig, bank: ExpertBank, *, learn: bool) -> None:
        reader = FeatureReader(corpus, model, bank.copy() if learn else bank, learn=learn)
        self.width, self._features_TF = model.byte_bits, reader.read(0, len(corpus))

    def read(self, offset: int, length: int) -> Features:
        """As of `FeatureReader`."""
        return _padded(self._features_TF[offset * self.width :], length * self.width)


def _padded(features_TF: Features, bits: int) -> Features:
    """The features of the first bits; zeros after the last."""
    wanted = features_TF[:bits]
    return np.pad(wanted, ((0, bits - len(wanted)), (0, 0)))


def window_features(
    bits_NT: Tensor, model: ModelConfig, start: ExpertBank | None = None
) -> tuple[Features, ExpertBank]:
    """Features of windows given as bits, each row as its own stream, in order: features_NTF and the bank.

    Raises:
        BitStreamError: rows that are not whole units.
    """
    N, T = bits_NT.shape
    if T % model.unit_bits:
        raise BitStreamError(
            f"got windows of {T} bits; with experts a multiple of their unit of {model.unit_bits} bits is needed. "
            f"Try bits[:, :{T // model.unit_bits * model.unit_bits}]"
        )
    bank = begin_with(start, model)
    bank.sketch = joined(bank.sketch, window_sketch(bits_NT))
    made = [
        bank.read(unit_N, bank.stream(), learn=True) for unit_N in pack_units(bits_NT.cpu().numpy(), model.unit_bits)
    ]
    return np.stack(made).reshape(N, T, bank.features), bank
