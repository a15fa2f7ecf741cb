"""Training objectives. An objective maps a model and windows to a `Prediction`, with the loss.

    objective = objective_for(model.config)                  # next bit, or denoising, with the config's penalties
    objective = objective_for(student, teacher=teacher)      # the data and a teacher's predictions
    objective(model, bits_BT).loss.backward()

Objectives wrap one another. `Distilled` and `Penalized` work with every kind of model, because a prediction also gives the cost of other
targets, and another model's prediction of the same windows.

Source: Hinton et al. 2015, arXiv:1503.02531 (distillation); the bounds of denoising are in `diffusion/`.
"""

# Shapes: B windows, T bits, N patches, P bits of a patch, F features of a bit.
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from bit_transformer.config import ModelConfig
from bit_transformer.diffusion import denoiser
from bit_transformer.diffusion.noise import flips_cost, noise_share
from bit_transformer.errors import ConfigError
from bit_transformer.model import BitTransformerLM, nats_of
from bit_transformer.nn.patching import bit_chances, pack_patches, unpack_patches
from bit_transformer.telemetry import penalties


@dataclass(frozen=True)
class Prediction:
    """A forward pass over windows, and its loss.

    Attributes:
        loss: the loss to minimise; has a gradient.
        nats: mean negative log-likelihood of the data per bit, or a bound on it.
        z_BNP: logits along the data's path, with a gradient.
        patch_BN: the data; `bit_BNP`: its bits.
        cost: mean nats per bit of other targets, given as probabilities of ones in (B, N, P).
        by: another model's prediction from the same input: z_BNP.
        lost_BN: which patches were predicted; None: all.
        features_BTF: the experts' features, if there are any.
        coded: of windows that were replaced by their run-length codes: mean nats per bit of these, and their fraction of the windows.
    """

    loss: Tensor
    nats: Tensor
    z_BNP: Tensor
    patch_BN: Tensor
    bit_BNP: Tensor
    cost: Callable[[Tensor], Tensor]
    by: Callable[[BitTransformerLM], Tensor]
    lost_BN: Tensor | None = None
    features_BTF: Tensor | None = None
    coded: tuple[Tensor, float] | None = None


class Objective(Protocol):
    """A training objective."""

    def __call__(
        self, model: BitTransformerLM, bits_BT: Tensor, features_BTF: Tensor | None = None, *, reach: float = 1.0
    ) -> Prediction:
        """Predict windows.

        Args:
            features_BTF: int8, for a model with experts: their features of each bit. Default: computed by the bank as it is, without
                context from before the window.
            reach: for a diffusion model: noise is drawn up to this time, in (0, 1]. Below 1 the nats are a mean over these times, not a
                bound.

        Raises:
            BitStreamError: a wrong shape, or windows that are too long. Values are not checked, because that would wait for the device.
        """


class NextBit:
    """Mean negative log-likelihood of every bit, given the bits before it."""

    def __call__(
        self, model: BitTransformerLM, bits_BT: Tensor, features_BTF: Tensor | None = None, *, reach: float = 1.0
    ) -> Prediction:
        """As in `Objective`."""
        z_BNP, patch_BN, features_BTF = model.window_logits(bits_BT, features_BTF)

        def cost(target_BNP: Tensor) -> Tensor:
            return nats_of(z_BNP, target_BNP.flatten(1)).mean()

        bit_BNP = bits_BT.view(z_BNP.shape)
        nats = cost(bit_BNP)
        return Prediction(
            loss=nats,
            nats=nats,
            z_BNP=z_BNP,
            patch_BN=patch_BN,
            bit_BNP=bit_BNP,
            cost=cost,
            by=lambda other: other.window_logits(bits_BT, features_BTF)[0],
            features_BTF=features_BTF,
        )


class Denoising:
    """The bound of a diffusion model, at one time per window, drawn from torch's generator. With flips the loss is the cost of the patches,
    weighted as in the bound."""

    def __call__(
        self, model: BitTransformerLM, bits_BT: Tensor, features_BTF: Tensor | None = None, *, reach: float = 1.0
    ) -> Prediction:
        """As in `Objective`."""
        model.check_window(bits_BT)
        c = model.config
        P, T = c.patch_bits, bits_BT.shape[1]
        patch_BN = pack_patches(bits_BT, P)
        noised = denoiser.noised(model, patch_BN, reach)
        reached = noise_share(torch.tensor(reach), c.schedule).item() / reach  # the mean of weight times fraction
        node_logit_BNV = denoiser.restored(model, noised.seen_BN, noised.chance_B)
        z_BNP = denoiser.along(patch_BN, node_logit_BNV, P)
        bit_BNP = unpack_patches(patch_BN, P)

        def cost(target_BNP: Tensor) -> Tensor:
            nats_BNP = F.binary_cross_entropy_with_logits(z_BNP, target_BNP.to(z_BNP.dtype), reduction="none")
            nats_B = nats_BNP.sum(-1).masked_fill(~noised.lost_BN, 0.0).sum(1)
            return (nats_B * noised.weight_B).mean() / T / reached

        def by(other: BitTransformerLM) -> Tensor:
            return denoiser.along(patch_BN, denoiser.restored(other, noised.seen_BN, noised.chance_B), P)

        loss = nats = cost(bit_BNP)
        if c.noise == "flips":
            one_BNP = bit_chances(node_logit_BNV.detach().float())
            seen_BNP = unpack_patches(noised.seen_BN, P)
            nats = flips_cost(one_BNP, bit_BNP, seen_BNP, noised.share_B, noised.weight_B).mean() / T
        return Prediction(loss, nats, z_BNP, patch_BN, bit_BNP, cost, by, noised.lost_BN)


