"""Diffusion over patches of bits: bounds on the likelihood, and samplers that fill in what is hidden, wherever it is.

A diffusion model reads a window in which some patches are hidden and gives an exact distribution over each, bit by bit down the
prefix tree. Filling all in, in any order, gives a sample; hiding at random and asking what the hidden patches cost gives a bound on
the likelihood. Two estimators of that bound share nothing but the model: one draws a time and hides each patch by itself, the
other draws how many are hidden and hides exactly so many; in expectation they are equal.

Draws are made in float64. What is known of a patch (fixed bits, even parity) is a mask over its exact distribution.

Sources: Sahoo et al. 2024, arXiv:2406.07524 (MDLM); Ou et al. 2024, arXiv:2406.03736 (equality with any-order models); Zheng et al.
2024, arXiv:2409.02908 (first-hitting sampler; draws in float64); Nie et al. 2025, arXiv:2502.09992 (confidence order).
"""

# Shapes: B windows, T bits, N patches, P bits of a patch, V = 2^P symbols.
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bit_transformer.bit_io import Bits
from bit_transformer.errors import BitStreamError, ConfigError
from bit_transformer.model import BitTransformerLM
from bit_transformer.nn.masking import hide_exactly, hide_over_time, stratified_times
from bit_transformer.nn.patching import draw_patches, leaf_log_probs, pack_patches, unpack_patches

Estimator = Literal["continuous", "exact"]
Order = Literal["ancestral", "first-hitting", "confidence"]


@dataclass(frozen=True)
class Bound:
    """An upper bound on what windows cost, estimated by sampling.

    Attributes:
        bits: of all windows together.
        standard_error: of that.
        windows: how many there were.
    """

    bits: float
    standard_error: float
    windows: int


@torch.inference_mode()
def likelihood_bound(
    model: BitTransformerLM, bits_BT: Tensor, *, samples: int = 16, estimator: Estimator = "exact", seed: int = 0
) -> Bound:
    """Estimate the bound on the bits that windows cost under a diffusion model.

    exact: so many patches hidden as a stratified draw from 1 .. N says, every choice equally likely; the mean cost of those hidden,
    times N. continuous: a time for each sample of a window, stratified over its samples, each patch hidden by itself; the cost of
    those hidden, times rate over share, which scatters more: a single patch hidden at an early time counts for very much.

    Args:
        bits_BT: windows of whole patches.
        samples: of each window; two at least, for the standard error.

    Raises:
        BitStreamError: windows that do not fit the model.
        ConfigError: an autoregressive model, or too few samples.
    """
    if samples < 2:
        raise ConfigError(f"samples={samples}; at least 2 are needed for a standard error. Try 16")
    model._check_window(bits_BT)
    patch_BN = pack_patches(bits_BT, model.config.patch_bits).to(model.head.weight.device)
    N = patch_BN.shape[1]
    was_training = model.training
    model.eval()
    costs_BS = np.empty((len(patch_BN), samples))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for row, patch_N in enumerate(patch_BN):
                patch_SN = patch_N.expand(samples, N)
                if estimator == "continuous":
                    hidden_SN, weight_S = hide_over_time(patch_SN, model.config.schedule, model.mask)
                else:
                    count_S = (stratified_times(samples, patch_N.device) * N).long() + 1
                    _, hidden_SN = hide_exactly(patch_SN, count_S, model.mask)
                    weight_S = N / count_S
                nats_SN = model.hidden_nll(patch_SN, hidden_SN)
                costs_BS[row] = (nats_SN.double().sum(1) * weight_S).cpu().numpy() / math.log(2)
    finally:
        model.train(was_training)
    # Strata of one draw each: their scatter about the mean is too large an estimate of the error, never too small.
    error = math.sqrt((costs_BS.var(axis=1, ddof=1) / samples).sum())
    return Bound(float(costs_BS.mean(axis=1).sum()), error, len(patch_BN))


@torch.inference_mode()
def diffusion_inference(
    model: BitTransformerLM,
    known: Tensor | Bits,
    fixed: Tensor | NDArray[np.bool_] | None = None,
    *,
    steps: int | None = None,
    order: Order = "first-hitting",
    temperature: float = 1.0,
    force_parity: bool = True,
    seed: int | None = None,
) -> Tensor:
    """Fill in windows: whatever bits are fixed stay, the others are drawn.

    Args:
        known: (B, T) bits, T a multiple of `patch_bits`; those that are not fixed may be anything.
        fixed: (B, T), which bits stay; none are if it is not given.
        steps: network calls of the ancestral and the confidence order, at most; not given: one a patch.
        order: `first-hitting` reveals one patch a call, in random order, as the process in continuous time does; `ancestral` takes
            `steps` equal steps of time, several patches at one, drawn independently of one another; `confidence` reveals
            the patches of which the model is surest first.
        temperature: 0 takes the likeliest patch.
        force_parity: of a model with parity: only bytes whose parity is even.

    Returns:
        (B, T) uint8.

    Raises:
        ConfigError: an autoregressive model, or steps or a temperature that cannot be.
        BitStreamError: windows that do not fit the model, or fixed bits whose parity is odd.
    """
    c = model.config
    if c.causal:
        raise ConfigError("got an autoregressive model; filling in is for diffusion. Try causal=False, or generate")
    if steps is not None and steps < 1:
        raise ConfigError(f"steps={steps}; at least 1 is needed. Try 64")
    if temperature < 0:
        raise ConfigError(f"temperature={temperature}; it must not be negative. Try 1")
    known_BT = torch.as_tensor(known)
    model._check_bits(known_BT)
    model._check_window(known_BT)
    fixed_BT = torch.zeros(known_BT.shape, dtype=torch.bool) if fixed is None else torch.as_tensor(fixed)
    if fixed_BT.shape != known_BT.shape or fixed_BT.dtype != torch.bool:
        raise BitStreamError(
            f"got fixed of shape {tuple(fixed_BT.shape)} and {fixed_BT.dtype}; it must be boolean and of the bits' shape "
            f"{tuple(known_BT.shape)}. Try fixed.bool()"
        )
    filler = _Filler(model, known_BT, fixed_BT, temperature, force_parity and c.parity, seed)
    was_training = model.training
    model.eval()
    try:
        return filler.run(order, steps)
    finally:
        model.train(was_training)


