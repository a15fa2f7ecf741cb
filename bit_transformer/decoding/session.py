"""A decoding session: the state of B streams that are decoded together.

    session = Session(model)
    session.advance(prompt_patches)      # any number of complete patches
    logits = session.node_logits()       # of the next patch: sample it, then advance by it

An *engine* computes the trunk's steps. `torch` runs everywhere; `single-stream` is several times faster for one stream on a CPU. Their
results agree up to rounding.
"""

# Shapes: B streams, T bits, N patches, P bits of a patch, R < P bits of the incomplete patch, D model width, V = 2^P nodes.
from __future__ import annotations

from typing import Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from bit_transformer.decoding import single_stream
from bit_transformer.decoding.expert_streams import ExpertStreams
from bit_transformer.decoding.single_stream import SingleStreamEngine
from bit_transformer.decoding.torch_engine import TorchEngine
from bit_transformer.errors import BitStreamError, ConfigError
from bit_transformer.model import BitTransformerLM, as_pair
from bit_transformer.nn.cache import TrunkCache
from bit_transformer.nn.patching import pack_patches

EngineName = Literal["auto", "torch", "single-stream"]


class Engine(Protocol):
    """Computes the steps of a session."""

    cache: TrunkCache

    def extend(self, input_BN: Tensor) -> Tensor:
        """Continue every stream by N symbols. Returns the states that predict what follows each, h_BND."""

    def node_logits(self, state_BD: Tensor) -> NDArray[np.float32]:
        """The head's logits for a state, at every node of the next patch: (B, V)."""


def check_engine(model: BitTransformerLM, batch: int, name: str = "auto") -> None:
    """Make an engine by name for `batch` streams; `auto`: the fastest that can run them.

    Raises:
        ConfigError: an unknown name, or an engine that cannot run these streams.
    """
    if name not in get_args(EngineName):
        raise ConfigError(f"got engine={name!r}; it must be one of {', '.join(get_args(EngineName))}. Try auto")
    able = single_stream.can_run(model, batch)
    if name == "single-stream" and not able:
        weight = model.head.weight
        raise ConfigError(
            f"got engine='single-stream' for {batch} streams of {weight.dtype} on {weight.device.type}; it runs one stream of float32 on "
            f"a CPU. Try engine='torch'"
        )


def engine_for(model: BitTransformerLM, batch: int, name: str = "auto") -> Engine:
    """The engine of that name for so many streams; `auto`: the fastest that can run them.

    Raises:
        ConfigError: as of `check_engine`.
    """
    check_engine(model, batch, name)
    single = name != "torch" and single_stream.can_run(model, batch)
    return SingleStreamEngine(model, batch) if single else TorchEngine(model, batch)


class Session:
    """The state of B streams that are decoded together, all at the same position.

    Args:
        model: an autoregressive model; in evaluation mode, unless dropout should be active.
        batch: B.
        engine: what computes the steps.

    Attributes:
        prefix_BR: the bits of the incomplete patch.
        state_BD: the trunk's state that predicts this patch.
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
        self.state_BD = self.engine.extend(start_B1)[:, -1]
        self.experts = ExpertStreams(model.bank, batch, model.config.patch_bits) if model.mixer else None

    @property
    def room(self) -> int:
        """Free patches of the window."""
        return self.engine.cache.capacity - self.engine.cache.length

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
                f"got {patch_BN.shape[1]} more patches; {self.room} of the window's {self.engine.cache.capacity - 1} are free. "
                f"Try a model with a larger max_seq_len, or infer_long, which slides the window"
            )
        h_BND = self.engine.extend(patch_BN)
        self.state_BD = h_BND[:, -1]
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
        state_BD = self.state_BD.detach()
        logit_BV = self.engine.node_logits(state_BD)
        if self.model.mixer is not None and self.experts is not None:
            logit_BV = logit_BV + self.model.mixer.node_logits(state_BD.float().cpu().numpy(), self.experts.nodes())
        if not np.isfinite(logit_BV).all():
            raise BitStreamError(
                "got NaN or infinity among the model's logits; sampling needs finite ones. Try an earlier checkpoint"
            )
        return logit_BV

    def slide(self, count: int) -> None:
        """Drop the `count` oldest patches to make room; the rest of the cache is kept, not recomputed."""
        self.engine.cache.forget(count, self.model.trunk.turn_back(count))

    def select(self, row_B: NDArray[np.int64]) -> None:
        """Replace each stream's state by that of stream `row_B[b]`: to branch from one stream, or to reorder them."""
        if (row_B == np.arange(len(row_B))).all():
            return
        self.engine.cache.select(row_B)
        rows = torch.from_numpy(row_B)
        self.prefix_BR, self.state_BD = self.prefix_BR[rows], self.state_BD[rows]
        if self.experts is not None:
            self.experts.select(row_B)
