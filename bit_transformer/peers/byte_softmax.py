"""The byte model of the same blocks: our trunk with one softmax over the 256 values of a byte in place of the prefix-tree head.

Trained by the same trainer. What differs from `patch_bits=8` is the head alone.
"""

# Shapes: B windows, T bits, N bytes, P = 8 bits of a byte, D model width, V = 256 values.
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bit_transformer.config import ModelConfig
from bit_transformer.errors import ConfigError
from bit_transformer.model import BitTransformerLM
from bit_transformer.nn.patching import pack_patches, unpack_patches
from bit_transformer.objectives import Objective, Prediction
from bit_transformer.training import Trainer


class SoftmaxHead(nn.Module):
    """Logits of the 256 values of the next byte. It starts as zeros, as the prefix-tree head does."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(256, d_model))
        self.bias = nn.Parameter(torch.zeros(256))

    def forward(self, h_BND: Tensor) -> Tensor:
        """Logits of all values: logit_BNV."""
        return F.linear(h_BND, self.weight, self.bias)

    def bit_logits(self, h_BND: Tensor, patch_BN: Tensor) -> Tensor:
        """Logits of the bits of the given bytes, each given the bits before it: z_BNP."""
        return bit_logits_of(self(h_BND), patch_BN)


def bit_logits_of(logit_BNV: Tensor, byte_BN: Tensor) -> Tensor:
    """What a softmax over bytes says of their bits: logits of P(bit = 1) for the bits of the given bytes, each given the bits before it.

    A bit halves the values that are possible; its logit is the log of the ratio of the two halves' probabilities. So the costs of a byte's
    bits sum to the cost of the byte.

    Args:
        logit_BNV: of the 256 values.

    Returns:
        z_BNP.
    """
    bit_BNP, left, z = unpack_patches(byte_BN.long(), 8), logit_BNV, []
    for place in range(8):
        halves = left.view(*left.shape[:-1], 2, -1)
        both = halves.logsumexp(-1)
        z.append(both[..., 1] - both[..., 0])
        index = bit_BNP[..., place, None, None].expand(*halves.shape[:-2], 1, halves.shape[-1])
        left = halves.gather(-2, index).squeeze(-2)
    return torch.stack(z, dim=-1)


class ByteSoftmaxLM(BitTransformerLM):
    """A transformer over bytes, of the blocks of `BitTransformerLM`. It trains and scores; it does not generate.

    Args:
        config, fields: as of `BitTransformerLM`, with patches of 8 bits and without experts.

    Raises:
        ConfigError: other patches, experts, or a diffusion model.
    """

    def __init__(self, config: ModelConfig | None = None, **fields: Any) -> None:
        super().__init__(config, **fields)
        c = self.config
        if c.patch_bits != 8 or c.experts is not None or not c.causal:
            raise ConfigError(
                f"got patch_bits={c.patch_bits}, experts={c.experts is not None}, causal={c.causal}; a softmax over bytes reads bytes, one way, "
                "without experts. Try patch_bits=8, experts=False"
            )
        self.head = SoftmaxHead(c.d_model)  # type: ignore[assignment]  # the parts of a model only use `weight` and `bit_logits`

    def byte_nats(self, bits_BT: Tensor) -> Tensor:
        """Negative log-likelihood of every byte in nats, by the softmax itself: (B, N)."""
        self.check_window(bits_BT)
        byte_BN = pack_patches(bits_BT, 8)
        logit_BNV = self.head(self.trunk(self.shift(byte_BN)))
        return F.cross_entropy(logit_BNV.flatten(0, 1), byte_BN.flatten(), reduction="none").view(byte_BN.shape)


class NextByte:
    """Mean negative log-likelihood of every byte, given the bytes before it: one cross-entropy, as byte models are trained."""

    def __call__(
        self, model: BitTransformerLM, bits_BT: Tensor, features_BTF: Tensor | None = None, *, reach: float = 1.0
    ) -> Prediction:
        """As in `Objective`. There are no logits of bits, so nothing that is made of them: no penalties, no teacher, no telemetry."""
        assert isinstance(model, ByteSoftmaxLM)
        nats = model.byte_nats(bits_BT).mean() / 8
        nothing = bits_BT.new_zeros(0)
        return Prediction(nats, nats, nothing, nothing, nothing, cost=_none, by=_none)


def _none(of: object) -> Tensor:
    raise ConfigError("got a softmax over bytes; it has no logits of bits to learn from. Try a model with patch_bits=8")


class ByteTrainer(Trainer):
    """The trainer, with the loss of a softmax over bytes."""

    def _objective_of(self, model: ModelConfig) -> Objective:
        return NextByte()
