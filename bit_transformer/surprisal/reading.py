"""What each byte of a file costs a reader that learns the file as it reads it: from front to back, and from back to front.

A byte that is new to a reader is surprising whether it is damaged or only the first of its kind. Reading both ways helps: what begins a part is
known by then to the reader that comes from behind, and the wrong contexts that follow an error one way precede it the other way. The lower of
both costs is high where a byte fits neither side.

Readers may have read other data before: clean files of the same kind, or what a model was trained on.
"""

# Shapes: N bytes, U = 8 bits of a byte, most significant first.
from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from bit_transformer.compression.profiles import bank_of, plan, sizes_for
from bit_transformer.experts.bank import ExpertBank, Tell, ignore

if TYPE_CHECKING:
    from bit_transformer.model import BitTransformerLM

Bytes = NDArray[np.uint8]
PIECE = 1 << 16  # bytes read between two reports
_PLANNED = 1 << 24  # bytes by which contexts are chosen


class Costs(NamedTuple):
    """Costs of bytes, in bits.

    Attributes:
        ahead, back: (N,) float32, to the reader from front to back, and to the one from back to front.
        bits: (N, U) float16, of the bits of each byte to the reader to whom the byte costs less; None if they were not wanted.
    """

    ahead: NDArray[np.float32]
    back: NDArray[np.float32]
    bits: NDArray[np.float16] | None

    @property
    def lower(self) -> NDArray[np.float32]:
        """(N,): of both. What a map shows."""
        return np.minimum(self.ahead, self.back)

    @property
    def mean(self) -> NDArray[np.float32]:
        """(N,): of both. What damage is looked for in."""
        made: NDArray[np.float32] = (self.ahead + self.back) * np.float32(0.5)
        return made


class Reader(Protocol):
    """Who reads.

    Attributes:
        words: who it is, for people.
    """

    @property
    def words(self) -> str:
        """See above."""

    def costs(self, data: Bytes, *, bits: bool = False, tell: Tell = ...) -> Costs:
        """Read data. `tell` is called with the bytes read since its last call; each way counts."""

    def banks(self, data: Bytes) -> tuple[ExpertBank, ExpertBank]:
        """Banks that are about to read the data, from front to back and from back to front, to try what else could stand there."""


class BankReader:
    """Reads with banks of experts alone. They need no training, and read half a megabyte a second.

    Args:
        before: data that is read first.
        words: who this is. Default: says what was read.
    """

    def __init__(self, before: Sequence[Bytes] = (), words: str = "") -> None:
        self.before = [np.ascontiguousarray(data) for data in before if len(data)]
        size = sum(map(len, self.before))
        first = f"after {size:,} bytes of others" if size else "from nothing"
        self._words = words or f"experts alone, {first}, forwards and backwards"
        self._primed: tuple[tuple[int, int, int, int], ExpertBank, ExpertBank] | None = None

    @property
    def words(self) -> str:
        """As in `Reader`."""
        return self._words

    def costs(self, data: Bytes, *, bits: bool = False, tell: Tell = ignore) -> Costs:
        """As in `Reader`."""
        ahead, back = self.banks(data)
        with ThreadPoolExecutor(2) as pool:
            one = pool.submit(read_costs, data, ahead, bits=bits, tell=tell)
            two = pool.submit(read_costs, data[::-1], back, bits=bits, tell=tell)
            (ahead_N, ahead_NU), (back_N, back_NU) = one.result(), two.result()
        back_N = back_N[::-1]
        if ahead_NU is None or back_NU is None:
            return Costs(ahead_N, back_N, None)
        return Costs(ahead_N, back_N, np.where((ahead_N <= back_N)[:, None], ahead_NU, back_NU[::-1]))

    def banks(self, data: Bytes) -> tuple[ExpertBank, ExpertBank]:
        """As in `Reader`. Their contexts fit what was read before or, without that, the data."""
        like = self.before[0] if self.before else data
        profile, _, columns = plan(np.ascontiguousarray(like[:_PLANNED]))
        form = (profile, columns, *sizes_for(len(data) + sum(map(len, self.before))))
        if not self.before:
            return bank_of(*form), bank_of(*form)
        if self._primed is None or self._primed[0] != form:
            ahead, back = bank_of(*form), bank_of(*form)
            with ThreadPoolExecutor(2) as pool:
                tasks = [pool.submit(_learn, ahead, self.before)]
                tasks.append(pool.submit(_learn, back, [data[::-1] for data in reversed(self.before)]))
                for task in tasks:
                    task.result()
            self._primed = form, ahead, back
        return self._primed[1].copy(), self._primed[2].copy()


