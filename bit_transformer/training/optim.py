"""Three optimizers for three kinds of parameters, and their common schedule.

Muon is for the matrices of the blocks, AdamW for embeddings and head, sparse Adam for n-gram tables. The schedule depends on the fraction
of the budget spent, so it works the same for steps, bytes or seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bit_transformer.config import OptimConfig
from bit_transformer.distributed.matrices import on_replicas, on_shards
from bit_transformer.distributed.shards import held, is_sharded
from bit_transformer.distributed.shards import whole as whole_of
from bit_transformer.nn.ngram import NgramEmbedding
from bit_transformer.pieces import MUON_PIECE


class Muon(Optimizer):
    """Orthogonalised momentum: every matrix is updated by the semi-orthogonal matrix nearest to its momentum.

    `torch.optim.Muon` computes the same update in bfloat16, one matrix at a time. On a CPU without bfloat16 arithmetic it is about fifty
    times slower than this one, which uses the parameters' dtype and handles all matrices of one shape at once.

    Args:
        ranks: how many processes share the work, each on some of the matrices; they must have the same parameters, whole or sharded.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks", including the step's factor
    sqrt(max(1, rows / columns)).
    """

    def __init__(
        self, params: Any, lr: float, momentum: float = 0.95, weight_decay: float = 0.0, *, ranks: int = 1
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.ranks = ranks

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            for same_shape in _by_shape([p for p in group["params"] if p.grad is not None]):
                updates = self._orthogonalized([self._nesterov(p, group["momentum"]) for p in same_shape])
                rows, columns = same_shape[0].shape
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                for p, update in zip(same_shape, updates, strict=True):
                    held(p).mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=scale)

    def _orthogonalized(self, momenta: list[Tensor]) -> Tensor:
        stack_MRC = torch.stack([held(momentum) for momentum in momenta])
        if self.ranks == 1:
            return orthogonalize(stack_MRC)
        if is_sharded(momenta[0]):
            return on_shards(orthogonalize, stack_MRC, momenta[0].shape[0], momenta[0].device_mesh.get_group())  # type: ignore[attr-defined]
        return on_replicas(orthogonalize, stack_MRC)

    def _nesterov(self, p: Tensor, momentum: float) -> Tensor:
        assert p.grad is not None
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        average: Tensor = state["momentum"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(average, momentum)


def _by_shape(params: list[Tensor]) -> list[list[Tensor]]:
    """Group parameters of one shape, with at most `MUON_PIECE` elements per group, because several copies are in memory at once."""
    groups: dict[torch.Size, list[Tensor]] = {}
    for p in params:
        groups.setdefault(p.shape, []).append(p)
    pieces: list[list[Tensor]] = []
    for group in groups.values():
        count = max(1, MUON_PIECE // group[0].numel())
        pieces += [group[at : at + count] for at in range(0, len(group), count)]
    return pieces


def orthogonalize(g_MRC: Tensor, steps: int = 5) -> Tensor:
    """Move the singular values of each matrix to about 1 by a quintic Newton-Schulz iteration.

    Args:
        g_MRC: M matrices of R rows and C columns.

    Returns:
        the same shape; singular values are within [0.6, 1.3], except for tiny ones.

    Source: Jordan et al. 2024, as above; their coefficients favour speed over convergence to 1.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g_MRC.shape[-2] > g_MRC.shape[-1]
    x_MRC = g_MRC.mT if tall else g_MRC
    x_MRC = x_MRC / (x_MRC.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram_MRR = x_MRC @ x_MRC.mT
        x_MRC = torch.baddbmm(x_MRC, torch.baddbmm(gram_MRR, gram_MRR, gram_MRR, beta=b, alpha=c), x_MRC, beta=a)
    return x_MRC.mT if tall else x_MRC


class Optimizers:
    """Several optimizers that step together; each group's rate is its peak times the schedule.

    Args:
        ranks: how many processes train the model.
    """

    def __init__(self, model: nn.Module, config: OptimConfig, *, ranks: int = 1) -> None:
        groups = split_parameters(model)
        if not config.muon:
            groups["adam"] = groups.pop("matrix") + groups["adam"]
        self.parts: dict[str, Optimizer] = {}
        decay = config.weight_decay
        if groups.get("matrix"):
            self.parts["matrix"] = Muon(groups["matrix"], config.matrix_lr, config.momentum, decay, ranks=ranks)
        if groups["table"]:
            self.parts["table"] = torch.optim.SparseAdam(groups["table"], config.table_lr, config.betas)
        self.parts["adam"] = torch.optim.AdamW(groups["adam"], config.lr, config.betas, weight_decay=decay, fused=True)
        self._names = {id(p): name for name, p in model.named_parameters()}
        self.set_peaks(config)

    def set_peaks(self, config: OptimConfig) -> None:
        """Take the peak learning rates of a config; `set_rate` brings them into force."""
        self._peak = {"matrix": config.matrix_lr, "table": config.table_lr, "adam": config.lr}

    def set_rate(self, share: float) -> None:
        """Set every group's rate to this fraction of its peak."""
        for name, part in self.parts.items():
            for group in part.param_groups:
                group["lr"] = self._peak[name] * share

    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        for part in self.parts.values():
            part.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for part in self.parts.values():
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The state of each updated parameter, by its name: views, not copies."""
        return {self._names[id(p)]: state for part in self.parts.values() for p, state in part.state.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Load the state of each parameter; parameters not in `state` start without any."""
        for part in self.parts.values():
            part.state.clear()
            for p in self._of(part):
                if kept := state.get(self._names[id(p)]):
                    part.state[p] = {key: _counted(value, part) for key, value in kept.items()}

    def old_names(self) -> dict[str, str]:
        """Map parameter names of older training files, by part and number such as `matrix.0`, to current names."""
        return {
            f"{name}.{number}": self._names[id(p)]
            for name, part in self.parts.items()
            for number, p in enumerate(self._of(part))
        }

    @staticmethod
    def _of(part: Optimizer) -> list[Tensor]:
        return [p for group in part.param_groups for p in group["params"]]


def _counted(value: Any, part: Optimizer) -> Any:
    """A moment in the optimizer's type: sparse Adam counts steps with a plain number."""
    plain = isinstance(part, torch.optim.SparseAdam) and isinstance(value, Tensor) and value.ndim == 0
    return value.item() if plain else value


def split_parameters(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """All parameters by kind: `matrix` (weights of linear maps), `table` (sparse gradients), `adam` (all others)."""
    kinds: dict[str, list[nn.Parameter]] = {"matrix": [], "table": [], "adam": []}
    kind_of = {id(m.weight): "matrix" for m in model.modules() if isinstance(m, nn.Linear)}
    kind_of |= {
        id(m.table.weight): "table" for m in model.modules() if isinstance(m, NgramEmbedding) and m.table.sparse
    }
    for p in model.parameters():
        kinds[kind_of.get(id(p), "adam")].append(p)
    return kinds


def schedule(progress: float, config: OptimConfig) -> float:
    """Fraction of the peak rate at a fraction of the budget: a linear rise from a tenth, a plateau, a linear fall.

    Args:
        progress: fraction of the budget spent, in [0, 1].

    Source: the trapezoid of Zhai et al. 2022, arXiv:2106.04560.
    """
    if progress < config.warmup:
        return 0.1 + 0.9 * progress / config.warmup
    if progress > 1 - config.decay:
        left = max(0.0, 1 - progress) / config.decay
        return config.final_lr + (1 - config.final_lr) * left
    return 1.0


def clip_gradients(model: nn.Module, largest: float, *, wait: bool = True) -> Tensor:
    """Scale all gradients so that their joint norm is at most `largest` (0: no limit). Returns the norm before scaling, as a tensor.

    Sparse gradients are coalesced first, so that a row that was looked up twice counts once.

    Args:
        wait: look at the norm here. Otherwise nothing waits for the device, and where the norm is not finite all gradients become zero: the
            error can be raised later, and the weights stay finite.
    """
    whole: list[Tensor] = []
    sharded: list[Tensor] = []
    for p in model.parameters():
        if p.grad is not None and is_sharded(p.grad):
            sharded.append(p.grad)
        elif p.grad is not None:
            if p.grad.is_sparse:
                p.grad = p.grad.coalesce()
            whole.append(p.grad.values() if p.grad.is_sparse else p.grad)
    norm = torch.nn.utils.get_total_norm(whole)
    if sharded:
        of_shards = torch.nn.utils.get_total_norm(sharded)
        norm = torch.hypot(norm, whole_of(of_shards))
    grads = whole + [held(grad) for grad in sharded]
    if not wait:
        scale = (largest / norm).clamp(max=1.0) if largest > 0 else torch.ones_like(norm)
        for grad in grads:
            grad.mul_(scale).masked_fill_(~norm.isfinite(), 0.0)
    elif norm.isfinite() and 0 < largest < norm:
        for grad in grads:
            grad.mul_(largest / norm.item())
    return norm
