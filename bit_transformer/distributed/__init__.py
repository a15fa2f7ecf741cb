"""Training on several processes: who they are, data parallel training, pipelines, checkpoints in parts.

torchrun --nproc-per-node 4 my_training.py

with join() as world:
    model = wrap_fsdp(BitTransformerLM(...).to(world.device))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bit_transformer.distributed.data_parallel import DataParallel
    from bit_transformer.distributed.gradients import average_sparse
    from bit_transformer.distributed.pipeline import Pipeline, make_pipeline
    from bit_transformer.distributed.world import World, join
    from bit_transformer.distributed.wrapping import wrap_ddp, wrap_fsdp

# Names load on first use: PyTorch's modules for this take a second.
_HOME = {
    "DataParallel": "data_parallel",
    "Pipeline": "pipeline",
    "World": "world",
    "average_sparse": "gradients",
    "join": "world",
    "make_pipeline": "pipeline",
    "wrap_ddp": "wrapping",
    "wrap_fsdp": "wrapping",
}

__all__ = ["DataParallel", "Pipeline", "World", "average_sparse", "join", "make_pipeline", "wrap_ddp", "wrap_fsdp"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
