"""Repair of windows by a diffusion model: what was flipped is set right, as far as the model can tell."""

# Shapes: B windows, T bits, N patches, P bits of a patch, V = 2^P symbols, K places that are asked for.
from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bit_transformer.bit_io import Bits
from bit_transformer.diffusion.denoiser import check_diffusion, check_known, leaf_scores, restored
from bit_transformer.errors import ConfigError
from bit_transformer.model import BitTransformerLM, in_use
from bit_transformer.nn.patching import pack_patches, patch_distances, unpack_patches

TURNS, SWEEPS = 8, 3  # with masked patches: every eighth is masked at a time, and all in turn so often
FIRST_RATE, RATE_ROUNDS = (
    0.01,
    4,
)  # of bits flipped, where that is not known: a first guess, and how often it is refined


@dataclass(frozen=True)
class Repaired:
    """Windows whose flipped bits were set right, as far as the model can tell.

    Attributes:
        bits_BT: uint8.
        rate: of flips, as given or as found.
        doubt_BN: chance of each patch that it is not what it says.
    """

    bits_BT: Tensor
    rate: float
    doubt_BN: NDArray[np.float64]


@torch.inference_mode()
def repair(model: BitTransformerLM, received: Tensor | Bits, *, rate: float | None = None) -> Repaired:
    """Set right what was flipped in windows: each patch becomes its likeliest value given all that was received, if that is likelier
    than all others together; else it stays.

    A model of hidden patches is asked what it expects where every eighth patch is hidden, in turn, which is weighed against what was
    received there; and twice again with what came out. A model of flips is asked once. Of a model with parity, where a patch is a
    byte of nine bits, only those with even parity are considered.

    Args:
        received: (B, T) bits, T a multiple of `patch_bits`.
        rate: chance with which bits were flipped, in (0, 0.5); not given: found from the windows.

    Raises:
        ConfigError: an autoregressive model, or a rate that cannot be.
        BitStreamError: windows that do not fit the model.
    """
    c = model.config
    check_diffusion(model)
    check_rate(rate)
    bits_BT, _ = check_known(model, received, None)
    patch_BN = pack_patches(bits_BT, c.patch_bits)
    distance_BNV = patch_distances(patch_BN, c.patch_bits)
    found = rate or FIRST_RATE
    with in_use(model):
        for _ in range(1 if rate else RATE_ROUNDS):
            chance_BNV = _posterior(model, patch_BN, distance_BNV, found)
            if rate is None:
                flips = float((chance_BNV * distance_BNV).sum(-1).mean()) / c.patch_bits
                found = min(max(flips, 1e-6), 0.49)
    best_BN = _surest(chance_BNV, patch_BN)
    doubt_BN = 1 - np.take_along_axis(chance_BNV, best_BN.numpy()[..., None], -1)[..., 0]
    return Repaired(unpack_patches(best_BN, c.patch_bits).flatten(1).to(torch.uint8), found, doubt_BN)


def check_rate(rate: float | None) -> None:
    """Refuse a rate of flips that cannot be.

    Raises:
        ConfigError: as it says.
    """
    if rate is not None and not 0 < rate < 0.5:
        raise ConfigError(f"rate={rate}; it must lie between 0 and 0.5. Try 0.01")


def _surest(chance_BNV: NDArray[np.float64], patch_BN: Tensor) -> Tensor:
    """What is likelier than all else together, or what was there."""
    return torch.where(torch.from_numpy(chance_BNV.max(-1) > 0.5), torch.from_numpy(chance_BNV.argmax(-1)), patch_BN)


def _posterior(
    model: BitTransformerLM, patch_BN: Tensor, distance_BNV: NDArray[np.int64], rate: float
) -> NDArray[np.float64]:
    """Chances of all patches, given what was received: (B, N, V)."""
    c, device = model.config, model.head.weight.device
    if c.noise == "flips":
        chance_B = torch.full((len(patch_BN),), rate, device=device)
        return _normal(leaf_scores(restored(model, patch_BN.to(device), chance_B)), c.parity)
    N = patch_BN.shape[1]
    scores_BNV = distance_BNV * math.log(rate / (1 - rate))
    chance_BNV, best_BN = np.empty(scores_BNV.shape), patch_BN
    for _ in range(SWEEPS):
        for turn in range(TURNS):
            hidden_N = torch.arange(N) % TURNS == turn
            seen_BN = best_BN.masked_fill(hidden_N, model.trunk.start).to(device)
            expected_BKV = leaf_scores(restored(model, seen_BN)[:, hidden_N.to(device)])
            at_N = hidden_N.numpy()
            chance_BNV[:, at_N] = _normal(expected_BKV + scores_BNV[:, at_N], c.parity)
        best_BN = _surest(chance_BNV, patch_BN)
    return chance_BNV


def _normal(scores_BNV: NDArray[np.float64], parity: bool) -> NDArray[np.float64]:
    """Log-chances but for a constant to chances; of bytes of nine bits only those with even parity."""
    if parity and scores_BNV.shape[-1] == 512:
        scores_BNV[..., patch_distances(torch.zeros(1, 1), 9)[0, 0] % 2 == 1] = -np.inf
    return np.exp(scores_BNV - np.logaddexp.reduce(scores_BNV, axis=-1, keepdims=True))
