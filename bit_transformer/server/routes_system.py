"""The server itself: whether it is there, the machine, schemas, the audit log."""

from __future__ import annotations

import json
import os
import platform
import shutil
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from bit_transformer.config import Config, DataConfig, DistributedConfig, ModelConfig, TrainConfig
from bit_transformer.extras import require
from bit_transformer.presets import NAMED, preset
from bit_transformer.server.dependencies import Server
from bit_transformer.server.errors import answers
from bit_transformer.service.operations import OPERATIONS
from bit_transformer.service.settings import RECIPES, read_settings

router = APIRouter(tags=["server"], responses=answers(503))


class Health(BaseModel):
    """The server is there."""

    status: str
    version: str
    started: str
    pid: int
    notes: list[str]


class Queue(BaseModel):
    """How many jobs run and wait, and how many may run at a time."""

    running: int
    queued: int
    limit: int


class System(BaseModel):
    """The machine. Memory and disk in bytes, loads in percent of all cores."""

    cpus: int
    cpu_percent: float
    memory_total: int
    memory_free: int
    disk_free: int
    gpus: list[dict[str, Any]]
    python: str
    torch: str
    platform: str
    token_needed: bool
    queue: Queue


class AuditEntry(BaseModel):
    """A request that wrote something."""

    at: str
    client: str
    method: str
    path: str
    status: int


@router.get("/api/health")
def health(server: Server) -> Health:
    """Whether the server is there; open to all."""
    return Health(
        status="ok", version=version("bit-transformer"), started=server.started, pid=os.getpid(), notes=server.notes
    )


@router.get("/api/system")
def system(server: Server) -> System:
    """The machine, its load, and the queue."""
    psutil = require("psutil", extra="server", purpose="the management server")
    memory = psutil.virtual_memory()
    jobs = server.home.jobs
    return System(
        cpus=psutil.cpu_count() or 1,
        cpu_percent=psutil.cpu_percent(),
        memory_total=memory.total,
        memory_free=memory.available,
        disk_free=shutil.disk_usage(server.home.folder).free,
        gpus=_gpus(),
        python=platform.python_version(),
        torch=version("torch"),
        platform=platform.platform(),
        token_needed=True,
        queue=Queue(
            running=len(jobs.list_jobs("running")), queued=len(jobs.list_jobs("queued")), limit=server.scheduler.limit
        ),
    )


def _gpus() -> list[dict[str, Any]]:
    """NVIDIA's GPUs, as its driver's own tool tells."""
    import subprocess

    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.used,utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=5).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in told.splitlines():
        name, total, used, load = (*line.split(", "), "", "", "")[:4]
        numbers = [float(text) if text.replace(".", "", 1).isdigit() else None for text in (total, used, load)]
        memory = [None if number is None else int(number) << 20 for number in numbers[:2]]
        found.append({"name": name, "memory_total": memory[0], "memory_used": memory[1], "percent": numbers[2]})
    return found


@router.get("/api/schema")
def schema() -> dict[str, Any]:
    """JSON schemas of all settings."""
    kinds: dict[str, type[Config]] = {
        "model": ModelConfig,
        "train": TrainConfig,
        "data": DataConfig,
        "distributed": DistributedConfig,
    }
    return {name: kind.model_json_schema() for name, kind in kinds.items()}


@router.get("/api/presets")
def presets() -> dict[str, dict[str, Any]]:
    """Models by name: the fields in which they differ from the defaults."""
    return {name: json.loads(preset(name).model_dump_json(exclude_defaults=True)) for name in NAMED}


@router.get("/api/recipes")
def recipes() -> dict[str, dict[str, Any]]:
    """Settings of the trainings behind the published results."""
    files = sorted({path for folder in RECIPES for path in folder.glob("*.toml")}, key=lambda path: path.stem)
    return {path.stem: read_settings(path, []) for path in files}


@router.get("/api/operations")
def operations() -> list[dict[str, Any]]:
    """All operations, with the schemas of their requests."""
    return [
        {
            "name": operation.name,
            "summary": operation.summary,
            "writes": operation.writes,
            "long": operation.long,
            "streamed": bool(operation.streamed),
            "request": operation.request.model_json_schema(),
        }
        for operation in OPERATIONS.values()
    ]


@router.get("/api/audit")
def audit(server: Server) -> list[AuditEntry]:
    """The latest requests that wrote something, newest first; needs the token."""
    return [AuditEntry(**entry) for entry in server.home.jobs.audit()]
