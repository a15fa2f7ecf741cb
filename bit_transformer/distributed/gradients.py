"""Means of gradients over processes, for what PyTorch's wrappers leave to us."""

# Shapes: R rows with a gradient, D width, G processes.
from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


def average_sparse(parameters: Iterable[nn.Parameter], group: dist.ProcessGroup | None = None) -> None:
    """Replace sparse gradients by their means over a group. Each process sends the rows that it has to all others."""
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = _sparse_mean(parameter.grad.coalesce(), group)


def average_gradients(parameters: Iterable[nn.Parameter], group: dist.ProcessGroup) -> None:
    """Replace gradients by their means over a group. Dense ones travel together; of sparse ones, the rows that they have."""
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    dense = [p.grad for p in trained if p.grad is not None and not p.grad.is_sparse]
    for dtype in dict.fromkeys(grad.dtype for grad in dense):
        grads = [grad for grad in dense if grad.dtype == dtype]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat, group=group)
        flat /= dist.get_world_size(group)
        for grad, mean in zip(grads, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
            grad.copy_(mean.view_as(grad))
    average_sparse(trained, group)


def _sparse_mean(grad: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Every process's rows, padded to as many as the one with the most has, then added up."""
    row_R, value_RD = grad.indices()[0], grad.values()
    processes = dist.get_world_size(group)
    count_G = row_R.new_empty(processes)
    dist.all_gather_single(count_G, row_R.new_tensor([len(row_R)]), group=group)
    most = int(count_G.max())
    row_GR = row_R.new_empty(processes * most)
    value_GRD = value_RD.new_empty(processes * most, value_RD.shape[1])
    dist.all_gather_single(row_GR, F.pad(row_R, (0, most - len(row_R))), group=group)
    dist.all_gather_single(value_GRD, F.pad(value_RD, (0, 0, 0, most - len(row_R))), group=group)
    there_GR = (torch.arange(most, device=row_R.device) < count_G[:, None]).flatten()
    row_1R, value_RD = row_GR[there_GR][None], value_GRD[there_GR] / processes
    return torch.sparse_coo_tensor(row_1R, value_RD, grad.shape, check_invariants=False).coalesce()
