"""Detects that an update ran out of memory, and suggests settings that need less."""

from __future__ import annotations

import math

import torch

from bit_transformer.config import ModelConfig, TrainConfig
from bit_transformer.memory import estimate_memory, savings
from bit_transformer.training.precision import autocast_wanted


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory: Python's error, or one of several from PyTorch."""
    said = isinstance(error, RuntimeError) and any(
        text in str(error) for text in ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")
    )
    return said or isinstance(error, MemoryError | torch.OutOfMemoryError)


def as_estimated(config: TrainConfig, device: torch.device, micro_batches: int) -> TrainConfig:
    """The training config for a memory estimate: with the device's precision, and the batch rounded up to equal micro-batches."""
    even = math.ceil(config.batch_size / micro_batches) * micro_batches
    amp = autocast_wanted(device, config.amp)
    return config.model_copy(update={"batch_size": even, "accum_steps": micro_batches, "amp": amp})


def memory_advice(model: ModelConfig, config: TrainConfig, device: torch.device, micro_batches: int) -> str:
    """Memory of an update, and settings that need less."""
    now = as_estimated(config, device, micro_batches)
    peak = estimate_memory(model, now).peak
    ways = [f"{saving.settings} ({saving.peak / 1e9:.2g} GB)" for saving in savings(model, now)]
    ways += [] if config.auto_batch or micro_batches >= config.batch_size else ["train.auto_batch=true"]
    batch = f"{config.batch_size} windows in {micro_batches} micro-batch{'es' if micro_batches > 1 else ''}"
    return f"{batch} take about {peak / 1e9:.2g} GB. Try {', or '.join(ways) or 'a smaller model or window'}"
