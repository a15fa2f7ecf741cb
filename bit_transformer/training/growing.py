"""Growth during training: when the model grows, and the optimizers after it. The model grows between loops, never inside one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch

from bit_transformer.config import GrowthConfig, ModelConfig, OptimConfig
from bit_transformer.growth import place
from bit_transformer.model import BitTransformerLM
from bit_transformer.training.optim import Optimizers
from bit_transformer.training.state import Progress

# A weight scaled by s has moments scaled by s to this power.
POWERS = {"momentum": -1, "exp_avg": -1, "exp_avg_sq": -2}


class Growth:
    """The growth plan of a training. Without growth it has one stage.

    Args:
        how: when to grow; None: never.
        stages: the model configs, from the first to the target.
        may_grow: whether a config fits into memory.
        agreed: what ranks that train together take for a result.
    """

    def __init__(
        self,
        how: GrowthConfig | None,
        stages: list[ModelConfig],
        may_grow: Callable[[ModelConfig], bool] = lambda _: True,
        agreed: Callable[[float], float] = lambda number: number,
    ) -> None:
        self.how, self.stages, self.may_grow, self.agreed = how, stages, may_grow, agreed

    def next(self, p: Progress) -> ModelConfig | None:
        """The config to grow to now, or None. It is time on a plateau, or when later stages would otherwise have no time left."""
        trained = p.step > p.grown_at  # every stage gets at least one update
        if self.how is None or p.ceiling or not trained or p.stage + 1 >= len(self.stages):
            return None
        late = p.share >= self.how.latest * (p.stage + 1) / len(self.stages)
        if not (late or p.weak >= self.how.patience):
            return None
        p.ceiling = not self.agreed(float(self.may_grow(self.stages[p.stage + 1])))
        return None if p.ceiling else self.stages[p.stage + 1]

    def grown(self, p: Progress) -> None:
        """Record that the model has grown."""
        p.stage, p.grown_at, p.weak, p.stale, p.mark_bpb = p.stage + 1, p.step, 0, 0, math.inf
        p.best_bpb = math.inf  # the old value was of another shape

    def validated(self, p: Progress, bpb: float) -> None:
        """Record a validation of the current weights, and whether it improved enough."""
        if self.how is None:
            return
        p.weak = 0 if bpb < p.mark_bpb * (1 - self.how.threshold) else p.weak + 1
        p.mark_bpb = min(bpb, p.mark_bpb)

    def rate(self, p: Progress) -> float:
        """Factor of the learning rates: lower in later stages, with a warmup after each growth."""
        if self.how is None or not p.stage:
            return 1.0
        risen = (p.step - p.grown_at + 1) / self.how.warmup_steps if self.how.warmup_steps else 1.0
        return self.how.rate**p.stage * min(1.0, risen)


def expand_optimizers(
    before: Optimizers, model: BitTransformerLM, larger: BitTransformerLM, config: OptimConfig, ranks: int = 1
) -> Optimizers:
    """Make optimizers for a grown model, with the state of the smaller model's.

    If a weight was scaled, its gradient scales inversely, and so do its moments. New weights have no moments.
    """
    after, grown = Optimizers(larger, config, ranks=ranks), dict(larger.named_parameters())
    after.load_state_dict(
        {
            name: {
                key: place(name, value, torch.zeros_like(grown[name]), model.config, larger.config, POWERS[key])
                if key in POWERS
                else copy.deepcopy(value)
                for key, value in state.items()
            }
            for name, state in before.state_dict().items()
        }
    )
    return after
