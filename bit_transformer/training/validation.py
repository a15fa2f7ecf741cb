"""Validation during training, and the weights kept by it: the best so far, and an average of the latest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bit_transformer.checkpoint import load_weights
from bit_transformer.config import TrainConfig
from bit_transformer.data.sources import Corpus
from bit_transformer.errors import NonFiniteLoss
from bit_transformer.evaluation.metrics import ModelScorer, default_protocol
from bit_transformer.evaluation.scorer import cost_of
from bit_transformer.experts.bank import ExpertBank
from bit_transformer.experts.feature_cache import MEMORY
from bit_transformer.experts.passes import KeptFeatures, feature_bytes
from bit_transformer.model import BitTransformerLM, current_name
from bit_transformer.tensor_file import under
from bit_transformer.training.state import Progress

OVERFIT_RISE = 0.002  # over-fitting: validation above the best by this fraction, while training improves ...
OVERFIT_CHECKS = 2  # ... this many times in a row
AVERAGED = 50  # updates of the weight average per budget


class Validation:
    """Scores held-out bytes and keeps weights by the result.

    Args:
        corpus: the held-out bytes.
        agreed: what ranks that train together take for a result, since each decides by it.

    Attributes:
        best: weights by name at the best validation, with `config.keep_best`; None before the first.
        average: of the weights over the latest part of the budget, with `config.average`.
    """

    def __init__(self, corpus: Corpus, config: TrainConfig, agreed: Callable[[float], float] = lambda bpb: bpb) -> None:
        self.corpus, self.config, self.agreed = corpus, config, agreed
        self.best: dict[str, Tensor] | None = None
        self.average: dict[str, Tensor] | None = None
        self._features: tuple[ExpertBank, int, KeptFeatures] | None = None

    def enter_average(self, model: BitTransformerLM, p: Progress) -> None:
        """Add the weights to their exponential average.

        The average over the latest tenth of a training equals what learning rates that fall to zero would give (Hägele et al. 2024,
        arXiv:2405.18392). So little is lost if validation is best early, in a budget that is too long for the data.
        """
        if not (self.config.average and self.config.keep_best):
            return
        if self.average is None:
            self.average = _copied(model)
        with torch.no_grad():
            for name, tensor in model.weights().items():
                self.average[name].lerp_(tensor, min(1.0, (p.share - p.averaged) / self.config.average))
        p.averaged = p.share

    def measure(self, model: BitTransformerLM, p: Progress, rows: int) -> tuple[float, float]:
        """Bits per byte of the current weights, and of the weights to keep: these, or their average if that is better.

        Args:
            rows: windows per batch.

        Raises:
            NonFiniteLoss: a result is not finite.
        """
        latest = bpb = self._scored(model, p, rows)
        now = best = _copied(model) if self.config.keep_best else None
        if now is not None and self.average is not None:
            load_weights(model, self.average, Path("the average of weights"))
            try:
                averaged = self._scored(model, p, rows)
            finally:
                load_weights(model, now, Path("the latest weights"))
            if averaged < latest:
                bpb = averaged
                for name, tensor in self.average.items():
                    now[name].copy_(tensor)
        self._notice_overfitting(p, bpb)
        p.stale = 0 if bpb < p.best_bpb else p.stale + 1
        if bpb < p.best_bpb:
            p.best_bpb, p.best_step, p.best_train_bpb, self.best = bpb, p.step, p.train_bpb, best
        return latest, bpb

    def forget(self) -> None:
        """Drop the kept weights, because the model has another shape now."""
        self.best = self.average = None

    def tensors(self) -> dict[str, Tensor]:
        """The kept weights, for a file."""
        kept = {"best": self.best or {}, "average": self.average or {}}
        return {f"{which}.{name}": tensor for which, weights in kept.items() for name, tensor in weights.items()}

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` gave."""
        self.best, self.average = (
            {current_name(name): tensor for name, tensor in under(kept, tensors).items()} or None
            for kept in ("best.", "average.")
        )

    def _scored(self, model: BitTransformerLM, p: Progress, rows: int) -> float:
        how = default_protocol(model, overlap=0.0)
        if how.samples:  # a diffusion model: a quick estimate
            how = replace(how, samples=2)
        scorer = ModelScorer(model, how, batch=rows, features=self._known_features(model, how.learning != "static"))
        bpb = self.agreed(cost_of(scorer, self.corpus).bpb)
        if not math.isfinite(bpb):
            raise NonFiniteLoss(
                f"got a validation of {bpb} bits per byte after step {p.step}; it must be finite. Try a lower "
                f"train.optim.lr and matrix_lr",
                p.step,
            )
        return bpb

    def _known_features(self, model: BitTransformerLM, learn: bool) -> KeptFeatures | None:
        """The experts' features of the held-out bytes, computed again only after the experts have learned: a large bank takes seconds to copy."""
        shape = model.config
        if shape.experts is None or feature_bytes(self.corpus, shape) > MEMORY:
            return None
        bank = model.bank
        if self._features is None or self._features[0] is not bank or self._features[1] != bank.count:
            self._features = bank, bank.count, KeptFeatures(self.corpus, shape, bank, learn=learn)
        return self._features[2]

    def _notice_overfitting(self, p: Progress, bpb: float) -> None:
        """Detect that validation keeps rising while training improves."""
        rises = bpb > p.best_bpb * (1 + OVERFIT_RISE) and p.train_bpb < p.best_train_bpb
        p.worse = p.worse + 1 if rises else 0
        if p.worse >= OVERFIT_CHECKS and not p.overfit_since:
            p.overfit_since = p.best_step


def _copied(model: BitTransformerLM) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.weights().items()}
