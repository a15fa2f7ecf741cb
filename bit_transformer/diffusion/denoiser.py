"""A diffusion model as a denoiser: from a noised window to an exact distribution over each of its patches.

There are two kinds of noise. One masks patches: a masked patch is the symbol after all others. The other flips bits: the model reads
the probability of a flip, as one of several levels.
"""

# Shapes: B windows, T bits, N patches, P bits of a patch, V = 2^P nodes.
from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from bit_transformer.bit_io import Bits
from bit_transformer.diffusion.noise import flip_bits, flip_level, hide_some, noise_levels
from bit_transformer.errors import BitStreamError, ConfigError
from bit_transformer.model import BitTransformerLM
from bit_transformer.nn.patching import leaf_log_probs, node_depths, pack_patches, tree_nodes, unpack_patches


def check_diffusion(model: BitTransformerLM) -> None:
    """Refuse an autoregressive model.

    Raises:
        ConfigError: it is autoregressive.
    """
    if model.config.causal:
        raise ConfigError(
            "got an autoregressive model, which reads only the past; a diffusion model is needed. Try a model with causal=False"
        )


def restored(model: BitTransformerLM, seen_BN: Tensor, chance_B: Tensor | None = None) -> Tensor:
    """Logits at all nodes of every patch, given a noised window: node_logit_BNV.

    For a model of flips they start from the log-odds that a bit is unflipped, by the flip probability alone: if it is zero, nothing is
    changed.

    Args:
        seen_BN: patches; a masked one is the symbol `trunk.start`.
        chance_B: flip probability, for a model of flips.

    Raises:
        ConfigError: an autoregressive model; a flip probability for a model of masked patches, or none for a model of flips.
    """
    check_diffusion(model)
    if (chance_B is None) != (model.config.noise == "hidden"):
        got = "no chance_B" if chance_B is None else "a chance_B"
        raise ConfigError(
            f"got {got} and noise={model.config.noise!r}; models with noise='flips' need it, others do not take it. Try repair"
        )
    level_B = None if chance_B is None else flip_level(chance_B)
    node_logit_BNV: Tensor = model.head(model.trunk(seen_BN, level_B=level_B))
    if chance_B is None:
        return node_logit_BNV
    P = model.config.patch_bits
    seems_BNP = (2 * unpack_patches(seen_BN, P) - 1) * -torch.logit(chance_B, eps=1e-6)[:, None, None]
    return node_logit_BNV + seems_BNP[..., node_depths(P, seen_BN.device)]


def along(patch_BN: Tensor, node_logit_BNV: Tensor, patch_bits: int) -> Tensor:
    """Logits along the paths to the given patches: z_BNP."""
    return node_logit_BNV.gather(-1, tree_nodes(patch_BN, patch_bits))


def masked_nll(model: BitTransformerLM, patch_BN: Tensor, masked_BN: Tensor) -> Tensor:
    """Negative log-likelihood of each masked patch given all unmasked ones, in nats; 0 elsewhere: (B, N).

    Raises:
        ConfigError: an autoregressive model, or a model of flips.
    """
    if model.config.noise == "flips":
        raise ConfigError("got a model of flips; masked patches need one with noise='hidden'. Try repair")
    P = model.config.patch_bits
    z_BNP = along(patch_BN, restored(model, patch_BN.masked_fill(masked_BN, model.trunk.start)), P)
    bit_BNP = unpack_patches(patch_BN, P).to(z_BNP.dtype)
    nats_BNP = F.binary_cross_entropy_with_logits(z_BNP, bit_BNP, reduction="none")
    return nats_BNP.sum(-1).masked_fill(~masked_BN, 0.0)


def half_lost_logits(model: BitTransformerLM, bits_BT: Tensor) -> Tensor:
    """For telemetry: logits of the bits of every second patch, given the others. With flips: of all bits, a quarter of them flipped: z_BNP."""
    P = model.config.patch_bits
    patch_BN = pack_patches(bits_BT, P)
    if model.config.noise == "hidden":
        lost_N = torch.arange(patch_BN.shape[1], device=patch_BN.device) % 2 == 0
        z_BNP = along(patch_BN, restored(model, patch_BN.masked_fill(lost_N, model.trunk.start)), P)
        return z_BNP[:, lost_N]
    chance_B = torch.full((len(patch_BN),), 0.25, device=patch_BN.device)
    return along(patch_BN, restored(model, flip_bits(patch_BN, chance_B, P), chance_B), P)


class Noised(NamedTuple):
    """Windows with noise, each at its own level.

    Attributes:
        seen_BN: the patches with noise.
        lost_BN: which patches are to be predicted: the masked ones, or with flips all.
        chance_B: flip probability, for a model of flips.
        share_B, weight_B: as in `noise_levels`.
    """

    seen_BN: Tensor
    lost_BN: Tensor
    chance_B: Tensor | None
    share_B: Tensor
    weight_B: Tensor


def noised(model: BitTransformerLM, patch_BN: Tensor, reach: float = 1.0) -> Noised:
    """Add noise of the model's kind to windows, at stratified times up to `reach`, drawn from torch's generator."""
    c = model.config
    share_B, weight_B = noise_levels(len(patch_BN), c.schedule, reach, patch_BN.device)
    if c.noise == "hidden":
        lost_BN = hide_some(patch_BN.shape, share_B)
        return Noised(patch_BN.masked_fill(lost_BN, model.trunk.start), lost_BN, None, share_B, weight_B)
    everywhere_BN, chance_B = torch.ones_like(patch_BN, dtype=torch.bool), share_B / 2
    return Noised(flip_bits(patch_BN, chance_B, c.patch_bits), everywhere_BN, chance_B, share_B, weight_B)


def leaf_scores(node_logit: Tensor) -> NDArray[np.float64]:
    """Log-probabilities of all patches, from the logits of all nodes, with any leading axes."""
    z = node_logit.float().cpu().numpy()
    return leaf_log_probs(z.reshape(-1, z.shape[-1])).reshape(z.shape)


def check_known(
    model: BitTransformerLM, known: Tensor | Bits, fixed: Tensor | NDArray[np.bool_] | None
) -> tuple[Tensor, Tensor]:
    """Check windows and which of their bits are fixed (default: none). Returns both on the CPU.

    Raises:
        BitStreamError: windows that do not fit the model, or `fixed` has a wrong shape or dtype.
    """
    known_BT = torch.as_tensor(known)
    model.check_bits(known_BT)
    model.check_window(known_BT)
    fixed_BT = torch.zeros(known_BT.shape, dtype=torch.bool) if fixed is None else torch.as_tensor(fixed)
    if fixed_BT.shape != known_BT.shape or fixed_BT.dtype != torch.bool:
        raise BitStreamError(
            f"got fixed of shape {tuple(fixed_BT.shape)} and {fixed_BT.dtype}; it must be boolean and of the bits' shape "
            f"{tuple(known_BT.shape)}. Try fixed.bool()"
        )
    return known_BT.cpu(), fixed_BT.cpu()