@dataclass(frozen=True)
class Distilled:
    """Distillation: targets are a mix of the data's bits and a teacher's predictions, given the data's earlier bits.

    Attributes:
        of: the objective without distillation.
        teacher: gets the same input as the student.
        trust: weight of the teacher's predictions, in [0, 1]; the data's bits have the rest.
    """

    of: Objective
    teacher: BitTransformerLM
    trust: float = 0.5

    def __call__(
        self, model: BitTransformerLM, bits_BT: Tensor, features_BTF: Tensor | None = None, *, reach: float = 1.0
    ) -> Prediction:
        """As in `Objective`."""
        made = self.of(model, bits_BT, features_BTF, reach=reach)
        dtype = made.z_BNP.dtype
        with torch.no_grad():
            taught_BNP = made.by(self.teacher).sigmoid()
        target_BNP = torch.lerp(made.bit_BNP.to(dtype), taught_BNP.to(dtype), self.trust)
        return replace(made, loss=made.cost(target_BNP))


@dataclass(frozen=True)
class Penalized:
    """Adds penalties on the predictions to a loss, each in [0, 1], as defined in `telemetry/penalties.py`.

    Attributes:
        of: the objective without penalties.
        lambda_K: weight of 1 - K; `lambda_C`: of repetition; `lambda_S`: of (1 - S)^2, with experts.
    """

    of: Objective
    lambda_K: float = 0.0
    lambda_C: float = 0.0
    lambda_S: float = 0.0

    def __call__(
        self, model: BitTransformerLM, bits_BT: Tensor, features_BTF: Tensor | None = None, *, reach: float = 1.0
    ) -> Prediction:
        """As in `Objective`."""
        made = self.of(model, bits_BT, features_BTF, reach=reach)
        loss, z_BNP = made.loss, made.z_BNP
        if self.lambda_K:
            loss = loss + self.lambda_K * penalties.uncertainty(z_BNP if made.lost_BN is None else z_BNP[made.lost_BN])
        if self.lambda_C:
            loss = loss + self.lambda_C * penalties.repetition(z_BNP, made.patch_BN)
        if self.lambda_S and made.features_BTF is not None:
            said_BNP = model.experts_probability(made.features_BTF).view_as(z_BNP)
            loss = loss + self.lambda_S * penalties.disagreement(z_BNP, said_BNP)
        return replace(made, loss=loss)


def objective_for(model: ModelConfig, *, teacher: BitTransformerLM | None = None, trust: float = 0.5) -> Objective:
    """The objective for a kind of model, with a teacher if given, and with the config's penalties."""
    objective: Objective = NextBit() if model.causal else Denoising()
    if teacher is not None:
        objective = Distilled(objective, teacher, trust)
    if model.lambda_K or model.lambda_C or model.lambda_S:
        objective = Penalized(objective, model.lambda_K, model.lambda_C, model.lambda_S)
    return objective


def check_teacher(teacher: ModelConfig, student: ModelConfig) -> None:
    """Refuse a teacher that cannot read the student's input.

    Raises:
        ConfigError: they differ in more than size, or the student's windows are too long for the teacher.
    """
    for name in ("patch_bits", "parity", "causal", "noise", "experts"):
        if getattr(teacher, name) != getattr(student, name):
            raise ConfigError(
                f"got {name}={getattr(student, name)!r} and a teacher with {getattr(teacher, name)!r}; both must be the same. Try "
                f"{name}={getattr(teacher, name)!r}"
            )
    if student.max_seq_len > teacher.max_seq_len:
        raise ConfigError(
            f"got max_seq_len={student.max_seq_len}; it must be at most the teacher's {teacher.max_seq_len}. Try max_seq_len={teacher.max_seq_len}"
        )


def losses(
    model: BitTransformerLM,
    bits_BT: Tensor,
    features_BTF: Tensor | None = None,
    *,
    reach: float = 1.0,
    teacher: BitTransformerLM | None = None,
    trust: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """For your own training loop: the loss of windows under the model's objective, and their nats per bit.

    Args:
        bits_BT: zeros and ones, a tensor or an array; T a multiple of `patch_bits`.
        features_BTF, reach: as in `Objective`.
        teacher, trust: as in `Distilled`.

    Raises:
        BitStreamError: a wrong shape, a value other than 0 or 1, or windows that are too long.
    """
    bits_BT = torch.as_tensor(bits_BT, device=model.head.weight.device)
    model.check_bits(bits_BT)
    if features_BTF is not None:
        features_BTF = features_BTF.to(bits_BT.device)
    made = objective_for(model.config, teacher=teacher, trust=trust)(model, bits_BT, features_BTF, reach=reach)
    return made.loss, made.nats
