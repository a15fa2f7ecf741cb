"""A decoding session: the state of B streams that are decoded together.

    session = Session(model)
    session.advance(prompt_patches)      # any number of complete patches
    logits = session.node_logits()       # of the next patch: sample it, then advance by it

An *engine* computes the trunk's steps. `torch` runs everywhere. `portable` runs float32 on a processor: many times faster, and with the same
bits on every machine. Their results agree up to rounding. Only experts that learn while bits are drawn differ: in the portable engine's loop they learn each
bit before the next is predicted, as in evaluation; elsewhere they learn a unit when it is complete.
"""

# Shapes: B streams, T bits, N patches or units, U bits of a unit, P bits of a patch, R < P bits of the incomplete patch, D model width,
# V = 2^P nodes, F features.
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from bit_transformer.coding.arithmetic import PLACE, new_coder
from bit_transformer.decoding import portable_engine
from bit_transformer.decoding.bit_loop import GIVEN, Loop, begin_codes, end_codes, run
from bit_transformer.decoding.expert_streams import ExpertStreams
from bit_transformer.decoding.portable_engine import PortableEngine
from bit_transformer.decoding.torch_engine import TorchEngine
from bit_transformer.errors import BitStreamError, ConfigError
from bit_transformer.experts.bank import curves, no_experts
from bit_transformer.experts.kernels import STATE
from bit_transformer.experts.layout import Shape, Stream, Tables
from bit_transformer.model import BitTransformerLM, as_pair
from bit_transformer.nn.patching import pack_patches

NOT_FINITE = "got NaN or infinity among the model's logits; sampling needs finite ones. Try an earlier checkpoint"
EngineName = Literal["auto", "torch", "portable"]


@dataclass(frozen=True)
class Codes:
    """Codes of B streams, which a run writes or reads.

    Attributes:
        coders: (B, STATE), the coders' states. `payloads`: (B, bytes). `sizes`: (B), room of each payload, or bytes in it.
        parity: (B, 2), see `bit_loop.Loop`.
    """

    coders: NDArray[np.uint64]
    payloads: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    parity: NDArray[np.int64]

    @classmethod
    def to_write(cls, sizes: list[int], *, parity: bool = False) -> Codes:
        """Room for codes of at most so many bytes, of bytes with or without parity."""
        count = len(sizes)
        payloads = np.zeros((count, max(sizes)), dtype=np.uint8)
        phase = np.full((count, 2), 0 if parity else -1, dtype=np.int64)
        return cls(new_coder(count), payloads, np.array(sizes, dtype=np.int64), phase)

    @classmethod
    def to_read(cls, payloads: list[bytes], *, parity: bool = False) -> Codes:
        """Given codes, of bytes with or without parity."""
        codes = cls.to_write([len(payload) for payload in payloads], parity=parity)
        for row, payload in zip(codes.payloads, payloads, strict=True):
            row[: len(payload)] = np.frombuffer(payload, dtype=np.uint8)
        begin_codes(codes.coders, codes.payloads, codes.sizes)
        return codes

    def written(self) -> list[bytes | None]:
        """End the codes that were written; None for those that did not fit."""
        end_codes(self.coders, self.payloads)
        sizes = self.coders[:, PLACE].astype(np.int64).tolist()
        return [
            row[:size].tobytes() if size <= most else None
            for row, size, most in zip(self.payloads, sizes, self.sizes.tolist(), strict=True)
        ]


class Engine(Protocol):
    """Computes the steps of a session.

    Attributes:
        capacity: positions of a window, including the start symbol. `length`: positions since the window began.
        state_BD: the trunk's state that predicts the next patch.
    """

    capacity: int

    @property
    def length(self) -> int: ...  # noqa: D102

    @property
    def state_BD(self) -> Tensor: ...  # noqa: D102

    def extend(self, input_BN: Tensor) -> Tensor:
        """Continue every stream by N symbols. Returns the states that predict what follows each, h_BND."""

    def node_logits(self, features_BVF: NDArray[np.int8] | None) -> NDArray[np.float32]:
        """Logits at every node of the next patch: (B, V). With experts, their features at every node are given."""

    def forget(self, count: int) -> None:
        """Drop the `count` oldest patches of the window; the rest of the cache is kept, not recomputed."""

    def select(self, row_B: NDArray[np.int64]) -> None:
        """Replace each stream's state by that of stream `row_B[b]`."""


