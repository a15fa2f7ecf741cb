"""The engine that runs everywhere: a trunk's cached step and its head, as PyTorch modules."""

# Shapes: B streams, N positions, D model width, V = 2^P nodes.
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bit_transformer.model import BitTransformerLM


class TorchEngine:
    """Steps of any number of streams, on any device, in any dtype.

    Attributes:
        cache: the trunk's state for the streams.
    """

    def __init__(self, model: BitTransformerLM, batch: int) -> None:
        self.model = model
        self.cache = model.trunk.new_cache(batch)

    def extend(self, input_BN: Tensor) -> Tensor:
        """Continue every stream by N symbols. Returns the states that predict what follows each, h_BND."""
        h_BND: Tensor = self.model.trunk(input_BN, self.cache)
        return h_BND

    def node_logits(self, state_BD: Tensor) -> NDArray[np.float32]:
        """The head's logits for a state, at every node of the next patch: (B, V)."""
        logits: NDArray[np.float32] = self.model.head(state_BD).detach().float().cpu().numpy()
        return logits
