"""Packs bits into patches, and predicts the bits of a patch with a prefix-tree head.

A patch of P bits is one of V = 2^P symbols, first bit most significant. The trunk sees one position per patch, so bits need no more
positions than bytes do. The head predicts the patch bit by bit: bit j has the logit `h . E[node]`, where `node = (1 << j) | prefix`
encodes the bits before it in the patch. The nodes 1 .. V-1 form a binary tree whose leaves are the patches. The product of the P
Bernoulli factors on the path to a leaf is that patch's probability, so the probabilities are exact and sum to one by construction.
With P = 1 the tree is one node: plain logistic regression on h.

Source: the binary-tree softmax of Morin & Bengio 2005, with the tree fixed by the bits themselves.
"""

# Shapes: B batch, T bits, N patches, P bits of a patch, D model width, V = 2^P symbols.
from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from bit_transformer.nn.quantized import Rounding, rounded


def pack_patches(bits_BT: Tensor, patch_bits: int) -> Tensor:
    """Pack complete patches, most significant bit first.

    Args:
        bits_BT: zeros and ones, T a multiple of `patch_bits`.

    Returns:
        patch_BN: int64 in [0, 2^P).
    """
    bits_BNP = bits_BT.reshape(bits_BT.shape[0], -1, patch_bits)
    patch_BN = bits_BNP[..., 0].long()
    for j in range(1, patch_bits):
        patch_BN = patch_BN.mul(2).add_(bits_BNP[..., j])
    return patch_BN


def unpack_patches(patch: Tensor, patch_bits: int) -> Tensor:
    """The inverse of `pack_patches`, for patches of any shape: their bits along a new last axis of P."""
    return patch[..., None] >> torch.arange(patch_bits - 1, -1, -1, device=patch.device) & 1


def tree_nodes(patch_BN: Tensor, patch_bits: int) -> Tensor:
    """The nodes on the path from the root to a patch: node_BNP in [1, V), the j-th being `(1 << j) | prefix`."""
    shift_P = torch.arange(patch_bits, 0, -1, device=patch_BN.device)
    return (patch_BN[..., None] + (1 << patch_bits)) >> shift_P


def node_depths(patch_bits: int, device: torch.device | None = None) -> Tensor:
    """Which bit of the patch each of the V nodes predicts. Node 0, which is unused, counts as the first."""
    return torch.frexp(torch.arange(1 << patch_bits, device=device).float()).exponent.sub_(1).clamp_(min=0).long()


class PrefixTreeHead(nn.Module):
    """Logits of the bits of the next patch, from the trunk's state.

    All V node logits come from one matrix product, also in training, where only P of them are used. Up to P = 9 that costs a few per cent
    of the trunk, and a dense product is faster than gathering P rows of E for every patch and scattering their gradients.

    Attributes:
        rounding: how its weights are rounded in the forward pass; None: not at all.
    """

    rounding: Rounding | None = None

    def __init__(self, d_model: int, patch_bits: int) -> None:
        super().__init__()
        self.patch_bits = patch_bits
        # Row 0 is unused; it makes row numbers equal node numbers.
        self.weight = nn.Parameter(torch.zeros(1 << patch_bits, d_model))
        self.bias = nn.Parameter(torch.zeros(1 << patch_bits))

    def forward(self, h_BND: Tensor) -> Tensor:
        """Logits of P(bit = 1) at every node: node_logit_BNV; column 0 has no meaning."""
        return F.linear(h_BND, rounded(self.weight, self.rounding), self.bias)

    def bit_logits(self, h_BND: Tensor, patch_BN: Tensor) -> Tensor:
        """Logits along the paths to the given patches: z_BNP, the j-th given the true bits before j."""
        return self(h_BND).gather(-1, tree_nodes(patch_BN, self.patch_bits))


def leaf_log_probs(node_logit_BV: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Log-probabilities of all V patches, in nats, from the logits of all V nodes.

    Args:
        node_logit_BV: as `PrefixTreeHead` gives them; an array, because sampling works on arrays.

    Returns:
        (B, V); the exponentials sum to 1.
    """
    z = node_logit_BV.astype(np.float64)
    branch = -np.logaddexp(
        0, np.concatenate((z, -z), axis=1)
    )  # entry b * V + node: log-probability of bit b at that node
    return branch[:, _branches(z.shape[1])].sum(-1)


def bit_chances(node_logit_BNV: Tensor) -> Tensor:
    """Probability of a one for each bit of a patch, summed over the bits before it: one_BNP."""
    before, probabilities = torch.ones_like(node_logit_BNV[..., :1]), []  # of each prefix
    for j in range(node_logit_BNV.shape[-1].bit_length() - 1):
        one = before * torch.sigmoid(node_logit_BNV[..., 1 << j : 2 << j])
        probabilities.append(one.sum(-1))
        before = torch.stack((before - one, one), dim=-1).flatten(-2)
    return torch.stack(probabilities, dim=-1)


def patch_distances(patch_BN: Tensor, patch_bits: int) -> NDArray[np.int64]:
    """In how many bits each of the V patches differs from the given one: (B, N, V)."""
    flips_BNV = patch_BN.long()[..., None] ^ torch.arange(1 << patch_bits)
    return unpack_patches(flips_BNV, patch_bits).sum(-1).numpy()


def draw_patches(score_BV: NDArray[np.float64], temperature: float, random: np.random.Generator) -> NDArray[np.int64]:
    """Sample a patch from each row of log-probabilities, in float64; temperature 0 takes the most probable."""
    if temperature == 0:
        return score_BV.argmax(1)
    scaled_BV = score_BV / temperature
    heap_BV = np.exp(scaled_BV - scaled_BV.max(1, keepdims=True)).cumsum(1)
    point_B1 = random.random((len(heap_BV), 1)) * heap_BV[:, -1:]
    return np.minimum((heap_BV <= point_B1).sum(1), heap_BV.shape[1] - 1)


@lru_cache(maxsize=16)
def _branches(symbols: int) -> NDArray[np.int64]:
    """Entries of the array in `leaf_log_probs` along the path to every leaf: (V, P)."""
    P = symbols.bit_length() - 1
    patch_V1 = np.arange(symbols)[:, None]
    bit_VP = patch_V1 >> np.arange(P - 1, -1, -1) & 1
    return bit_VP * symbols + (patch_V1 + symbols >> np.arange(P, 0, -1))
