"""Infilling: the known bits of a window stay, the rest is sampled.

Samples are drawn in float64. The known part of a patch (fixed bits, even parity) is a mask over its exact distribution.

Sources: Zheng et al. 2024, arXiv:2409.02908 (first-hitting sampler; sampling in float64); Nie et al. 2025, arXiv:2502.09992 (confidence
order); Austin et al. 2021, arXiv:2107.03006 (reverse steps for flips).
"""

# Shapes: B windows, T bits, N patches, P bits of a patch, V = 2^P symbols, K queried positions.
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, get_args

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
FLIP_STEPS = 64  # of a sample, by default


class Filling(NamedTuple):
    """Windows as they are after a network call.

    Attributes:
        bits_BT: uint8; with masked patches, those that are still masked have no meaning. With flips: what the model now takes for the whole.
        masked_BT: which bits are still to be filled in; with flips none, because every call gives a whole window.
        calls: made so far; `total`: in all.
    """

    bits_BT: Tensor
    masked_BT: Tensor
    calls: int
    total: int


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
    """Fill in windows: fixed bits stay, the others are sampled.

    Args:
        known: (B, T) bits, T a multiple of `patch_bits`. The values of bits that are not fixed do not matter.
        fixed: (B, T), which bits stay. Default: none.
        steps: most network calls per window. Default: the model's `diffusion_steps`, else one per patch, or 64 with flips. First-hitting
            takes one per patch.
        order: `first-hitting` fills one patch per call, in random order, as the process in continuous time does. `ancestral` takes
            `steps` equal steps of time; a step may fill several patches or flips, sampled independently. `confidence` fills the patches
            first of which the model is most certain. Default: first-hitting, or ancestral if `steps` is given; with flips only ancestral.
        temperature: 0 takes the most probable patch.
        force_parity: for a model with parity: only bytes with even parity.
        on_call: called after each network call with the calls made so far, and their total.

    Returns:
        (B, T) uint8.

    Raises:
        ConfigError: an autoregressive model, or invalid steps, order, temperature or seed.
        BitStreamError: windows that do not fit the model, or fixed bytes with odd parity.
    """
    last = None
    for last in fillings(
        model,
        known,
        fixed,
        steps=steps,
        order=order,
        temperature=temperature,
        force_parity=force_parity,
        seed=seed,
    ):
        if last.calls:
            on_call(last.calls, last.total)
    assert last is not None
    return last.bits_BT


def fillings(
    model: BitTransformerLM,
    known: Tensor | Bits,
    fixed: Tensor | NDArray[np.bool_] | None = None,
    *,
    steps: int | None = None,
    order: Order | None = None,
    temperature: float = 1.0,
    force_parity: bool = True,
    seed: int | None = None,
) -> Iterator[Filling]:
    """`diffusion_inference` call by call: the windows before the first network call and after each. The last ones are its result.

    Arguments and errors as there; errors are raised here, before the first windows.
    """
    c = model.config
    how = check_filling(model, steps=steps, order=order, temperature=temperature, seed=seed)
    known_BT, fixed_BT = check_known(model, known, fixed)
    parity = force_parity and c.parity
    if parity:
        _check_parity(known_BT, fixed_BT)
    return _fillings(_Filler(model, known_BT, fixed_BT, temperature, parity, seed), how, fixed_BT)


class How(NamedTuple):
    """An order, and the most network calls per window; None: as many as there are patches to fill in, or with flips `FLIP_STEPS`."""

    order: Order
    steps: int | None


def check_filling(
    model: BitTransformerLM,
    *,
    steps: int | None = None,
    order: str | None = None,
    temperature: float = 1.0,
    seed: int | None = None,
) -> How:
    """Refuse invalid settings, and fill in those that are not given.

    Raises:
        ConfigError: an autoregressive model, or invalid steps, order, temperature or seed.
    """
    c = model.config
    check_diffusion(model)
    steps = c.diffusion_steps if steps is None else steps
    if steps is not None and steps < 1:
        raise ConfigError(f"got steps={steps}; at least 1 is needed. Try 64", field="steps")
    order = order or ("first-hitting" if steps is None and c.noise == "hidden" else "ancestral")
    if order not in get_args(Order) or (c.noise == "flips" and order != "ancestral"):
        possible = "ancestral" if c.noise == "flips" else ", ".join(get_args(Order))
        raise ConfigError(
            f"got order={order!r}; with noise={c.noise!r} it must be {possible}. Try ancestral", field="order"
        )
    if not temperature >= 0:
        raise ConfigError(f"got temperature={temperature}; it must be 0 or more. Try 1", field="temperature")
    if seed is not None and seed < 0:
        raise ConfigError(f"got seed={seed}; it must not be negative. Try 1", field="seed")
    return How(order, steps)  # type: ignore[arg-type]


def calls_needed(how: How, flips: bool, masked: int) -> int:
    """Network calls for windows with at most so many patches to fill in."""
    if flips:
        return how.steps or FLIP_STEPS
    return {
        "first-hitting": masked,
        "ancestral": how.steps or masked,
        "confidence": min(how.steps or masked, masked),
    }[how.order]


