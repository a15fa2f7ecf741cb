"""The expert bank: many small adaptive predictors of the next bit, as one object with a state.

A bank reads streams of *units*: the bytes of a file (9 bits with parity), or any words of up to 12 bits. For each bit it gives a row of
features: the logit of every expert, of the match, and of the bank's own mixture, each computed only from earlier bits. The
transformer's mixer (`nn/mixer.py`) weighs them. The inner loops are in `kernels.py`; this file has the rest: sizes, streams, copies,
saving, merging.
"""

# Shapes: N units, U bits of a unit, K experts, F = K + 2 features, V = 2^P nodes of a patch.
from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bit_transformer.bit_io import Bits
from bit_transformer.coding.arithmetic import PLACE, new_coder
from bit_transformer.config import ExpertConfig, ModelConfig
from bit_transformer.errors import CheckpointError, ConfigError, Give
from bit_transformer.experts import STATE_VERSION as STATE_VERSION
from bit_transformer.experts import kernels, layout, rich
from bit_transformer.experts.contexts import contexts_of
from bit_transformer.experts.histories import histories, sums, toward
from bit_transformer.experts.layout import Curves, Shape, Stream, Tables
from bit_transformer.experts.numbers import (
    CHANNELS,
    MOST,
    NUMBER_INPUTS,
    PREDICTIONS,
    REGRESSIONS,
    SIZE,
    WIDTHS,
    layout_of,
    neighbours,
)
from bit_transformer.experts.packing import HEADER, packed, unpack
from bit_transformer.experts.rich import OUTPUTS
from bit_transformer.experts.sketch import Sketch, empty, joined, sketched
from bit_transformer.experts.terms import SEEN_POSITION, TEXT_ROWS, Term
from bit_transformer.experts.vectors import LANES
from bit_transformer.machine import free_memory

Features = NDArray[np.int8]
Units = NDArray[np.uint16]
Tell = Callable[[int], None]

FEATURE_ONE = layout.FEATURE_ONE
PIECE = 1 << 15  # units coded between two reports
_MAP_ROWS = 1 << 12
_NO_CODE = np.empty(0, dtype=np.uint8)
_NOT_WANTED: Features = np.empty((0, 0, 0), dtype=np.int8)
_UNITS_PER_HEAD = 4  # units of history per hash head
# Of the changes of two banks' maps, the sum is right where few bits made them, and half of it where many did: between the two.
_OF_BOTH = 2**-0.25
# Of the numbers of a rich bank.
_BOUNDS = {
    "run_logits": (-12, 11.99),
    "mixing": (-1e9, 1e9),
    "visits": (0, 1e9),
    "blend": (-1e9, 1e9),
    "refined": (0, 1),
}
# The most that parts of a stream of numbers may be: the loops round some of them to integers.
_OF_NUMBERS = {
    "moments": 1e30,
    "weights": 1e30,
    "spreads": 2.0**32,
    "errors": 2.0**32,
    "near": 2.0**32,
    "guesses": 2.0**32,
}
_LONGEST_RATE = 1023  # a probability moves by at least 1 / this


def ignore(count: int) -> None:
    """Where nobody wants to know."""


