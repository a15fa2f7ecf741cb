"""Work on whole matrices, spread over ranks: each rank has some matrices of a stack to itself.

Muon's update needs whole matrices. If every rank held whole ones and computed all of them, N ranks would do N times the work. Here each computes 1 / N
of them. What is moved, for matrices of S bytes in all, N ranks: with replicas, each rank receives the results of the others, S (N - 1) / N. With
shards, each rank sends its parts to the owners and gets parts back, 2 S (N - 1) / N^2.
"""

# Shapes: M matrices of R rows and C columns; N ranks.
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

OnStack = Callable[[Tensor], Tensor]


def on_replicas(call: OnStack, whole_MRC: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """`call(whole_MRC)`, of which each rank computes a part; all ranks must have the same matrices."""
    size, rank, M = dist.get_world_size(group), dist.get_rank(group), len(whole_MRC)
    each = -(-M // size)
    mine_MRC = whole_MRC[rank * each : (rank + 1) * each]
    made_MRC = torch.zeros(each, *whole_MRC.shape[1:], dtype=whole_MRC.dtype, device=whole_MRC.device)
    if len(mine_MRC):
        made_MRC[: len(mine_MRC)] = call(mine_MRC)
    parts = [torch.empty_like(made_MRC) for _ in range(size)]
    dist.all_gather(parts, made_MRC, group)
    return torch.cat(parts)[:M]


def on_shards(call: OnStack, part_MRC: Tensor, rows: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """`call` on whole matrices, of which each rank has a part of the rows, as `torch.chunk` cuts them; returns the rank's part of the result.

    Args:
        rows: of the whole matrices.
    """
    size, M, C = dist.get_world_size(group), len(part_MRC), part_MRC.shape[2]
    each, most = -(-M // size), -(-rows // size)
    sent = torch.zeros(size * each, most, C, dtype=part_MRC.dtype, device=part_MRC.device)
    sent[:M, : part_MRC.shape[1]] = part_MRC
    got = torch.empty_like(sent)
    dist.all_to_all_single(got, sent, group=group)
    # (N sources, M / N, rows of a part, C) to whole matrices. Only the last parts have fewer rows.
    whole_MRC = got.view(size, each, most, C).transpose(0, 1).reshape(each, size * most, C)[:, :rows]
    count = max(0, min(each, M - dist.get_rank(group) * each))
    made_MRC = torch.zeros(each, size * most, C, dtype=part_MRC.dtype, device=part_MRC.device)
    if count:
        made_MRC[:count, :rows] = call(whole_MRC[:count])
    sent = made_MRC.view(each, size, most, C).transpose(0, 1).contiguous().view(size * each, most, C)
    dist.all_to_all_single(got, sent, group=group)
    return got[:M, : part_MRC.shape[1]]
