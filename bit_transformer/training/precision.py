"""Precision of training on each device."""

from __future__ import annotations

import contextlib

import torch

from bit_transformer.errors import ConfigError


def cpu_autocast(enabled: bool | None = None) -> contextlib.AbstractContextManager[object]:
    """bfloat16 autocast on the CPU.

    Args:
        enabled: Default: if the CPU computes in bfloat16 (AVX512-BF16 or AMX). On others it is emulated and about ten times slower
            than float32.
    """
    return autocast(torch.device("cpu"), enabled)


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies matrices in bfloat16."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def autocast(device: torch.device, enabled: bool | None) -> contextlib.AbstractContextManager[object]:
    """bfloat16 autocast if wanted, else a context that does nothing."""
    wanted = autocast_wanted(device, enabled)
    return torch.autocast(device.type, dtype=torch.bfloat16) if wanted else contextlib.nullcontext()


def check_precision(device: torch.device, enabled: bool | None, name: str = "") -> None:
    """Refuse bfloat16 where it is asked for and the device does not have it.

    Args:
        name: of the rank, for the message.

    Raises:
        ConfigError: the device cannot.
    """
    lacks = not torch.amp.is_autocast_available(device.type) or (
        device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    )
    if enabled and lacks:
        raise ConfigError(
            f"{name}got amp=true on device {device}, which has no bfloat16. Try train.amp=false", field="train.amp"
        )


def autocast_wanted(device: torch.device, enabled: bool | None) -> bool:
    """The setting, if there is one; else whether the device computes in bfloat16."""
    if enabled is not None:
        return enabled
    if device.type == "cpu":
        return cpu_has_bfloat16()
    return device.type == "cuda" and torch.cuda.is_bf16_supported()
