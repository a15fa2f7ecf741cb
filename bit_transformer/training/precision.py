"""In which precision a device trains."""

from __future__ import annotations

import contextlib

import torch


def cpu_autocast(enabled: bool | None = None) -> contextlib.AbstractContextManager[object]:
    """bfloat16 autocast on the processor.

    Args:
        enabled: not given: where the processor computes in bfloat16 (AVX512-BF16 or AMX). Elsewhere it is emulated
            and about ten times slower than float32.
    """
    return autocast(torch.device("cpu"), enabled)


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies matrices in bfloat16."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def autocast(device: torch.device, enabled: bool | None) -> contextlib.AbstractContextManager[object]:
    """bfloat16 autocast where it is wanted, else nothing."""
    wanted = autocast_wanted(device, enabled)
    return torch.autocast(device.type, dtype=torch.bfloat16) if wanted else contextlib.nullcontext()


def autocast_wanted(device: torch.device, enabled: bool | None) -> bool:
    """What was said; where nothing was, whether the device computes in bfloat16."""
    if enabled is not None:
        return enabled
    if device.type == "cpu":
        return cpu_has_bfloat16()
    return device.type == "cuda" and torch.cuda.is_bf16_supported()
