"""Differentiable penalties for K, C and S: three values in [0, 1], each 0 if its metric is at its best.

They are means over the bits of a batch, of predictions made while reading it (teacher forcing).
"""

# Shapes: B batch, N patches, P bits of a patch.
from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from bit_transformer.nn.patching import unpack_patches
from bit_transformer.telemetry.measures import divergence

CONTEXT_BITS = 16  # that must match for a repetition, rounded up to whole patches: two bytes, with or without parity
_SPREAD = 0x5851F42D4C957F2D  # odd: no two sums share a product (Knuth's MMIX generator)
_ALMOST = 1e-6  # keeps probabilities away from 0 and 1, where the slope of the entropy is infinite


def uncertainty(z_BNP: Tensor) -> Tensor:
    """1 - K of predictions: their mean entropy in bits."""
    z = z_BNP.float()
    return (F.softplus(z) - z * torch.sigmoid(z)).mean() / math.log(2)


def repetition(z_BNP: Tensor, patch_BN: Tensor) -> Tensor:
    """The probability of repeating earlier patches, which lowers C.

    If the last two bytes' worth of patches occurred earlier in the window, the patch that followed them there would extend a
    Lempel-Ziv phrase. The penalty is the mean probability of that patch's bits, as far as the true patch begins with them. It
    is 0 if nothing occurs twice.

    Source: after Welleck et al. 2020, "Neural text generation with unlikelihood training", with LZ76's matches for n-grams.
    """
    P = z_BNP.shape[-1]
    follower_BN = followers(patch_BN, -(-CONTEXT_BITS // P))
    found_BN1 = (follower_BN >= 0)[..., None]
    would_BNP = unpack_patches(follower_BN.clamp(min=0), P)
    agrees_BNP = (would_BNP == unpack_patches(patch_BN, P)).long()
    # A bit counts while all earlier bits of its patch match.
    open_BNP = F.pad(agrees_BNP.cumprod(-1)[..., :-1], (1, 0), value=1)
    weight_BNP = (open_BNP * found_BN1).float()
    given_BNP = torch.sigmoid(torch.where(would_BNP.bool(), z_BNP, -z_BNP).float())
    return (given_BNP * weight_BNP).sum() / weight_BNP.sum().clamp(min=1)


def disagreement(z_BNP: Tensor, q_BNP: Tensor) -> Tensor:
    """(1 - S)^2 of predictions: their mean Jensen-Shannon divergence from the reference's probabilities, in bits."""
    p_BNP = torch.sigmoid(z_BNP.float()).clamp(_ALMOST, 1 - _ALMOST)
    return divergence(p_BNP, q_BNP.float().clamp(_ALMOST, 1 - _ALMOST)).mean()


def followers(patch_BN: Tensor, context: int) -> Tensor:
    """The patch that followed the latest earlier occurrence of the `context` patches before each position; -1 if none: (B, N)."""
    B, N = patch_BN.shape
    found_BN = patch_BN.new_full((B, N), -1)
    if context >= N:
        return found_BN
    code_BM = torch.zeros_like(patch_BN[:, context:])  # a hash of the patches before position context, context + 1, ...
    for back in range(context, 0, -1):
        code_BM = (code_BM + patch_BN[:, context - back : N - back] + 1) * _SPREAD
    # Sorted by code, positions of one code in order: the previous element is the latest earlier occurrence.
    code_BM, place_BM = code_BM.sort(dim=1, stable=True)
    same_BM = code_BM[:, 1:] == code_BM[:, :-1]
    earlier_BM = torch.where(same_BM, patch_BN[:, context:].gather(1, place_BM[:, :-1]), -1)
    return found_BN.scatter(1, place_BM[:, 1:] + context, earlier_BM)
