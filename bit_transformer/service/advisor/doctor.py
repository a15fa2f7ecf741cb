"""What this machine has, and whether everything that is needed works."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from bit_transformer.errors import BitTransformerError
from bit_transformer.machine import cores, free_memory
from bit_transformer.service.advisor.requests import DoctorRequest
from bit_transformer.service.jobs import Job
from bit_transformer.service.provenance import machine
from bit_transformer.service.workspace import Workspace
from bit_transformer.training.precision import cpu_has_bfloat16

LEAST_MEMORY, LEAST_DISK = 1 << 30, 1 << 30
EXTRAS = {
    "server": "fastapi",
    "mcp": "mcp",
    "dashboard": "nicegui",
    "hub": "huggingface_hub",
    "download": "pooch",
    "datasets": "datasets",
    "lm-eval": "lm_eval",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}
LIBRARIES = ("torch", "numpy", "numba", "safetensors", "pydantic", "mcp", "fastapi", "nicegui")


@dataclass(frozen=True)
class Gpu:
    """A GPU. Memory in bytes."""

    name: str
    memory_total: int
    memory_free: int
    bfloat16: bool


@dataclass(frozen=True)
class Check:
    """Something that must work, and what to do where it does not.

    Attributes:
        needed: without it nothing goes; else only a part is missing.
    """

    name: str
    ok: bool
    says: str
    needed: bool = True


@dataclass(frozen=True)
class Machine:
    """A machine. Memory and disk in bytes.

    Attributes:
        cores: that this process may use; `threads`: of PyTorch.
        bfloat16: whether the processor multiplies matrices in it; else trainings on it use float32.
        device: that would be used.
    """

    processor: str
    cores: int
    threads: int
    bfloat16: bool
    memory_free: int | None
    disk_free: int
    gpus: list[Gpu]
    device: str
    python: str
    platform: str
    versions: dict[str, str]
    checks: list[Check]

    @property
    def well(self) -> bool:
        """Whether all that is needed works."""
        return all(check.ok for check in self.checks if check.needed)


def doctor(request: DoctorRequest, workspace: Workspace, job: Job) -> Machine:
    """Look at this machine. Nothing is kept."""
    there = machine()
    return Machine(
        processor=str(there["cpu"]),
        cores=cores(),
        threads=torch.get_num_threads(),
        bfloat16=cpu_has_bfloat16(),
        memory_free=free_memory(),
        disk_free=shutil.disk_usage(_existing(workspace.store_path)).free,
        gpus=list(gpus()),
        device=str(workspace.device),
        python=platform.python_version(),
        platform=platform.platform(),
        versions={"bit-transformer": str(there["bit_transformer"]), **dict(_versions())},
        checks=list(_checks(workspace)),
    )


def gpus() -> Iterator[Gpu]:
    """NVIDIA's GPUs, as PyTorch sees them."""
    for index in range(torch.cuda.device_count()):
        with torch.cuda.device(index):
            free, total = torch.cuda.mem_get_info()
            yield Gpu(torch.cuda.get_device_name(index), total, free, torch.cuda.is_bf16_supported())


def _existing(path: Path) -> Path:
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def _versions() -> Iterator[tuple[str, str]]:
    for name in LIBRARIES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _checks(workspace: Workspace) -> Iterator[Check]:
    yield Check("python", sys.version_info >= (3, 10), f"{platform.python_version()}; 3.10 or later is needed")
    product = torch.ones(8, 8) @ torch.ones(8, 8)
    yield Check("torch", bool((product == 8).all()), f"{torch.__version__} multiplies matrices")
    yield _compiler()
    free = free_memory()
    enough = free is None or free >= LEAST_MEMORY
    known = "unknown" if free is None else f"{free / 1e9:.1f} GB free"
    yield Check("memory", enough, known if enough else f"{known}; 1 GB is needed. Try closing other programs")
    place = _existing(workspace.store_path)
    disk = shutil.disk_usage(place).free
    yield Check("disk", disk >= LEAST_DISK, f"{disk / 1e9:.1f} GB free in {place}; 1 GB is needed")
    yield Check(
        "writable",
        os.access(place if place.is_dir() else place.parent, os.W_OK),
        f"run records go to {workspace.store_path}",
    )
    yield _store(workspace)
    seen = torch.cuda.device_count()
    hidden = shutil.which("nvidia-smi") is not None and not seen
    says = "a driver is there, but PyTorch sees no GPU. Try a CUDA build of torch" if hidden else f"PyTorch sees {seen}"
    yield Check("gpu", not hidden, says, needed=False)
    for extra, module in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        says = (
            "installed"
            if there
            else f"not installed. Try pip install 'bit-transformer[{'server' if extra == 'mcp' else extra}]'"
        )
        yield Check(extra, there, says, needed=False)


def _compiler() -> Check:
    """Whether the experts' loops compile, and their cache can be written."""
    from numba import njit

    try:
        if njit(lambda x: x + 1)(41) != 42:
            return Check("numba", False, "compiles loops wrongly. Try another version of numba")
    except Exception as failed:  # whatever the compiler raises
        return Check("numba", False, f"compiles nothing ({type(failed).__name__}). Try another version of numba")
    try:
        with tempfile.TemporaryFile(dir=Path(__file__).parent):
            pass
    except OSError:
        told = os.environ.get("NUMBA_CACHE_DIR")
        return Check(
            "numba", True, "compiles; its cache is " + (told or "in the user's folder, or made anew at each start")
        )
    return Check("numba", True, f"{version('numba')} compiles, and keeps what it compiled")


def _store(workspace: Workspace) -> Check:
    if not workspace.store_path.exists():
        return Check("store", True, "no runs yet")
    try:
        return Check("store", True, f"{len(workspace.store.list_runs())} runs")
    except BitTransformerError as failed:
        return Check("store", False, str(failed))