class ExpertBank:
    """Adaptive predictors of bits.

    Args:
        config: which contexts, and how much memory.
        unit_bits: bits of a unit, 1 to 12.
        text_bits: bits after the byte in a unit (1 with parity, else 0), if words are contexts; else None.

    Attributes:
        sketch: of the data it has learned from in training, to recognise that data.

    Raises:
        ConfigError: the bank needs more memory than there is, or is a rich one of units that are no bytes.
    """

    def __init__(self, config: ExpertConfig, unit_bits: int, text_bits: int | None = None) -> None:
        if config.rich and unit_bits not in layout.RICH_UNITS:
            raise ConfigError(
                f"got rich experts for units of {unit_bits} bits; 8 or 9 is needed",
                field="experts.rich",
                tries=(Give("experts.rich", False),),
            )
        self.config, self.unit_bits, self.text_bits = config, unit_bits, text_bits
        self.sketch = empty()
        spec = contexts_of(config, text_bits is not None)
        self.experts = len(spec)
        self.memory = _memory(config, self.experts, unit_bits)
        check_memory(self.memory, config, self.experts)
        heads = max(1 << 10, config.history // _UNITS_PER_HEAD)
        width = config.columns[0] if config.columns else 0
        kind = layout_of(config.numbers, config.channels, config.numbers_begin)
        self.shape = Shape(
            spec,
            unit_bits,
            config.buckets.bit_length() - 1,
            config.match_order,
            (unit_bits - 8 if config.rich else -1) if text_bits is None else text_bits,
            64 - (heads.bit_length() - 1),
            config.rich,
            width,
            _heard(config, self.experts),
            _direct(config, self.experts),
            config.instructions,
            config.markup,
            kind,
            neighbours(kind, width),
        )
        self.tables = _new_tables(config, self.experts, unit_bits, heads)

    @classmethod
    def of(cls, model: ModelConfig) -> ExpertBank:
        """A model's bank, empty.

        Raises:
            ConfigError: the model has no experts, or they need more memory than there is.
        """
        if model.experts is None:
            raise ConfigError("got a model without experts. Try experts={}")
        return cls(model.experts, model.unit_bits, model.text_bits)

    @property
    def features(self) -> int:
        """F: the experts, the match, the bank's own mixture. Of a rich bank: its first contexts, two matches, the mixture."""
        return _features(self.config, self.experts)

    @property
    def count(self) -> int:
        """Number of units learned."""
        return int(self.tables.learned[0])

    def stream(self) -> Stream:
        """A stream before its first unit."""
        K = self.experts
        distances = [1, *self.shape.reach.tolist()]
        distances += [max(row[1:]) for row in self.shape.spec.tolist() if row[0] in (layout.ORDER, layout.SPARSE)]
        if len(self.shape.numbers):
            distances.append(self.shape.width + 2 * int(self.shape.numbers[SIZE] * self.shape.numbers[CHANNELS]))
        ring = max(layout.ABOVE_REACH if self.config.rich else 64, 1 << int(max(distances)).bit_length())
        return _new_stream(K, self.tables.weights.shape[1], ring, self.config.rich, self.shape)

    def read(self, units: NDArray[Any], stream: Stream, *, learn: bool, wanted: bool = True) -> Features:
        """Advance a stream by N units. With `learn`, learn from each bit after its features were computed.

        Args:
            wanted: whether to return features; else an empty array.

        Returns:
            (N, U, F), in 1 / FEATURE_ONE: each expert's logit of P(bit = 1).
        """
        made = np.empty((len(units) if wanted else 0, self.unit_bits, self.features), dtype=np.int8)
        self._read(units.astype(np.uint16), stream, learn, made, kernels.READ, new_coder()[0], _NO_CODE)
        return made

    def probabilities(self, units: NDArray[Any], stream: Stream, *, learn: bool) -> NDArray[np.uint16]:
        """Advance a stream by N units. What the bank's own mixture says of each bit before it is learned: (N, U), P(bit = 1) in 1/65536."""
        none = np.empty(0, dtype=np.int64)
        return self._probabilities(units, stream, learn, stream, none, none, none)[0]

    def variants(
        self,
        units: NDArray[Any],
        stream: Stream,
        begin_V: NDArray[np.int64],
        start_V: NDArray[np.int64],
        replaced: NDArray[Any],
        *,
        learn: bool,
    ) -> NDArray[np.uint16]:
        """Advance a stream by N units, and read on the way what else could stand there, by the bank as it is at that place.

        Args:
            begin_V: (V) ascending, in [0, N]: the unit before which a variant begins; N: after all of them.
            start_V: (V + 1): its units are `replaced[start_V[v] : start_V[v + 1]]`.

        Returns:
            (len(replaced), U): P(bit = 1) of the variants' bits, in 1/65536.
        """
        return self._probabilities(units, stream, learn, self.stream(), begin_V, start_V, replaced)[1]

    def _probabilities(
        self,
        units: NDArray[Any],
        stream: Stream,
        learn: bool,
        aside: Stream,
        begin_V: NDArray[np.int64],
        start_V: NDArray[np.int64],
        replaced: NDArray[Any],
    ) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        """P(bit = 1) of the units, and of what could stand there instead, in 1/65536: (N, U) and (R, U)."""
        one_NU, instead_RU = (np.empty((len(read), self.unit_bits), dtype=np.uint16) for read in (units, replaced))
        given = units.astype(np.uint16), learn, one_NU
        variants = aside, begin_V, start_V, replaced.astype(np.uint16), instead_RU
        kernels.probabilities(self.shape, self.tables, stream, curves(), *given, *variants)
        return one_NU, instead_RU

    def encode(self, units: NDArray[Any], stream: Stream, tell: Tell = ignore) -> NDArray[np.uint8] | None:
        """Code N units with the bank's own predictions, learning each bit. None if the code would be longer than the units in bytes.

        Args:
            tell: called with the number of units after each piece.
        """
        payload = np.empty(-(-len(units) * self.unit_bits // 8) + 1, dtype=np.uint8)
        coder = new_coder()[0]
        for begin in range(0, len(units), PIECE):
            piece = units[begin : begin + PIECE].astype(np.uint16)
            self._read(piece, stream, True, _NOT_WANTED, kernels.ENCODE, coder, payload)
            if coder[PLACE] > len(payload):
                return None
            tell(len(piece))
        kernels.end(coder, payload)
        size = int(coder[PLACE])
        return payload[:size] if size <= len(payload) else None

    def decode(self, payload: NDArray[np.uint8], count: int, stream: Stream, tell: Tell = ignore) -> Units:
        """The inverse of `encode`: `count` units. A damaged code gives other units, not an error."""
        units, coder = np.zeros(count, dtype=np.uint16), new_coder()[0]
        payload = payload.copy()  # compiled loops take arrays that may be written
        for begin in range(0, count, PIECE):
            piece = units[begin : begin + PIECE]
            self._read(piece, stream, True, _NOT_WANTED, kernels.DECODE, coder, payload)
            tell(len(piece))
        return units

    def _read(
        self,
        units: Units,
        stream: Stream,
        learn: bool,
        made: Features,
        mode: int,
        coder: NDArray[np.uint64],
        payload: NDArray[np.uint8],
    ) -> None:
        kernels.read(self.shape, self.tables, stream, curves(), units, learn, made, mode, coder, payload)

    def peek(self, bits_BT: NDArray[Any]) -> Features:
        """Features of rows of bits, each without context, without learning: features_BTF. The last unit may be partial."""
        made = [self.read(unit_N, self.stream(), learn=False) for unit_N in pack_units(bits_BT, self.unit_bits)]
        return np.stack(made).reshape(len(made), -1, self.features)[:, : bits_BT.shape[1]]

    def note(self, data: NDArray[np.uint8]) -> None:
        """Add bytes that were learned from to the sketch."""
        self.sketch = sketched(data, self.sketch)

    def nodes(self, stream: Stream, node: int, patch_bits: int) -> Features:
        """Features at all nodes of the next patch: (V, F), row 0 unused.

        Args:
            node: `(1 << j) | prefix`, the j bits of the unit before the patch; 1 at a unit's start.
        """
        made = np.zeros((1, 1 << patch_bits, self.features), dtype=np.int8)
        kernels.nodes(self.shape, self.tables, stream, curves(), node, patch_bits, made)
        return made[0]

    def open_unit(self, stream: Stream, *, learn: bool) -> OpenUnit:
        """The next unit of a stream, bit by bit: for a decoder, which gets a bit only after predicting it."""
        return OpenUnit(self, stream, learn)

    # ---- state ----

    def copy(self) -> ExpertBank:
        """A copy with its own tables."""
        return self.copies(1)[0][0]

    def copies(self, count: int) -> tuple[list[ExpertBank], Tables]:
        """Copies with their own tables, and these tables with a leading axis of `count`."""
        stacked = Tables(*(_stacked(table, count) for table in self.tables))
        banks = []
        for index in range(count):
            other = ExpertBank.__new__(ExpertBank)
            other.__dict__.update(self.__dict__)
            rows = zip(stacked, self.tables, strict=True)
            other.tables = Tables(*(row[index][: len(table)] for row, table in rows))
            banks.append(other)
        return banks, stacked

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """All tables, by name; views, not copies."""
        return {**self.tables._asdict(), "sketch": self.sketch.view(np.int64)}

    def packed(self) -> dict[str, NDArray[Any]]:
        """The same in a fraction of the size, for files; `load_state_dict` takes either."""
        return {**packed(self.tables, self._new_tables(), self.shape), "sketch": self.sketch.view(np.int64)}

    def _new_tables(self) -> Tables:
        return _new_tables(self.config, self.experts, self.unit_bits, len(self.tables.heads))

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Load the tables of another bank of the same configuration, packed or not.

        Raises:
            CheckpointError: the other bank has another patch size, alignment or configuration, or what was packed is damaged. This bank is as
                it was then.
        """
        if HEADER in state:
            tables = self._new_tables()
            unpack(state, tables, self.shape)
            _check_floats(tables)
            self.tables, self.sketch = tables, _sketch_of(state)
            return
        for name, table in self.tables._asdict().items():
            given = state.get(name, table if not table.size else None)  # files have no empty tables
            if given is None or given.shape != table.shape or given.dtype != table.dtype:
                got = "nothing" if given is None else f"{given.shape} of {given.dtype}"
                raise CheckpointError(
                    f"got {got} for the bank's {name}; {table.shape} of {table.dtype} is needed: units of {self.unit_bits} "
                    f"bits, {self.experts} contexts, {self.config.buckets} buckets. Try the bank it was saved with"
                )
        _check_floats(
            self.tables._replace(**{name: state[name] for name, table in self.tables._asdict().items() if table.size})
        )
        for name, table in self.tables._asdict().items():
            if table.size:
                table[...] = state[name]
        self.sketch = _sketch_of(state)

    def digest(self) -> str:
        """SHA-256 of all tables."""
        found = hashlib.sha256()
        for table in self.tables:
            found.update(table.data)
        return found.hexdigest()

    def merge(self, other: ExpertBank, since: ExpertBank | None = None) -> None:
        """Learn what another bank of the same configuration has learned, about as if this one had read the other's data after its own.

        A history goes on with the fewest bits that lead to the other's. Of tables, what one bank has left as it was is the other's. Else
        probabilities after a history are averaged by use and mixers by units learned, and the changes of a light bank's final maps are added and shrunk.

        Args:
            since: the bank of which both began as copies, if they did. What it knew is not learned again. Default: both began empty.

        Raises:
            CheckpointError: banks of different configurations, or `since` has learned more than one of the two.
        """
        for bank in (other, since or other):
            if (self.config, self.unit_bits, self.text_bits) != (bank.config, bank.unit_bits, bank.text_bits):
                raise CheckpointError(
                    "got banks of different configurations; merging needs the same one. Try one config for both"
                )
        before = 0 if since is None else since.count
        if before > min(self.count, other.count):
            raise CheckpointError(
                f"got banks that have learned {self.count:,} and {other.count:,} units since one with {before:,}; both must have learned "
                f"more. Try since=None"
            )
        mine, theirs, begun = self.tables, other.tables, self._new_tables() if since is None else since.tables
        known = histories()
        kernels.merge_slots(
            mine.slots,
            theirs.slots,
            begun.slots[: 0 if since is None else None],
            known.after,
            toward(),
            sums(),
            known.counts.sum(1),
        )
        fraction = (other.count - before) / max(1, self.count + other.count - 2 * before)
        mine.chance[...] = _either(mine.chance, theirs.chance, begun.chance, _merged_probabilities)
        for name in ("first", "match", "weights", "last"):
            a, b, c = (getattr(tables, name) for tables in (mine, theirs, begun))
            a[...] = _either(a, b, c, lambda a, b: np.rint(a + (b.astype(np.float64) - a) * fraction))
        start = begun.maps.astype(np.float64)
        mine.maps[...] = _either(
            mine.maps,
            theirs.maps,
            begun.maps,
            lambda a, b: np.clip(np.rint(start + (a + (b - 2 * start)) * _OF_BOTH), 0, 65535),
        )
        if self.config.rich:
            _merge_rich(mine, theirs, begun, fraction, self.count - before)
        self.sketch = joined(self.sketch, other.sketch)
        ring = len(theirs.history)
        first = max(before, other.count - ring)
        mine.learned[0] += first - before
        units = theirs.history[np.arange(first, other.count) % ring]
        kernels.remember(self.shape, mine, units)


class OpenUnit:
    """A unit that is decoded bit by bit, with the same result as `ExpertBank.read`. Call `predict_bit` and `learn_bit` for each bit, then `close`.

    Args:
        learn: whether the bank learns each bit.
    """

    def __init__(self, bank: ExpertBank, stream: Stream, learn: bool) -> None:
        self.bank, self.stream, self.learn = bank, stream, learn
        self._state = np.zeros(kernels.STATE, dtype=np.int64)
        kernels.begin_unit(bank.shape, bank.tables, stream, self._state, learn)

    def predict_bit(self) -> Features:
        """Features of the next bit: (F,)."""
        made = np.empty((1, 1, self.bank.features), dtype=np.int8)
        kernels.predict_bit(self.bank.shape, self.bank.tables, self.stream, curves(), self._state, self.learn, made)
        return made[0, 0]

    def learn_bit(self, bit: int) -> None:
        """Give the value of the bit predicted last."""
        kernels.learn_bit(self.bank.shape, self.bank.tables, self.stream, curves(), self._state, bit, self.learn)

    def close(self) -> None:
        """Call after the last bit: the stream advances past the unit."""
        kernels.end_unit(self.bank.shape, self.bank.tables, self.stream, self._state, self.learn)


@lru_cache(maxsize=16)
def no_experts(unit_bits: int) -> tuple[Shape, Tables, Stream]:
    """Tables and a stream that are never read, with a leading axis, for loops that also serve models without experts."""
    config = ExpertConfig(orders=(1,), words=False, buckets=1024, history=1024)
    tables, stream = _new_tables(config, 1, 1, 1024), _new_stream(1, inputs=8, recent=64)
    none = np.zeros(0, dtype=np.int64)
    return (
        Shape(
            contexts_of(config, False),
            unit_bits,
            10,
            7,
            -1,
            54,
            False,
            0,
            0,
            _direct(config, 1),
            False,
            False,
            none,
            none,
        ),
        Tables(*(table[None] for table in tables)),
        Stream(*(part[None] for part in stream)),
    )


def feature_count(model: ModelConfig) -> int:
    """F of a model's bank, without making one; 0 without experts."""
    return _features(model.experts, len(contexts_of(model.experts, model.expert_words))) if model.experts else 0


def pack_units(bits: NDArray[Any], unit_bits: int) -> Units:
    """Pack bits into units, first bit most significant; the last unit is padded with zeros.

    Args:
        bits: (..., T) zeros and ones.

    Returns:
        (..., N).
    """
    T = bits.shape[-1]
    N = -(-T // unit_bits)
    padded = np.zeros((*bits.shape[:-1], N * unit_bits), dtype=np.uint16)
    padded[..., :T] = bits
    place = (1 << np.arange(unit_bits - 1, -1, -1)).astype(np.uint16)
    return (padded.reshape(*bits.shape[:-1], N, unit_bits) * place).sum(-1, dtype=np.uint16)


def unpack_units(unit_BN: NDArray[Any], unit_bits: int) -> Bits:
    """The bits of rows of units, first bit most significant: (B, N U)."""
    bits_BNU = unit_BN[..., None] >> np.arange(unit_bits - 1, -1, -1) & 1
    return bits_BNU.reshape(len(unit_BN), -1).astype(np.uint8)


def memory_bytes(model: ModelConfig) -> int:
    """Memory of a model's bank, before it is made; 0 without experts."""
    if model.experts is None:
        return 0
    return config_memory(model.experts, model.unit_bits, model.expert_words)


def config_memory(config: ExpertConfig, unit_bits: int, words: bool) -> int:
    """Memory of a bank, before it is made."""
    return _memory(config, len(contexts_of(config, words)), unit_bits)


def _memory(config: ExpertConfig, experts: int, unit_bits: int) -> int:
    heads = max(1 << 10, config.history // _UNITS_PER_HEAD) * 4
    shared = (experts * config.buckets + 1) * layout.BUCKET + config.history * 2 + heads + experts * 1024
    if not config.rich:
        return shared + _sets(unit_bits) * _padded(experts) * 4 + 2 * _MAP_ROWS * layout.MAP_KNOTS * 2
    found = (experts + 4 * layout.DIRECT) * config.buckets * 4 + heads + (3 * 4 + 8 + 3 * 8 << 16)
    mixers = (
        rich.MIXER_ROWS * (_inputs(experts, bool(config.numbers)) + 1)
        + (2 << unit_bits) * rich.OUTPUTS
        + experts * layout.RUN_ROWS
    )
    return shared + found + mixers * 4 + layout.REFINED * layout.REFINED_ROWS * layout.MAP_KNOTS * 4


def check_memory(needed: int, config: ExpertConfig, experts: int) -> None:
    """Refuse a bank that does not fit into memory.

    Raises:
        ConfigError: more bytes than are free.
    """
    free = free_memory()
    if free is not None and needed > free:
        fits = config.buckets
        while fits > 1 << 10 and experts * fits * layout.BUCKET > free // 2:
            fits //= 2
        raise ConfigError(
            f"got experts.buckets={config.buckets}, which needs {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free. "
            f"Try experts.buckets={fits}, experts.history={min(config.history, 1 << 22)}"
        )


def _padded(experts: int) -> int:
    """Mixer inputs: experts, match, order 0, a constant; padded to whole vectors."""
    return -(-(experts + 3) // 8) * 8


def _inputs(experts: int, numbers: bool) -> int:
    """Inputs of a rich bank's mixers, padded."""
    more = layout.OTHERS + (NUMBER_INPUTS if numbers else 0)
    return -(-(layout.INPUTS * experts + more) // LANES) * LANES


def _features(config: ExpertConfig, experts: int) -> int:
    return _heard(config, experts) + (3 if config.rich else 2)


def _heard(config: ExpertConfig, experts: int) -> int:
    """How many contexts are features."""
    return min(layout.HEARD, experts) if config.rich else experts


def _direct(config: ExpertConfig, experts: int) -> NDArray[np.int64]:
    """Contexts of a rich bank with probabilities of their own: four orders, and the first two that are no orders."""
    if not config.rich:
        return np.zeros(0, dtype=np.int64)
    orders = len(config.orders)
    wanted = [*range(min(4, orders)), *range(orders, experts), *range(min(4, orders), orders)]
    return np.array([wanted[d % len(wanted)] for d in range(layout.DIRECT)], dtype=np.int64)


def _sets(unit_bits: int) -> int:
    return (1 << unit_bits) + 512


def _new_stream(experts: int, inputs: int, recent: int, rich: bool = False, shape: Shape | None = None) -> Stream:
    more = int(rich)
    C = R = N = P = errors = 0
    spread = 0.0
    if shape is not None and len(shape.numbers):
        size = int(shape.numbers[SIZE])
        C, R, N, P = int(shape.numbers[CHANNELS]), REGRESSIONS, MOST, PREDICTIONS
        errors, spread = 1 << (shape.width // size + 2 * C).bit_length(), 256.0**size / 64
    return Stream(
        place=np.zeros(7, dtype=np.int64),
        recent=np.zeros(recent, dtype=np.uint16),
        hashes=np.zeros(experts, dtype=np.uint64),
        buckets=np.zeros(experts, dtype=np.int64),
        inputs=np.zeros(inputs, dtype=np.int32),
        known=np.zeros(experts, dtype=np.int64),
        text=np.zeros(more * TEXT_ROWS, dtype=np.int64),
        terms=np.zeros(more * (len(Term) + 1), dtype=np.int64),
        entries=np.zeros(more * experts, dtype=np.int64),
        run_rows=np.zeros(more * experts, dtype=np.int64),
        lines=np.zeros(more * layout.DIRECT, dtype=np.int64),
        x=np.zeros(more * _inputs(experts, C > 0), dtype=np.float32),
        rows=np.zeros(more * layout.MIXERS, dtype=np.int64),
        outputs=np.zeros(more * OUTPUTS, dtype=np.float32),
        made=np.zeros(more * 3, dtype=np.float32),
        at=np.zeros(more * 8, dtype=np.int64),
        moments=np.zeros((C, R, N + 1, N)),
        weights=np.zeros((C, R, N)),
        spreads=np.full((C, P), spread),
        errors=np.zeros((errors, P)),
        near=np.zeros(N + (N > 0)),
        guesses=np.zeros(P),
        left=np.zeros(P),
        wide=np.ones((P, WIDTHS)),
        factor=np.zeros((N, N)),
    )


def _new_tables(config: ExpertConfig, experts: int, unit_bits: int, heads: int) -> Tables:
    counts = histories().counts
    guess = (counts[:, 1] + 0.4) / (counts.sum(1) + 0.8)
    probability = (np.rint(guess * ((1 << 22) - 1)).astype(np.uint32) << 10)[None].repeat(experts, 0)
    nodes = 1 << unit_bits
    light = not config.rich
    weights = np.zeros((light * _sets(unit_bits), _padded(experts)), dtype=np.int32)
    weights[:, :experts] = 3 * (1 << 16) // (experts or 1)
    weights[:, experts] = 1 << 14
    last = np.zeros((light * nodes, 4), dtype=np.int32)
    last[:, :3] = (1 << 16) // 3
    knots = (np.arange(layout.MAP_KNOTS) - (layout.MAP_KNOTS - 1) / 2) * layout.MAP_STEP / layout.LOGIT_ONE
    maps = np.empty((2, light * _MAP_ROWS, layout.MAP_KNOTS), dtype=np.uint16)
    maps[...] = np.rint(65536 / (1 + np.exp(-knots)))
    return Tables(
        slots=_aligned_zeros((experts * config.buckets + 1) * layout.BUCKET),
        chance=np.ascontiguousarray(probability),
        first=np.full(nodes, 1 << 15, dtype=np.uint16),
        match=np.full(layout.MATCH_MAX + 1, 3 << 14, dtype=np.uint16),
        weights=weights,
        last=last,
        maps=_aligned_copy(maps),
        history=np.zeros(config.history, dtype=np.uint16),
        heads=np.zeros(heads, dtype=np.int32),
        learned=np.zeros(1, dtype=np.int64),
        **(_rich_tables(config, experts, unit_bits, heads) if config.rich else _no_rich_tables(experts)),
    )


def _check_floats(tables: Tables) -> None:
    """Refuse numbers that no learning leads to: the loops look tables up by sums of them.

    Raises:
        CheckpointError: not finite, or outside their bounds.
    """
    for name, (low, high) in _BOUNDS.items():
        table = getattr(tables, name)
        if not ((table >= low) & (table <= high)).all():  # NaN is neither
            raise CheckpointError(
                f"the experts' {name} are damaged: got a number that is not within {low:g} and {high:g}. Try an earlier one"
            )


def _rich_tables(config: ExpertConfig, experts: int, unit_bits: int, heads: int) -> dict[str, NDArray[Any]]:
    """What only a rich bank has."""
    K, M = experts, _inputs(experts, bool(config.numbers))
    mixing = np.zeros((rich.MIXER_ROWS, M), dtype=np.float32)
    mixing[:, :K] = 4 / K
    mixing[:, (layout.INPUTS * K, layout.INPUTS * K + 2)] = 0.2
    blend = np.zeros((2 << unit_bits, rich.OUTPUTS), dtype=np.float32)
    blend[:, : layout.MIXERS] = 1 / layout.MIXERS
    counts = np.arange(layout.RUN_MAX + 1)
    run_logits = np.zeros((K, layout.RUN_ROWS))
    run_logits[:, 2:64] = np.repeat(np.minimum(np.log1p(counts[1:]) + 0.5, 4), 2)
    run_logits[:, 64:] = 0.5
    knots = (np.arange(layout.MAP_KNOTS) - (layout.MAP_KNOTS - 1) / 2) / 2
    refined = _aligned_zeros(layout.REFINED * layout.REFINED_ROWS * layout.MAP_KNOTS * 4).view(np.float32)
    refined.reshape(-1, layout.MAP_KNOTS)[...] = _exact(1 / (1 + np.exp(-knots)))
    return {
        "runs": np.zeros(K * config.buckets, dtype=np.uint32),
        "run_logits": _exact(run_logits),
        "direct": _aligned_copy(np.full(layout.DIRECT * config.buckets * 4, 1 << 31, dtype=np.uint32)),
        "mixing": _aligned_copy(mixing.reshape(-1)),
        "visits": np.zeros(rich.MIXER_ROWS, dtype=np.float32),
        "blend": _aligned_copy(blend.reshape(-1)),
        "refined": refined,
        "far_heads": np.zeros(heads, dtype=np.int32),
        "far": np.full(rich.FAR_MAX + 1, 50000, dtype=np.uint16),
        "followed": np.zeros(3 << 16, dtype=np.uint32),
        "seen": np.zeros(1 << 16, dtype=np.int64),
        "next_words": np.zeros(3 << 16, dtype=np.int64),
    }


# What only a rich bank has, with the elements' types.
_RICH_TABLES = {
    "runs": np.uint32,
    "run_logits": np.float32,
    "direct": np.uint32,
    "mixing": np.float32,
    "visits": np.float32,
    "blend": np.float32,
    "refined": np.float32,
    "far_heads": np.int32,
    "far": np.uint16,
    "followed": np.uint32,
    "seen": np.int64,
    "next_words": np.int64,
}


def _no_rich_tables(experts: int) -> dict[str, NDArray[Any]]:
    """The same tables of a light bank: empty."""
    return {
        name: np.zeros((experts, 0) if name == "run_logits" else 0, dtype=kind) for name, kind in _RICH_TABLES.items()
    }


def _exact(table: NDArray[Any]) -> NDArray[np.float32]:
    """Rounded to multiples of 2^-20, so that all machines have the same numbers, however they compute logarithms."""
    return (np.rint(table * (1 << 20)) / (1 << 20)).astype(np.float32)


def _aligned_zeros(size: int) -> NDArray[np.uint8]:
    """Zeros that start at a cache line, so that four buckets share one."""
    whole = np.zeros(size + 64, dtype=np.uint8)
    begin = -whole.ctypes.data % 64
    return whole[begin : begin + size]


def _aligned_copy(table: NDArray[Any]) -> NDArray[Any]:
    copy = _aligned_zeros(table.nbytes).view(table.dtype).reshape(table.shape)
    copy[...] = table
    return copy


def restore_stream(stream: Stream, kept: Mapping[str, NDArray[Any]]) -> None:
    """Put a stream where another one of the same bank stood; all else of it is made anew for every unit.

    Streams of older files have fewer rows of `text`; those that they lack are 0.

    Raises:
        CheckpointError: a part is missing or of another size.
    """
    for name in ("place", "recent", "text", *_OF_NUMBERS):
        part, old = getattr(stream, name), kept.get(name)
        size = 0 if old is None else old.size
        if size > part.size or (name != "text" and size != part.size):
            raise CheckpointError(
                f"got {size:,} numbers of a stream's {name}; {part.size:,} are needed. Try starting over"
            )
        if old is not None and name in _OF_NUMBERS and not (np.abs(old) <= _OF_NUMBERS[name]).all():  # NaN is not
            raise CheckpointError(
                f"a stream's {name} are damaged: got a number beyond {_OF_NUMBERS[name]:g}. Try starting over"
            )
        part[...] = 0
        if old is not None:
            part.reshape(-1)[:size] = old.reshape(-1)


def _sketch_of(state: Mapping[str, NDArray[Any]]) -> Sketch:
    return np.array(state.get("sketch", ()), dtype=np.int64).view(np.uint64)  # older files have none


def _stacked(table: NDArray[Any], count: int) -> NDArray[Any]:
    """Copies of a table along a new leading axis, each at the start of a cache line: a flat table is padded with zeros for that."""
    if not table.size:
        return np.zeros((count, *table.shape), dtype=table.dtype)
    padding = -table.nbytes % 64 // table.itemsize if table.ndim == 1 else 0
    row = table.nbytes + padding * table.itemsize
    stacked = _aligned_zeros(count * row).view(table.dtype).reshape(count, -1)
    stacked[:, : table.size] = table.reshape(-1)
    return stacked.reshape(count, *table.shape) if table.ndim > 1 else stacked


def _either(
    mine: NDArray[Any],
    theirs: NDArray[Any],
    since: NDArray[Any],
    both: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]],
) -> NDArray[Any]:
    """What one bank has left as it was is the other's; what both have changed is merged."""
    return np.where(theirs == since, mine, np.where(mine == since, theirs, both(mine, theirs)))


def _merge_rich(mine: Tables, theirs: Tables, begun: Tables, fraction: float, moved: int) -> None:
    """The tables that only rich banks have. Of what followed contexts and words, and where words were seen, the other bank's is taken: it came
    later. Direct probabilities are averaged by use, other numbers by units learned.

    Args:
        fraction: the other bank's share of what was learned. `moved`: by how much its positions are later in the merged bank.
    """
    for name in ("run_logits", "mixing", "blend", "refined", "far"):
        a, b, c = (getattr(tables, name) for tables in (mine, theirs, begun))
        a[...] = _either(a, b, c, lambda a, b: a + (b.astype(np.float64) - a) * fraction)
    mine.visits[...] += theirs.visits - begun.visits
    mine.direct[...] = _either(
        mine.direct, theirs.direct, begun.direct, lambda a, b: _merged_probabilities(a, b, rich.DIRECT_MAX)
    )
    for name in ("runs", "followed", "next_words"):
        a, b, c = (getattr(tables, name) for tables in (mine, theirs, begun))
        a[...] = np.where(b == c, a, b)
    seen = theirs.seen + (moved << SEEN_POSITION)
    mine.seen[...] = np.where(theirs.seen == begun.seen, mine.seen, seen)


def _merged_probabilities(mine: NDArray[Any], theirs: NDArray[Any], most: int = 1023) -> NDArray[np.uint32]:
    p, n = (mine >> 10).astype(np.float64), (mine & 1023).astype(np.float64)
    q, m = (theirs >> 10).astype(np.float64), (theirs & 1023).astype(np.float64)
    total = np.maximum(n + m, 1)
    both = np.where(n + m > 0, (p * n + q * m) / total, p)
    return np.rint(both).astype(np.uint32) << np.uint32(10) | np.minimum(n + m, most).astype(np.uint32)


@lru_cache(maxsize=1)
def curves() -> Curves:
    """The look-up tables of all banks."""
    probability = (np.arange(4096) + 0.5) / 4096
    stretch = np.rint(layout.LOGIT_ONE * np.log(probability / (1 - probability))).astype(np.int32)
    logit = np.arange(-layout.LOGIT_MAX - 1, layout.LOGIT_MAX + 1) / layout.LOGIT_ONE
    squash = np.clip(np.rint(65536 / (1 + np.exp(-logit))), 1, 65535).astype(np.int32)
    uses = np.minimum(np.arange(1024), _LONGEST_RATE)
    rates = np.rint(65536 / (uses + 1.6)).astype(np.int32)
    middles = (np.arange(squash.size) + 0.5) / layout.LOGIT_ONE - (layout.LOGIT_MAX + 1) / layout.LOGIT_ONE
    return Curves(
        stretch,
        squash,
        histories().after,
        rates,
        _exact(np.log(probability / (1 - probability))),
        _exact(1 / (1 + np.exp(-middles))),
        (histories().counts.min(1) == 0).astype(np.float32),
    )