@torch.inference_mode()
def _fillings(filler: _Filler, how: How, fixed_BT: Tensor) -> Iterator[Filling]:
    c, call = filler.model.config, 0
    total = calls_needed(how, c.noise == "flips", filler.most)
    with in_use(filler.model):
        for masked_BN in filler.reveal(how.order, total) if c.noise == "hidden" else filler.unflip(total):
            bits_BT = unpack_patches(torch.from_numpy(filler.patch_BN), c.patch_bits).flatten(1).to(torch.uint8)
            if call == total and filler.parity and c.patch_bits != 9:
                _make_even(bits_BT, fixed_BT)
            masked_BT = torch.from_numpy(masked_BN).repeat_interleave(c.patch_bits, 1) & ~fixed_BT
            yield Filling(bits_BT, masked_BT, call, total)
            call += 1


def _bytes_of(x_BT: Tensor) -> Tensor:
    """The whole nine-bit bytes of windows, (B, bytes, 9), as a view."""
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
    """Flip a free bit, preferably the ninth, of every byte with odd parity."""
    bytes_B9, free_B9 = _bytes_of(bits_BT), ~_bytes_of(fixed_BT)
    row, place = (bytes_B9.sum(-1) % 2 == 1).nonzero(as_tuple=True)
    last_free = 8 - free_B9[row, place].flip(-1).int().argmax(-1)
    bytes_B9[row, place, last_free] ^= 1


class _Filler:
    """Windows that are being filled in, and the model."""

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
        self.patch_BN = (
            pack_patches(known_BT, P).numpy().copy()
        )  # a copy: with one-bit patches it would be the caller's array
        self.known_BNP = known_BT.view(len(known_BT), -1, P).numpy()
        self.fixed_BNP = fixed_BT.view(self.known_BNP.shape).numpy()
        self.parity, self.even = parity, parity and P == 9
        self.masked_BN = np.logical_not(self.fixed_BNP.all(-1))
        self.most = int(self.masked_BN.sum(1).max(initial=0))

    def reveal(self, order: Order, calls: int) -> Iterator[NDArray[np.bool_]]:
        """Fill in the masked patches: `patch_BN` changes. Yields which are still masked, before the first call and after each."""
        masked_BN = self.masked_BN
        yield masked_BN
        for call in range(calls):
            left_B, later = masked_BN.sum(1), calls - call
            # With the linear schedule, equal steps of time reveal equal fractions.
            count_B = -(-left_B // later) if order != "ancestral" else self.random.binomial(left_B, 1 / later)
            if count_B.any():
                key_BN = self.random.random(masked_BN.shape)
                if order == "confidence":
                    scores_KV = self._scores(masked_BN, masked_BN)
                    key_BN[masked_BN] = np.logaddexp.reduce(scores_KV, axis=-1) - scores_KV.max(-1)
                chosen_BN = _first(key_BN, masked_BN, count_B)
                if order == "confidence":
                    scores_KV = scores_KV[chosen_BN[masked_BN]]
                else:
                    scores_KV = self._scores(masked_BN, chosen_BN)
                self.patch_BN[chosen_BN] = draw_patches(scores_KV, self.temperature, self.random)
                masked_BN = masked_BN & ~chosen_BN
            yield masked_BN

    def unflip(self, steps: int) -> Iterator[NDArray[np.bool_]]:
        """Undo flips, from fair coin flips to the window: `patch_BN` changes, and yields as `reveal`."""
        B, N, P = self.known_BNP.shape
        yield self.masked_BN
        device = self.model.head.weight.device
        seen_BNP = self.random.integers(0, 2, (B, N, P))
        flip_probability = flip_chance(torch.linspace(0, 1, steps + 1, dtype=torch.float64))
        back = steps_back(flip_probability[:-1].numpy(), flip_probability[1:].numpy())
        everywhere_BN, nothing_BN = np.ones((B, N), dtype=bool), np.zeros((B, N), dtype=bool)
        for step in reversed(range(steps)):
            seen_BN = pack_patches(torch.from_numpy(seen_BNP).flatten(1), P).to(device)
            probability_B = flip_probability[step + 1].float().expand(B).to(device)
            scores_BNV = leaf_scores(restored(self.model, seen_BN, probability_B))
            scores_KV = self._allowed(scores_BNV.reshape(B * N, -1), everywhere_BN)
            self.patch_BN = draw_patches(scores_KV, self.temperature, self.random).reshape(B, N)
            true_BNP = unpack_patches(torch.from_numpy(self.patch_BN), P).numpy()
            one_BNP = back[step][true_BNP, seen_BNP, 1]
            seen_BNP = (self.random.random((B, N, P)) < one_BNP).astype(np.int64)
            yield nothing_BN  # before the first step nothing is flipped, so these are whole windows

    def _scores(self, masked_BN: NDArray[np.bool_], at_BN: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Log-probabilities of all patches at the chosen positions, -inf for those not allowed: (K, V)."""
        seen_BN = torch.from_numpy(np.where(masked_BN, self.model.trunk.start, self.patch_BN))
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
    """Among the marked entries of each row, the `count_B` with the smallest keys."""
    rank_BN = np.where(among_BN, key_BN, np.inf).argsort(axis=1, kind="stable").argsort(axis=1)
    return among_BN & (rank_BN < count_B[:, None])
