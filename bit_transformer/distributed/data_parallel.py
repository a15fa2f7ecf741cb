"""Data parallel training: every rank computes the gradients of its own rows of a batch.

    DDP     each rank has the whole model; gradients are averaged while the backward pass goes on
    FSDP    each rank keeps a part of every weight, gradient and moment; weights are gathered where they are used

Both are PyTorch's own. Units of FSDP are what is called as a module also in the backward pass of reversible trunks: each branch, and what remains of
the trunk; then head and mixer. N-gram tables are replicated in both: an update moves only the rows that were looked up, once from each rank to all
others. Rank r has rows [r B / N, (r + 1) B / N) of a batch of B, so N ranks with A micro-batches compute what one process computes with N A.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch.distributed as dist
from torch import Tensor, nn

from bit_transformer.data.windows import Batch
from bit_transformer.distributed.gradients import average_sparse
from bit_transformer.distributed.world import World
from bit_transformer.model import BitTransformerLM

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.nn.parallel import DistributedDataParallel


class Made(NamedTuple):
    """What training needs of a prediction, as in `objectives.Prediction`."""

    loss: Tensor
    nats: Tensor
    coded: tuple[Tensor, float] | None


class _Predicting(nn.Module):
    """A model and an objective as one module, which DDP can wrap."""

    def __init__(self, model: BitTransformerLM, objective: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, bits_BT: Tensor, features_BTF: Tensor | None, reach: float) -> Made:
        made = self.objective(self.model, bits_BT, features_BTF, reach=reach)
        return Made(made.loss, made.nats, made.coded)


class DataParallel:
    """How a training uses several ranks. For a process alone, everything here does nothing.

    Args:
        world: the ranks.
        shard: FSDP instead of DDP.
        bfloat16: with FSDP: gather weights in bfloat16.
    """

    def __init__(self, world: World | None = None, *, shard: bool = False, bfloat16: bool = False) -> None:
        self.world = world or World()
        self.shards = shard and self.world.size > 1
        self.bfloat16 = bfloat16
        self._ddp: DistributedDataParallel | None = None
        self._parts: list[FSDPModule] = []

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return self.world.size

    def take(self, model: BitTransformerLM, objective: Callable[..., Any]) -> None:
        """Prepare a model; call it before its optimizers are made, and again after it was replaced."""
        if self.size == 1:
            return
        from bit_transformer.distributed.wrapping import sharded_parts, wrap_ddp, wrap_fsdp

        if self.shards:
            if not sharded_parts(model):
                wrap_fsdp(model, bfloat16=self.bfloat16)
            self._parts = sharded_parts(model)
        else:
            self._ddp = wrap_ddp(_Predicting(model, objective))

    def rows(self, count: int) -> slice:
        """Which rows of a batch this rank computes."""
        each = count // self.size
        return slice(self.world.rank * each, (self.world.rank + 1) * each)

    def mine(self, batch: Batch, count: int) -> Batch:
        """This rank's rows of a batch, if it was drawn whole."""
        if self.size == 1 or len(batch.bits_BT) < count:
            return batch
        rows, features_BTF = self.rows(count), batch.features_BTF
        return Batch(batch.bits_BT[rows], None if features_BTF is None else features_BTF[rows])

    @contextmanager
    def averaging(self, last: bool) -> Iterator[None]:
        """Around forward and backward pass of a micro-batch: gradients are averaged over ranks after the last one."""
        for part in self._parts:
            part.set_requires_gradient_sync(last)
        if self._ddp is not None and not last:
            with self._ddp.no_sync():
                yield
        else:
            yield

    def predict(
        self,
        objective: Callable[..., Any],
        model: BitTransformerLM,
        bits_BT: Tensor,
        features_BTF: Tensor | None,
        reach: float,
    ) -> Any:
        """The objective of a micro-batch."""
        if self._ddp is not None:
            return self._ddp(bits_BT, features_BTF, reach)
        return objective(model, bits_BT, features_BTF, reach=reach)

    def finish(self, model: BitTransformerLM) -> None:
        """After the last micro-batch: average what PyTorch's wrappers leave out."""
        if self.size > 1:
            average_sparse(model.parameters())

    def laid_out(self, tensors: Mapping[str, Tensor], model: BitTransformerLM) -> dict[str, Tensor]:
        """Tensors of a checkpoint, each rank with the part that it holds of the parameter of that name and shape."""
        if not self.shards:
            return dict(tensors)
        from bit_transformer.distributed.checkpoints import laid_out

        return laid_out(tensors, dict(model.named_parameters()))

    def mean(self, number: Tensor) -> Tensor:
        """The mean over ranks, for equal numbers of rows."""
        if self.size > 1:
            number = number.clone()
            dist.all_reduce(number)
            number /= self.size
        return number
