"""Filling in: whatever is known of a window stays, the rest is drawn.

Draws are made in float64. What is known of a patch (fixed bits, even parity) is a mask over its exact distribution.

Sources: Zheng et al. 2024, arXiv:2409.02908 (first-hitting sampler; draws in float64); Nie et al. 2025, arXiv:2502.09992 (confidence order);
Austin et al. 2021, arXiv:2107.03006 (steps back through flips).
"""

# Shapes: B windows, T bits, N patches, P bits of a patch, V = 2^P symbols, K places that are asked for.
from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bit_transformer.bit_io import Bits
from bit_transformer.diffusion.bound import flip_chance, steps_back
from bit_transformer.diffusion.denoiser import check_diffusion, check_known, leaf_scores, restored
from bit_transformer.errors import BitStreamError, ConfigError
from bit_transformer.model import BitTransformerLM, in_use
from bit_transformer.nn.patching import draw_patches, pack_patches, unpack_patches

Order = Literal["first-hitting", "ancestral", "confidence"]
FLIP_STEPS = 64  # of a sample, unless told otherwise


@torch.inference_mode()
def diffusion_inference(
    model: BitTransformerLM,
    known: Tensor | Bits,
    fixed: Tensor | NDArray[np.bool_] | None = None,
    *,
    steps: int | None = None,
    order: Order | None = None,
    temperature: float = 1.0,
    force_parity: bool = True,
    seed: int | None = None,
    on_call: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Fill in windows: whatever bits are fixed stay, the others are drawn.

    Args:
        known: (B, T) bits, T a multiple of `patch_bits`; those that are not fixed may be anything.
        fixed: (B, T), which bits stay; none are if it is not given.
        steps: network calls of a window, at most; not given: the model's `diffusion_steps`, or one a patch, or 64 through flips. First-hitting
            takes one a patch.
        order: `first-hitting` reveals one patch a call, in random order, as the process in continuous time does; `ancestral` takes
            `steps` equal steps of time, several patches or flips at one, drawn independently of one another; `confidence` reveals
            the patches of which the model is surest first. Not given: first-hitting, or with `steps` ancestral; through flips
            there is only ancestral.
        temperature: 0 takes the likeliest patch.
        force_parity: of a model with parity: only bytes whose parity is even.
        on_call: called after each network call with how many were made, of how many.

    Returns:
        (B, T) uint8.

    Raises:
        ConfigError: an autoregressive model, or steps, an order, a temperature or a seed that cannot be.
        BitStreamError: windows that do not fit the model, or fixed bytes whose parity is odd.
    """
    c = model.config
    check_diffusion(model)
    steps = c.diffusion_steps if steps is None else steps
    if steps is not None and steps < 1:
        raise ConfigError(f"steps={steps}; at least 1 is needed. Try 64")
    order = order or ("first-hitting" if steps is None and c.noise == "hidden" else "ancestral")
    if order not in get_args(Order) or (c.noise == "flips" and order != "ancestral"):
        possible = "ancestral" if c.noise == "flips" else ", ".join(get_args(Order))
        raise ConfigError(f"order={order!r}; through noise={c.noise!r} it must be {possible}. Try ancestral")
    if not temperature >= 0:
        raise ConfigError(f"temperature={temperature}; it must be 0 or more. Try 1")
    if seed is not None and seed < 0:
        raise ConfigError(f"seed={seed}; it must not be negative. Try 1")
    known_BT, fixed_BT = check_known(model, known, fixed)
    parity = force_parity and c.parity
    if parity:
        _check_parity(known_BT, fixed_BT)
    filler = _Filler(model, known_BT, fixed_BT, temperature, parity, seed, on_call)
    with in_use(model):
        patch_BN = filler.reveal(order, steps) if c.noise == "hidden" else filler.unflip(steps or FLIP_STEPS)
    bits_BT = unpack_patches(torch.from_numpy(patch_BN), c.patch_bits).flatten(1).to(torch.uint8)
    if parity and c.patch_bits != 9:
        _make_even(bits_BT, fixed_BT)
    return bits_BT


def _bytes_of(x_BT: Tensor) -> Tensor:
    """The whole bytes of nine bits in windows, (B, bytes, 9), a view."""
    return x_BT[:, : x_BT.shape[1] // 9 * 9].view(len(x_BT), -1, 9)


def _check_parity(known_BT: Tensor, fixed_BT: Tensor) -> None:
    odd = (_bytes_of(known_BT).sum(-1) % 2 == 1) & _bytes_of(fixed_BT).all(-1)
    if odd.any():
        row, place = odd.nonzero()[0].tolist()
        raise BitStreamError(
            f"got fixed bits with odd parity in window {row}, byte {place}; a byte's nine bits must hold an even number of "
            f"ones. Try repair, repair_parity, or force_parity=False"
        )


def _make_even(bits_BT: Tensor, fixed_BT: Tensor) -> None:
    """Flip a bit that is free, the ninth if it is, of every byte whose parity is odd."""
    bytes_B9, free_B9 = _bytes_of(bits_BT), ~_bytes_of(fixed_BT)
    row, place = (bytes_B9.sum(-1) % 2 == 1).nonzero(as_tuple=True)
    last_free = 8 - free_B9[row, place].flip(-1).int().argmax(-1)
    bytes_B9[row, place, last_free] ^= 1


class _Filler:
    """Windows being filled in: what is known of them, and the model that is asked."""

    def __init__(
        self,
        model: BitTransformerLM,
        known_BT: Tensor,
        fixed_BT: Tensor,
        temperature: float,
        parity: bool,
        seed: int | None,
        on_call: Callable[[int, int], None],
    ) -> None:
        P = model.config.patch_bits
        self.model, self.temperature, self.random, self.on_call = (
            model,
            temperature,
            np.random.default_rng(seed),
            on_call,
        )
        self.patch_BN = pack_patches(known_BT, P).numpy().copy()  # of single bits it would be the caller's
        self.known_BNP = known_BT.view(len(known_BT), -1, P).numpy()
        self.fixed_BNP = fixed_BT.view(self.known_BNP.shape).numpy()
        self.even = parity and P == 9

    def reveal(self, order: Order, steps: int | None) -> NDArray[np.int64]:
        """Fill in what is hidden; the patches."""
        hidden_BN = np.logical_not(self.fixed_BNP.all(-1))
        most = int(hidden_BN.sum(1).max(initial=0))
        calls = {"first-hitting": most, "ancestral": steps or most, "confidence": min(steps or most, most)}[order]
        for call in range(calls):
            left_B, later = hidden_BN.sum(1), calls - call
            # Equal steps of time with the linear schedule reveal equal shares.
            count_B = -(-left_B // later) if order != "ancestral" else self.random.binomial(left_B, 1 / later)
            if count_B.any():
                key_BN = self.random.random(hidden_BN.shape)
                if order == "confidence":
                    scores_KV = self._scores(hidden_BN, hidden_BN)
                    key_BN[hidden_BN] = np.logaddexp.reduce(scores_KV, axis=-1) - scores_KV.max(-1)
                chosen_BN = _first(key_BN, hidden_BN, count_B)
                if order == "confidence":
                    scores_KV = scores_KV[chosen_BN[hidden_BN]]
                else:
                    scores_KV = self._scores(hidden_BN, chosen_BN)
                self.patch_BN[chosen_BN] = draw_patches(scores_KV, self.temperature, self.random)
                hidden_BN = hidden_BN & ~chosen_BN
            self.on_call(call + 1, calls)
        return self.patch_BN

    def unflip(self, steps: int) -> NDArray[np.int64]:
        """Draw what was flipped, from fair coins back to the window; the patches."""
        B, N, P = self.known_BNP.shape
        device = self.model.head.weight.device
        seen_BNP = self.random.integers(0, 2, (B, N, P))
        chance = flip_chance(torch.linspace(0, 1, steps + 1, dtype=torch.float64))
        back = steps_back(chance[:-1].numpy(), chance[1:].numpy())
        everywhere_BN = np.ones((B, N), dtype=bool)
        for call, step in enumerate(reversed(range(steps))):
            seen_BN = pack_patches(torch.from_numpy(seen_BNP).flatten(1), P).to(device)
            chance_B = chance[step + 1].float().expand(B).to(device)
            scores_BNV = leaf_scores(restored(self.model, seen_BN, chance_B))
            scores_KV = self._allowed(scores_BNV.reshape(B * N, -1), everywhere_BN)
            self.patch_BN = draw_patches(scores_KV, self.temperature, self.random).reshape(B, N)
            true_BNP = unpack_patches(torch.from_numpy(self.patch_BN), P).numpy()
            one_BNP = back[step][true_BNP, seen_BNP, 1]
            seen_BNP = (self.random.random((B, N, P)) < one_BNP).astype(np.int64)
            self.on_call(call + 1, steps)
        return self.patch_BN  # nothing is flipped before the first step

    def _scores(self, hidden_BN: NDArray[np.bool_], at_BN: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Log-probabilities of all patches at some places, -inf where they are not allowed: (K, V)."""
        seen_BN = torch.from_numpy(np.where(hidden_BN, self.model.trunk.start, self.patch_BN))
        h_BND = self.model.trunk(seen_BN.to(self.model.head.weight.device))
        h_KD = h_BND[torch.from_numpy(at_BN).to(h_BND.device)]
        return self._allowed(leaf_scores(self.model.head(h_KD)), at_BN)

    def _allowed(self, scores_KV: NDArray[np.float64], at_BN: NDArray[np.bool_]) -> NDArray[np.float64]:
        known_K1P, fixed_K1P = self.known_BNP[at_BN][:, None], self.fixed_BNP[at_BN][:, None]
        bit_VP = unpack_patches(torch.arange(scores_KV.shape[1]), self.known_BNP.shape[2]).numpy()
        allowed_KV = ((bit_VP == known_K1P) | ~fixed_K1P).all(-1)
        if self.even:
            allowed_KV &= bit_VP.sum(1) % 2 == 0
        return np.where(allowed_KV, scores_KV, -np.inf)


def _first(key_BN: NDArray[np.float64], among_BN: NDArray[np.bool_], count_B: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Of those that are among, so many of each row with the smallest keys."""
    rank_BN = np.where(among_BN, key_BN, np.inf).argsort(axis=1, kind="stable").argsort(axis=1)
    return among_BN & (rank_BN < count_B[:, None])
