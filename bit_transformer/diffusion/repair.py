"""Repair of windows by a diffusion model: bits that were probably flipped are corrected."""

# Shapes: B windows, T bits, N patches, P bits of a patch, V = 2^P symbols, K queried positions.
from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bit_transformer.bit_io import Bits
from bit_transformer.diffusion.denoiser import check_diffusion, check_known, leaf_scores, restored
from bit_transformer.errors import ConfigError
from bit_transformer.model import BitTransformerLM, in_use
from bit_transformer.nn.patching import pack_patches, patch_distances, unpack_patches

GROUPS, SWEEPS = 8, 3  # with masked patches: every eighth is masked at a time; all eight groups in turn, three times
FIRST_RATE, RATE_ROUNDS = 0.01, 4  # of flipped bits, if unknown: a first guess; how often it is refined


@dataclass(frozen=True)
class Repaired:
    """Windows with the bits corrected that were probably flipped.

    Attributes:
        bits_BT: uint8.
        rate: of flipped bits, as given or as estimated.
        doubt_BN: probability that a patch is wrong.
    """

    bits_BT: Tensor
    rate: float
    doubt_BN: NDArray[np.float64]


class Repairing(NamedTuple):
    """Windows that are being repaired, after a network call.

    Attributes:
        bits_BT: uint8, as corrected so far.
        asked_BT: the bits that the call was about.
        calls: made so far; `total`: in all.
    """

    bits_BT: Tensor
    asked_BT: Tensor
    calls: int
    total: int


def repair(model: BitTransformerLM, received: Tensor | Bits, *, rate: float | None = None) -> Repaired:
    """Correct flipped bits in windows: a patch becomes its most probable value given everything received, if that value has a
    probability above 1/2; else it stays.

    A model of masked patches predicts every eighth patch with these masked, for all eight groups in turn. The prediction is combined
    with what was received there. This is repeated twice with the corrected patches. A model of flips is called once. For a model with
    parity, if a patch is a nine-bit byte, only those with even parity are considered.

    Args:
        received: (B, T) bits, T a multiple of `patch_bits`.
        rate: probability that a bit was flipped, in (0, 0.5). Default: estimated from the windows.

    Raises:
        ConfigError: an autoregressive model, or an invalid rate.
        BitStreamError: windows that do not fit the model.
    """
    return finished(repairing(model, received, rate=rate))


_Step = TypeVar("_Step")
_Made = TypeVar("_Made")


def finished(steps: Generator[_Step, None, _Made]) -> _Made:
    """What a generator returns after its last step."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            made: _Made = end.value
            return made


@torch.inference_mode()
def repairing(
    model: BitTransformerLM, received: Tensor | Bits, *, rate: float | None = None
) -> Generator[Repairing, None, Repaired]:
    """`repair` call by call: the windows after each network call. Returns its result. Arguments and errors as there."""
    c = model.config
    check_diffusion(model)
    check_rate(rate)
    bits_BT, _ = check_known(model, received, None)
    patch_BN = pack_patches(bits_BT, c.patch_bits)
    distance_BNV = patch_distances(patch_BN, c.patch_bits)
    found, rounds, calls = rate or FIRST_RATE, 1 if rate else RATE_ROUNDS, 0
    total = rounds * (1 if c.noise == "flips" else SWEEPS * GROUPS)
    with in_use(model):
        for _ in range(rounds):
            for found_BNV, best_BN, asked_N in _posterior(model, patch_BN, distance_BNV, found):
                probability_BNV, calls = found_BNV, calls + 1
                bits = unpack_patches(best_BN, c.patch_bits).flatten(1).to(torch.uint8)
                asked_BT = asked_N.repeat_interleave(c.patch_bits).expand(len(bits), -1)
                yield Repairing(bits, asked_BT, calls, total)
            if rate is None:
                flips = float((probability_BNV * distance_BNV).sum(-1).mean()) / c.patch_bits
                found = min(max(flips, 1e-6), 0.49)
    best_BN = _surest(probability_BNV, patch_BN)
    doubt_BN = 1 - np.take_along_axis(probability_BNV, best_BN.numpy()[..., None], -1)[..., 0]
    return Repaired(unpack_patches(best_BN, c.patch_bits).flatten(1).to(torch.uint8), found, doubt_BN)


def check_rate(rate: float | None) -> None:
    """Refuse an invalid flip rate.

    Raises:
        ConfigError: the rate is not between 0 and 0.5.
    """
    if rate is not None and not 0 < rate < 0.5:
        raise ConfigError(f"got rate={rate}; it must lie between 0 and 0.5. Try 0.01")


def _surest(probability_BNV: NDArray[np.float64], patch_BN: Tensor) -> Tensor:
    """The most probable patch if its probability is above 1/2, else the one that was there."""
    return torch.where(
        torch.from_numpy(probability_BNV.max(-1) > 0.5), torch.from_numpy(probability_BNV.argmax(-1)), patch_BN
    )


def _posterior(
    model: BitTransformerLM, patch_BN: Tensor, distance_BNV: NDArray[np.int64], rate: float
) -> Iterator[tuple[NDArray[np.float64], Tensor, Tensor]]:
    """Probabilities of all patches, given what was received, after each network call: (B, N, V), complete after the last one. Also the best
    patches so far, and which the call was about, asked_N."""
    c, device = model.config, model.head.weight.device
    N = patch_BN.shape[1]
    if c.noise == "flips":
        probability_B = torch.full((len(patch_BN),), rate, device=device)
        probability_BNV = _normal(leaf_scores(restored(model, patch_BN.to(device), probability_B)), c.parity)
        yield probability_BNV, _surest(probability_BNV, patch_BN), torch.ones(N, dtype=torch.bool)
        return
    scores_BNV = distance_BNV * math.log(rate / (1 - rate))
    probability_BNV, best_BN = np.empty(scores_BNV.shape), patch_BN
    for _ in range(SWEEPS):
        now_BN = best_BN.clone()
        for group in range(GROUPS):
            masked_N = torch.arange(N) % GROUPS == group
            seen_BN = best_BN.masked_fill(masked_N, model.trunk.start).to(device)
            expected_BKV = leaf_scores(restored(model, seen_BN)[:, masked_N.to(device)])
            at_N = masked_N.numpy()
            probability_BNV[:, at_N] = _normal(expected_BKV + scores_BNV[:, at_N], c.parity)
            now_BN[:, masked_N] = _surest(probability_BNV[:, at_N], patch_BN[:, masked_N])
            yield probability_BNV, now_BN, masked_N
        best_BN = now_BN


def _normal(scores_BNV: NDArray[np.float64], parity: bool) -> NDArray[np.float64]:
    """Normalise log-probabilities that lack a constant; of nine-bit bytes only those with even parity."""
    if parity and scores_BNV.shape[-1] == 512:
        scores_BNV[..., patch_distances(torch.zeros(1, 1), 9)[0, 0] % 2 == 1] = -np.inf
    return np.exp(scores_BNV - np.logaddexp.reduce(scores_BNV, axis=-1, keepdims=True))
