"""Tensors of which each rank holds a part. PyTorch's class for them loads slowly, so it is asked for only where it is loaded already."""

from __future__ import annotations

import sys

from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is in parts on several ranks (a `DTensor`)."""
    loaded = sys.modules.get("torch.distributed.tensor")
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def held(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, as a view."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """A tensor from its parts on all ranks, which all must call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