class ModelReader:
    """Reads forwards with a model, and backwards with a bank of experts that has read some of what the model was trained on.

    Args:
        before: data of the kind that the model was trained on; read first by banks.
        name: of the model, for people.
    """

    def __init__(self, model: BitTransformerLM, before: Sequence[Bytes], name: str) -> None:
        model.check_causal()
        self.model, self.helper, self.name = model, BankReader(before), name

    @property
    def words(self) -> str:
        """As in `Reader`."""
        size = sum(map(len, self.helper.before))
        return f"{self.name} forwards; backwards experts that had read {size:,} bytes of its training data"

    def costs(self, data: Bytes, *, bits: bool = False, tell: Tell = ignore) -> Costs:
        """As in `Reader`. For a model with parity, the parity bits count for their bytes."""
        from bit_transformer.data.sources import bytes_corpus
        from bit_transformer.evaluation.metrics import bit_costs, default_protocol

        ahead_N = np.empty(len(data), dtype=np.float32)
        ahead_NU = np.empty((len(data), 8), dtype=np.float16) if bits else None
        done = 0
        for cost_LU in bit_costs(self.model, bytes_corpus(data), default_protocol(self.model)):
            here = slice(done, done + len(cost_LU))
            ahead_N[here] = cost_LU.sum(1)
            if ahead_NU is not None:
                ahead_NU[here] = cost_LU[:, :8]
            done += len(cost_LU)
            tell(len(cost_LU))
        _, back = self.helper.banks(data)
        back_N, back_NU = read_costs(data[::-1], back, bits=bits, tell=tell)
        back_N = back_N[::-1]
        if ahead_NU is None or back_NU is None:
            return Costs(ahead_N, back_N, None)
        return Costs(ahead_N, back_N, np.where((ahead_N <= back_N)[:, None], ahead_NU, back_NU[::-1]))

    def banks(self, data: Bytes) -> tuple[ExpertBank, ExpertBank]:
        """As in `Reader`."""
        return self.helper.banks(data)


def _learn(bank: ExpertBank, parts: Sequence[Bytes]) -> None:
    for part in parts:
        bank.read(part, bank.stream(), learn=True, wanted=False)


def read_costs(
    data: Bytes, bank: ExpertBank, *, bits: bool = False, learn: bool = True, tell: Tell = ignore
) -> tuple[NDArray[np.float32], NDArray[np.float16] | None]:
    """What each byte costs a bank that reads the data once: (N,), and the same of each bit: (N, U)."""
    cost_N = np.empty(len(data), dtype=np.float32)
    cost_NU = np.empty((len(data), 8), dtype=np.float16) if bits else None
    stream = bank.stream()
    for begin in range(0, len(data), PIECE):
        piece = np.ascontiguousarray(data[begin : begin + PIECE])
        here = bit_costs_of(piece, bank.probabilities(piece, stream, learn=learn))
        cost_N[begin : begin + len(piece)] = here.sum(1)
        if cost_NU is not None:
            cost_NU[begin : begin + len(piece)] = here
        tell(len(piece))
    return cost_N, cost_NU


@lru_cache(maxsize=1)
def _cost_of() -> NDArray[np.float32]:
    """The cost of a bit, by the probability of its value in 1/65536."""
    made: NDArray[np.float32] = -np.log2(np.maximum(np.arange(65537), 0.5) / 65536).astype(np.float32)
    return made


def bit_costs_of(data: Bytes, one_NU: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Costs of bits from the probability that each is 1, in 1/65536: (N, U)."""
    is_one = np.unpackbits(data).reshape(-1, 8).astype(bool)
    one = one_NU.astype(np.int32)
    made: NDArray[np.float32] = _cost_of()[np.where(is_one, one, 65536 - one)]
    return made
