"""Records what a result was made with, so that it can be reproduced."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def machine() -> dict[str, str | int]:
    """CPU, cores, accelerator and library versions."""
    cpu = str(torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine())
    return {
        "cpu": cpu,
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "bit_transformer": _own_version(),
    }


def provenance() -> dict[str, str | int]:
    """`machine`, and the commit if this is a source checkout."""
    return {**machine(), "commit": _commit()}


def _own_version() -> str:
    try:
        return version("bit-transformer")
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return "not a checkout"
    try:
        asked = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return asked.stdout.strip() or "unknown"
