"""Memory estimates: what a training or a model in use needs, what fits, and what would save how much."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from bit_transformer.config import ModelConfig, TrainConfig
from bit_transformer.errors import ConfigError
from bit_transformer.machine import free_memory
from bit_transformer.memory import MemoryEstimate, Saving, estimate_memory, largest_batch, savings
from bit_transformer.model import BitTransformerLM
from bit_transformer.service.jobs import Job
from bit_transformer.service.requests import EstimateRequest
from bit_transformer.service.workspace import Workspace
from bit_transformer.training.out_of_memory import as_estimated


@dataclass(frozen=True)
class MemoryReport:
    """The result of `btlm estimate`.

    Attributes:
        windows: per micro-batch, or in use at once, on one device.
        positions: per window.
        model_parameters: parameters of the model; `active_parameters`: those that one position uses.
        budget: available bytes, as given or as free on this machine; None if unknown.
        largest_batch: most windows that fit into the budget at once, over all devices.
        savings: for trainings: settings that would lower the peak.
    """

    training: bool
    precision: str
    windows: int
    positions: int
    model_parameters: int
    active_parameters: int
    world_size: int
    estimate: MemoryEstimate
    budget: int | None
    largest_batch: int | None
    savings: list[Saving]


def estimate(request: EstimateRequest, workspace: Workspace, job: Job) -> MemoryReport:
    """Memory on one device, the workspace's unless the training says otherwise.

    Raises:
        ConfigError: a batch that does not divide evenly among the devices, or an invalid budget.
    """
    model, train, training, batch = request.model, request.train, request.training, request.batch
    world_size, budget = request.world_size, request.budget
    if budget is not None and budget < 1:
        raise ConfigError(f"got budget={budget}; it must be at least one byte. Try 8GB", field="budget")
    device = workspace.device
    how = as_estimated(train, device, train.accum_steps) if training else train.model_copy(update={"amp": False})
    found = estimate_memory(model, how, training=training, batch=batch, world_size=world_size)
    there = budget or free_on(device)
    with torch.device("meta"):  # only shapes
        count = BitTransformerLM(model).num_parameters()
    window = min(train.window or model.max_seq_len, model.max_seq_len) if training else model.max_seq_len
    return MemoryReport(
        training=training,
        precision="bfloat16 autocast" if how.amp else "float32",
        windows=(train.batch_size // train.accum_steps if training else batch) // world_size,
        positions=math.ceil(window / model.patch_bits),
        model_parameters=count.total,
        active_parameters=count.active,
        world_size=world_size,
        estimate=found,
        budget=there,
        largest_batch=largest_batch(model, how, there, training=training, world_size=world_size) if there else None,
        savings=savings(model, how, world_size=world_size) if training else [],
    )


def free_on(device: torch.device) -> int | None:
    """Free bytes of a device, if known."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()


def fits(model: ModelConfig, train: TrainConfig, device: torch.device, micro_batches: int) -> bool:
    """Whether a training of a new model fits into memory with this number of micro-batches, including its parameters."""
    free = free_on(device)
    found = estimate_memory(model, as_estimated(train, device, micro_batches))
    return free is None or found.peak - found.experts <= free


def micro_batches_that_fit(model: ModelConfig, train: TrainConfig, device: torch.device) -> int | None:
    """Number of micro-batches that an update needs: the training's own, doubled until it fits into free memory.

    Parameters and bank are allocated already, so they do not count. None if not even single windows fit.
    """
    free, parts = free_on(device), train.accum_steps
    while free is not None:
        found = estimate_memory(model, as_estimated(train, device, parts))
        if found.peak - found.parameters - found.experts <= free:
            break
        if parts >= train.batch_size:
            return None
        parts = min(2 * parts, train.batch_size)
    return parts
