"""The engine that runs everywhere: a trunk's cached step, its head and its mixer, as PyTorch modules."""

# Shapes: B streams, N positions, D model width, V = 2^P nodes, F features.
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bit_transformer.model import BitTransformerLM


class TorchEngine:
    """Steps of any number of streams, on any device, in any dtype.

    Attributes:
        cache: the trunk's state for the streams.
        state_BD: the trunk's state that predicts the next patch.
    """

    state_BD: Tensor

    def __init__(self, model: BitTransformerLM, batch: int) -> None:
        self.model = model
        self.cache = model.trunk.new_cache(batch)
        self.capacity = self.cache.capacity

    @property
    def length(self) -> int:
        """Positions since the window began."""
        return self.cache.length

    def extend(self, input_BN: Tensor) -> Tensor:
        """Continue every stream by N symbols. Returns the states that predict what follows each, h_BND."""
        h_BND: Tensor = self.model.trunk(input_BN, self.cache)
        self.state_BD = h_BND[:, -1]
        return h_BND

    def node_logits(self, features_BVF: NDArray[np.int8] | None) -> NDArray[np.float32]:
        """Logits at every node of the next patch: (B, V). With experts, their features at every node are given."""
        state_BD = self.state_BD.detach()
        logit_BV: NDArray[np.float32] = self.model.head(state_BD).detach().float().cpu().numpy()
        if self.model.mixer is not None and features_BVF is not None:
            logit_BV = logit_BV + self.model.mixer.node_logits(state_BD.float().cpu().numpy(), features_BVF)
        return logit_BV

    def forget(self, count: int) -> None:
        """Drop the `count` oldest patches of the window; the rest of the cache is kept, not recomputed."""
        self.cache.forget(count, self.model.trunk.turn_back(count))

    def select(self, row_B: NDArray[np.int64]) -> None:
        """Replace each stream's state by that of stream `row_B[b]`."""
        self.cache.select(row_B)
        self.state_BD = self.state_BD[row_B]