class _Filler:
    """Windows being filled in: patches, which are still hidden, and what each may be."""

    def __init__(
        self,
        model: BitTransformerLM,
        known_BT: Tensor,
        fixed_BT: Tensor,
        temperature: float,
        parity: bool,
        seed: int | None,
    ) -> None:
        P = model.config.patch_bits
        self.model, self.temperature, self.random = model, temperature, np.random.default_rng(seed)
        B, N = len(known_BT), known_BT.shape[1] // P
        self.patch_BN = pack_patches(known_BT, P).cpu().numpy().copy()  # of single bits it would be the caller's
        self.hidden_BN = ~fixed_BT.view(B, N, P).all(-1).cpu().numpy()
        self.allowed_BNV = allowed_patches(known_BT.cpu().numpy(), fixed_BT.cpu().numpy(), P, parity)
        if not self.allowed_BNV.any(-1).all():
            row, place = np.argwhere(~self.allowed_BNV.any(-1))[0]
            raise BitStreamError(
                f"got fixed bits with odd parity in window {row}, patch {place}; a byte's nine bits must hold an even number of "
                f"ones. Try repair_parity, or force_parity=False"
            )

    def run(self, order: Order, steps: int | None) -> Tensor:
        """Fill in all; the bits."""
        most = int(self.hidden_BN.sum(1).max(initial=0))
        calls = most if order == "first-hitting" or steps is None else min(steps, most)
        for call in range(calls):
            scores_BNV = self._scores()
            left_B = self.hidden_BN.sum(1)
            # Equal steps of time with the linear schedule reveal equal shares; the last reveals what is left.
            reveal_B = np.ceil(left_B / (calls - call)).astype(np.int64)
            if order == "ancestral":
                reveal_B = np.where(calls - call == 1, left_B, self.random.binomial(left_B, 1 / (calls - call)))
            for row, count in enumerate(reveal_B):
                places = np.flatnonzero(self.hidden_BN[row])
                if order == "confidence":
                    surest = scores_BNV[row, places].max(-1)
                    places = places[np.argsort(-surest, kind="stable")]
                else:
                    places = self.random.permutation(places)
                places = places[:count]
                self.patch_BN[row, places] = draw_patches(scores_BNV[row, places], self.temperature, self.random)
                self.hidden_BN[row, places] = False
        return unpack_patches(torch.from_numpy(self.patch_BN), self.model.config.patch_bits).flatten(1).to(torch.uint8)

    def _scores(self) -> NDArray[np.float64]:
        """Log-probabilities of all patches at all places, -inf where they are not allowed."""
        seen_BN = np.where(self.hidden_BN, self.model.mask, self.patch_BN)
        device = self.model.head.weight.device
        z_BNV = self.model.head(self.model.trunk(torch.from_numpy(seen_BN).to(device))).float().cpu().numpy()
        scores_BNV = leaf_log_probs(z_BNV.reshape(-1, z_BNV.shape[-1])).reshape(z_BNV.shape)
        return np.where(self.allowed_BNV, scores_BNV, -np.inf)


def allowed_patches(known_BT: Bits, fixed_BT: NDArray[np.bool_], patch_bits: int, parity: bool) -> NDArray[np.bool_]:
    """Which of the V patches may stand at each place, given the fixed bits of the window, and even parity: (B, N, V).

    Parity is a matter of single patches where they are whole bytes of nine bits; for others it is enforced in the end.
    """
    B, N = len(known_BT), known_BT.shape[1] // patch_bits
    bit_VP = unpack_patches(torch.arange(1 << patch_bits), patch_bits).numpy()
    known_BN1P = known_BT.reshape(B, N, 1, patch_bits)
    free_BN1P = ~fixed_BT.reshape(B, N, 1, patch_bits)
    allowed_BNV: NDArray[np.bool_] = ((bit_VP == known_BN1P) | free_BN1P).all(-1)
    if parity and patch_bits == 9:
        allowed_BNV &= bit_VP.sum(1) % 2 == 0
    return allowed_BNV
