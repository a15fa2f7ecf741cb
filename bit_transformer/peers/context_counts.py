"""Order-k context models of bytes: counts of what followed each context in the training data, interpolated over all orders. They do not
learn from what they score.

P_k(byte | context) = (n(context, byte) + d(context) P_{k-1}(byte | shorter context)) / (n(context) + d(context)), with n the counts and d
the number of different bytes after the context; below order 0 all bytes are as likely.

Source: interpolated Witten-Bell smoothing, Chen & Goodman 1998, "An empirical study of smoothing techniques for language modeling".
"""

# Shapes: L bytes, C different contexts.
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bit_transformer.data.sources import Corpus
from bit_transformer.errors import ConfigError
from bit_transformer.evaluation.scorer import Score, check_filled

MOST = 6  # bytes of a context: with the byte after it, and one to spare, it fits into 64 bits
_Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class _Order:
    """Counts of one order, sorted by key.

    Attributes:
        key_C: contexts with the byte after them; `count_C`: how often.
        context_C: contexts alone; `total_C`: how often; `different_C`: how many different bytes came after.
    """

    key_C: _Keys
    count_C: NDArray[np.int64]
    context_C: _Keys
    total_C: NDArray[np.int64]
    different_C: NDArray[np.int64]


@dataclass(frozen=True)
class ContextCounts:
    """An order-k context model as a `Scorer`.

    Args:
        training: the data that is counted. Contexts do not reach from one of its spans into the next.
        order: bytes of the longest context, 0 to 6.

    Raises:
        ConfigError: another order.
    """

    training: Corpus
    order: int = 3
    _orders: tuple[_Order, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.order <= MOST:
            raise ConfigError(f"got order={self.order}; 0 to {MOST} is needed. Try 3", field="order")
        object.__setattr__(self, "_orders", tuple(_counted(self.training, k) for k in range(self.order + 1)))

    @property
    def name(self) -> str:
        """The name of its row."""
        return f"order {self.order} counts"

    def scores(self, corpus: Corpus) -> Iterator[Score]:
        """One score, of the whole corpus."""
        check_filled(corpus)
        cost_L = self.byte_costs(corpus)
        yield Score(float(cost_L.sum()), len(cost_L), f"frozen counts of {len(self.training):,} bytes")

    def byte_costs(self, corpus: Corpus) -> NDArray[np.float64]:
        """The cost of each byte of a corpus in bits: (L,). A context reaches back to the start of the corpus."""
        byte_L = np.ascontiguousarray(corpus.read(0, len(corpus)))
        chance_L = np.full(len(byte_L), 1 / 256)
        for k, order in enumerate(self._orders):
            key, context = _keys(byte_L, k)
            n = _looked_up(order.key_C, order.count_C, key)
            total = _looked_up(order.context_C, order.total_C, context)
            different = _looked_up(order.context_C, order.different_C, context)
            shorter = chance_L[k:]
            known = total > 0
            chance_L[k:] = np.where(known, (n + different * shorter) / np.maximum(1, total + different), shorter)
        return -np.log2(chance_L)


def _keys(byte_L: NDArray[np.uint8], order: int) -> tuple[_Keys, _Keys]:
    """Each byte with the `order` bytes before it as one number; and those bytes alone. The first `order` bytes have no context of this length."""
    count = max(0, len(byte_L) - order)
    context = np.zeros(count, dtype=np.uint64)
    for back in range(order):
        context = context << np.uint64(8) | byte_L[back : back + count].astype(np.uint64)
    return context << np.uint64(8) | byte_L[order:].astype(np.uint64), context


def _counted(corpus: Corpus, order: int) -> _Order:
    key = np.concatenate([_keys(np.asarray(span.read(0, len(span))), order)[0] for span in corpus.spans])
    key_C, count_C = np.unique(key, return_counts=True)
    context_C, first = np.unique(key_C >> np.uint64(8), return_index=True)
    ends = np.append(first[1:], len(key_C))
    total_C = np.add.reduceat(count_C, first) if len(first) else np.zeros(0, dtype=np.int64)
    return _Order(key_C, count_C, context_C, total_C, ends - first)


def _looked_up(key_C: _Keys, value_C: NDArray[np.int64], key: _Keys) -> NDArray[np.int64]:
    """The values of keys; 0 where they are not there."""
    if not len(key_C):
        return np.zeros(len(key), dtype=np.int64)
    at = np.minimum(np.searchsorted(key_C, key), len(key_C) - 1)
    return np.where(key_C[at] == key, value_C[at], 0)
