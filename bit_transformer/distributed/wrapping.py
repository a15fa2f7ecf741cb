"""Models over several ranks, by PyTorch's own FSDP and DDP, which are loaded when they are used: that takes most of a second."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from bit_transformer.distributed.shards import is_sharded
from bit_transformer.errors import ConfigError
from bit_transformer.model import BitTransformerLM
from bit_transformer.quantization import check_trainable

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


def wrap_fsdp(model: BitTransformerLM, mesh: DeviceMesh | None = None, *, bfloat16: bool = False) -> BitTransformerLM:
    """Shard a model over ranks, in place, by PyTorch's `fully_shard`. Call it before making an optimizer, with the same weights on all ranks.

    Args:
        mesh: of one dimension, over which weights are sharded. Default: all ranks.
        bfloat16: gather weights in bfloat16, which halves what is moved; for training within autocast. Gradients are averaged in float32.

    Returns:
        the model. Its methods work as before, on all ranks together. N-gram tables with sparse gradients stay whole, and
        `average_sparse` must be called after each backward pass; those with dense ones (`set_sparse(model, False)`) are sharded too.

    Raises:
        ConfigError: no process group, or a quantized model.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    _check_group()
    check_trainable(model)
    # Linear maps return views of three-dimensional inputs; nothing here changes them in place.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor", category=UserWarning)
    device = model.head.weight.device.type
    mesh = mesh or init_device_mesh(device, (dist.get_world_size(),))
    # Inputs are not cast: within autocast matrix products do that themselves, and norms stay in float32.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bfloat16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    # Also after the forward passes of validation, weights are parts again: what is saved or loaded then are parts.
    shard = partial(fully_shard, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    for block in model.trunk.layers():
        shard(block.attend)
        shard(block.feed_forward)
    shard(model.trunk, ignored_params=set(_sparse(model.trunk).values()))
    shard(model.head)
    if model.mixer is not None:
        shard(model.mixer)
    return model


def wrap_ddp(module: nn.Module) -> DistributedDataParallel:
    """A module whose gradients are averaged over ranks after its forward and backward pass, but for sparse ones: see `gradients.average_sparse`.

    Raises:
        ConfigError: no process group.
    """
    _check_group()
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, list(_sparse(module)))  # type: ignore[no-untyped-call]
    # The only buffer, of rotary positions, is the same everywhere.
    return DistributedDataParallel(module, gradient_as_bucket_view=True, forward_sync_buffers=False)


def _sparse(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with sparse gradients, by name."""
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding) and part.sparse}
    return {name: parameter for name, parameter in module.named_parameters() if id(parameter) in tables}


def _check_group() -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigError(
            "got no process group; several processes must be connected first. Try torchrun, or distributed.join()"
        )


def sharded_parts(model: BitTransformerLM) -> list[FSDPModule]:
    """The parts of a model that `wrap_fsdp` sharded, which are called as modules."""
    from torch.distributed.fsdp import FSDPModule

    parts: list[Any] = [model.trunk, model.head, model.mixer]
    return [part for part in parts if isinstance(part, FSDPModule)]


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, of which each rank keeps the part that it has of `like`."""
    if not is_sharded(like) or is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