def check_engine(model: BitTransformerLM, name: str = "auto") -> None:
    """Check an engine's name.

    Raises:
        ConfigError: an unknown name, or an engine that cannot run the model.
    """
    if name not in get_args(EngineName):
        raise ConfigError(f"got engine={name!r}; it must be one of {', '.join(get_args(EngineName))}. Try auto")
    if name == "portable" and not portable_engine.can_run(model):
        weight = model.head.weight
        raise ConfigError(
            f"got engine='portable' for a model of {weight.dtype} on {weight.device.type}; it runs float32 on a CPU, without dropout. "
            f"Try engine='torch'"
        )


def engine_for(model: BitTransformerLM, batch: int, name: str = "auto") -> Engine:
    """The engine of that name for so many streams; `auto`: the fastest that can run the model.

    Raises:
        ConfigError: as of `check_engine`.
    """
    check_engine(model, name)
    portable = name != "torch" and portable_engine.can_run(model)
    return PortableEngine(model, batch) if portable else TorchEngine(model, batch)


class Session:
    """The state of B streams that are decoded together, all at the same position.

    Args:
        model: an autoregressive model; in evaluation mode, unless dropout should be active.
        batch: B.
        engine: what computes the steps.

    Attributes:
        prefix_BR: the bits of the incomplete patch.
        experts: the experts' state in each stream, if the model has experts.

    Raises:
        ConfigError: a diffusion model, or an engine that cannot run these streams.
    """

    def __init__(self, model: BitTransformerLM, batch: int = 1, *, engine: str = "auto") -> None:
        model.check_causal()
        self.model, self.engine = model, engine_for(model, batch, engine)
        device = model.head.weight.device
        start_B1 = torch.full((batch, 1), model.trunk.start, device=device)
        self.prefix_BR = torch.zeros(batch, 0, dtype=torch.uint8, device=device)
        self.engine.extend(start_B1)
        self.experts = ExpertStreams(model.bank, batch, model.config.patch_bits) if model.mixer else None

    @property
    def room(self) -> int:
        """Free patches of the window."""
        return self.engine.capacity - self.engine.length

    @property
    def state_BD(self) -> Tensor:
        """The trunk's state that predicts the incomplete patch."""
        return self.engine.state_BD

    def step(self, bits_BT: Tensor | NDArray[np.uint8]) -> Tensor:
        """Continue the streams by any number of bits.

        Returns:
            (B, T, 2): `[:, t]` are the log-odds of what follows bit t, the same as from one `forward` over all bits.

        Raises:
            BitStreamError: invalid bits, or the window is too full (see `slide`).
        """
        model, P, T = self.model, self.model.config.patch_bits, bits_BT.shape[1]
        bits_BT = torch.as_tensor(bits_BT, device=self.state_BD.device)
        model.check_bits(bits_BT)
        old = self.prefix_BR.shape[1]
        open_BR = torch.cat((self.prefix_BR, bits_BT.to(torch.uint8)), dim=1)
        whole = open_BR.shape[1] // P * P
        patch_BN = pack_patches(open_BR[:, :whole], P)
        padded_BP = F.pad(open_BR[:, whole:], (0, P - (open_BR.shape[1] - whole)))
        features_BTF = None
        if self.experts is not None:
            ahead_BT = torch.cat((open_BR[:, :whole], padded_BP), dim=1)
            features_BTF = torch.from_numpy(self.experts.peek(ahead_BT.cpu().numpy())).to(bits_BT.device)
        state_BND = self.state_BD[:, None]
        if whole:
            state_BND = torch.cat((state_BND, self.advance(patch_BN)), dim=1)
        self.prefix_BR = open_BR[:, whole:]
        known_BN = torch.cat((patch_BN, pack_patches(padded_BP, P)), dim=1)
        z_BNP = model.path_logits(state_BND, known_BN, features_BTF)
        return as_pair(z_BNP.flatten(1)[:, old + 1 : old + 1 + T])

    def advance(self, patch_BN: Tensor) -> Tensor:
        """Continue by complete patches, at a patch boundary. Returns the states that predict what follows each, h_BND.

        Raises:
            BitStreamError: the window is too full.
        """
        if patch_BN.shape[1] > self.room:
            raise BitStreamError(
                f"got {patch_BN.shape[1]} more patches; {self.room} of the window's {self.engine.capacity - 1} are free. "
                f"Try a model with a larger max_seq_len, or infer_long, which slides the window"
            )
        h_BND = self.engine.extend(patch_BN)
        if self.experts is not None:
            self.experts.advance(patch_BN.cpu().numpy())
        return h_BND

    @np.errstate(over="ignore", invalid="ignore")  # for weights that are not finite, `node_logits` raises an error
    def feed(self, patch_BN: Tensor, *, long: bool) -> None:
        """Advance by any number of patches. With `long` a full window slides; without, all patches must fit."""
        while patch_BN.shape[1]:
            if not self.room and long:
                self.slide(max(1, self.model.config.max_patches // 2))
            room = self.room if long else patch_BN.shape[1]
            self.advance(patch_BN[:, :room])
            patch_BN = patch_BN[:, room:]

    def node_logits(self) -> NDArray[np.float32]:
        """Logits at every node of the next patch, for each stream: (B, V).

        Raises:
            BitStreamError: a logit is NaN or infinite.
        """
        logit_BV = self.engine.node_logits(self.experts.nodes() if self.experts is not None else None)
        if not np.isfinite(logit_BV).all():
            raise BitStreamError(NOT_FINITE)
        return logit_BV

    @property
    def runs_whole_units(self) -> bool:
        """Whether `run` can go on from here: the engine is `portable`, and neither a patch nor a unit is open."""
        whole = not self.prefix_BR.shape[1] and (self.experts is None or not self.experts.open_BR.shape[1])
        return whole and isinstance(self.engine, PortableEngine)

    @property
    def unit_bits(self) -> int:
        """Bits of what `run` advances by: a unit of the experts, or a patch."""
        return self.experts.unit_bits if self.experts is not None else self.model.config.patch_bits

    def bank_parts(self) -> tuple[Shape, Tables, Stream]:
        """What compiled loops read of the experts, with a leading axis; without experts, parts that are never read."""
        if self.experts is None:
            return no_experts(self.unit_bits)
        return self.experts.banks[0].shape, self.experts.tables, self.experts.stream

    def run(
        self,
        unit_NB: NDArray[np.int64],
        what: int = GIVEN,
        *,
        counts: NDArray[np.int64] | None = None,
        draws: NDArray[np.float64] | None = None,
        codes: Codes | None = None,
        wanted: bool = False,
        rate: float = 0.0,
    ) -> NDArray[np.float32]:
        """Advance every stream by N units in one compiled loop; full windows slide. Experts learn where `experts.learning` says so.

        Args:
            unit_NB: read; or written, if they are drawn or decoded.
            what: is done with each bit: `GIVEN`, `DRAWN`, `ENCODED`, `DECODED`.
            counts: units of each stream, if not N. After its last unit a stream's state has no meaning.
            draws: (N, U, B), of a logistic distribution, for `DRAWN`.
            codes: the codes of all streams, for `ENCODED` and `DECODED`.
            wanted: whether to return logits.
            rate: step size by which head and mixer learn from each bit, in a copy that belongs to this session; 0: they do not. One stream.

        Returns:
            (N, U, B): logits of P(bit = 1), if wanted; else empty.

        Raises:
            BitStreamError: a logit is not a number.
            StreamOverflow: a stream of a reversible trunk left the range of its integers.
        """
        assert self.runs_whole_units and isinstance(self.engine, PortableEngine)
        (N, B), U = unit_NB.shape, self.unit_bits
        experts, engine = self.experts, self.engine
        if rate:
            engine.adapt()
        features = experts.banks[0].features if experts is not None else 1
        codes = codes or Codes.to_write([0] * B)
        loop = Loop(
            units=unit_NB,
            counts=np.full(B, N, dtype=np.int64) if counts is None else counts,
            learns=np.array(experts.learning if experts is not None else [False] * B),
            logits=np.empty((N if wanted else 0, U, B), dtype=np.float32),
            draws=np.empty((0, U, B)) if draws is None else draws,
            coders=codes.coders,
            payloads=codes.payloads,
            payload_sizes=codes.sizes,
            parity=codes.parity,
            rate=np.float32(rate),
            opened=np.zeros((B, STATE), dtype=np.int64),
            features=np.zeros((B, 1, 1, features), dtype=np.int8),
            symbols=np.zeros(B, dtype=np.int64),
            failed=np.zeros(1, dtype=np.int64),
        )
        shape, tables, stream = self.bank_parts()
        engine.state.reach[0] = 0
        run(shape, tables, stream, curves(), engine.plan, engine.weights, engine.state, engine.capacity, loop, what)
        engine.check_reach()
        if loop.failed[0]:
            raise BitStreamError(NOT_FINITE)
        return loop.logits

    def slide(self, count: int) -> None:
        """Drop the `count` oldest patches to make room; the rest of the cache is kept, not recomputed."""
        self.engine.forget(count)

    def select(self, row_B: NDArray[np.int64]) -> None:
        """Replace each stream's state by that of stream `row_B[b]`: to branch from one stream, or to reorder them."""
        if (row_B == np.arange(len(row_B))).all():
            return
        self.engine.select(row_B)
        self.prefix_BR = self.prefix_BR[torch.from_numpy(row_B)]
        if self.experts is not None:
            self.experts.select(row_B)
