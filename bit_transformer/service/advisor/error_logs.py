"""What an error in a log means."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from bit_transformer.config import BUDGETS, ModelConfig, TrainConfig
from bit_transformer.errors import Advice, Ask, Give
from bit_transformer.memory import Saving, estimate_memory, savings
from bit_transformer.presets import preset
from bit_transformer.service.advisor.requests import DiagnoseErrorRequest
from bit_transformer.service.jobs import Job
from bit_transformer.service.settings import train_config
from bit_transformer.service.workspace import Workspace

UNITS = {
    "": 1,
    "b": 1,
    "bytes": 1,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "tb": 1e12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
SIZE = r"(?<![\d.])(\d{1,12}(?:\.\d{1,6})?)\s{0,4}([KMGT]i?B|bytes|B)\b"
LINES, LONG = 2_000, 2_000  # lines of a log that are read, at its end, and characters of each


@dataclass(frozen=True)
class ErrorDiagnosis:
    """What an error means.

    Attributes:
        kind: out of memory, not a number, killed, no GPU, another checkpoint, missing library, address in use, process group, disk full,
            invalid input, unknown.
        line: of the log, that says so.
        numbers: bytes that the log names: tried, free, total, reserved.
        peak: of the training by the estimator, on one device; None without settings.
        savings: settings that lower it, the best first; `fits`: of each, whether it is below what the device has.
        tries: in order.
    """

    kind: str
    line: str
    says: str
    numbers: dict[str, float]
    peak: int | None = None
    when: str = ""
    savings: list[Saving] = field(default_factory=list)
    fits: list[bool] = field(default_factory=list)
    tries: list[Advice] = field(default_factory=list)


# Kind, what the line has, what it means, what to try; the first that is found counts.
KINDS: tuple[tuple[str, str, str, tuple[Advice, ...]], ...] = (
    (
        "out of memory",
        r"CUDA out of memory|OutOfMemoryError|DefaultCPUAllocator|MemoryError|ALLOC_FAILED|memory may be too small|windows in \d+ micro-batch",
        "the device had no room for a tensor of an update",
        (),
    ),
    (
        "killed",
        r"^Killed$|signal 9|SIGKILL|oom-kill|Out of memory: Killed",
        "the system ended the process; mostly because memory ran out",
        (Ask("estimate"), Ask("resume")),
    ),
    (
        "not a number",
        r"NonFiniteLoss|not finite|must be finite|loss (?:is |= ?|: ?)?nan\b",
        "the loss or a gradient became NaN or infinite",
        (
            "half the learning rates",
            Give("train.clip_norm", 1.0),
            Give("train.amp", False),
            Ask("resume"),
        ),
    ),
    (
        "no GPU",
        r"Torch not compiled with CUDA|No CUDA GPUs|CUDA driver version is insufficient|this machine has no \w*cuda",
        "PyTorch finds no GPU",
        ("device=cpu", "a CUDA build of torch", "nvidia-smi, for the driver"),
    ),
    (
        "process group",
        r"Watchdog caught collective|NCCL (?:error|timeout)|nccl(?:System|Internal|Remote)Error|RendezvousTimeout|RendezvousConnection|Connection closed by peer|did not answer|RankFailed",
        "a process of a distributed training ended or did not answer; its own log says why",
        ("the log of the rank that is named", Give("distributed.timeout", 1800), Ask("resume")),
    ),
    (
        "another checkpoint",
        r"size mismatch for|Missing key\(s\) in state_dict|CheckpointError|another shape",
        "the checkpoint is damaged or has another shape than the settings",
        ("the run's own settings", Ask("runs.show")),
    ),
    (
        "missing library",
        r"ModuleNotFoundError|MissingExtra|No module named",
        "a library is not installed",
        ("pip install 'bit-transformer[server,dashboard,hub]'",),
    ),
    (
        "address in use",
        r"Address already in use|cannot be listened on",
        "another server uses the port",
        ("--port 0", Ask("jobs.list")),
    ),
    (
        "disk full",
        r"No space left on device|disk is full|Errno 28",
        "the disk is full",
        ("removing runs", Give("train.checkpoint_seconds", 600)),
    ),
)


def diagnose_error(request: DiagnoseErrorRequest, workspace: Workspace, job: Job) -> ErrorDiagnosis:
    """Say what an error means.

    Raises:
        ConfigError: settings that are not valid.
        RunNotFound: no such run.
    """
    plain = "".join(char if char.isprintable() or char == "\n" else " " for char in request.log)
    lines = [line[:LONG].strip() for line in plain.splitlines()[-LINES:] if line.strip()]
    found = next(
        (
            (kind, line, says, tries)
            for line in reversed(lines)  # the last error is the one that ended it
            for kind, text, says, tries in KINDS
            if re.search(text, line, re.I)
        ),
        None,
    )
    if found is None:
        last = lines[-1][:300] if lines else ""
        if ". Try " in last:  # an error of this program says itself what to try
            what, _, tried = last.rpartition(". Try ")
            return ErrorDiagnosis("invalid input", last, what, {}, tries=[tried])
        return ErrorDiagnosis(
            "unknown",
            last,
            "no known error is in it",
            {},
            tries=["the whole log, from the first error on", Ask("runs.list")],
        )
    kind, line, says, tries = found
    numbers = dict(_sizes("\n".join(lines)))
    settings = _settings(request, workspace) if kind in ("out of memory", "killed") else None
    if settings is None:
        more: list[Advice] = (
            [Give("train.auto_batch", True), "its settings, for what would save how much"]
            if kind == "out of memory"
            else []
        )
        return ErrorDiagnosis(kind, line[:300], says, numbers, tries=[*tries, *more])
    model, train = settings
    memory = estimate_memory(model, train, world_size=request.devices)
    ways = savings(model, train, world_size=request.devices)
    room = numbers.get("total")
    fits = [room is not None and way.peak <= 0.95 * room for way in ways]
    able = [way for way, fit in zip(ways, fits, strict=True) if fit or room is None]
    first = [f"{way.settings} ({way.peak / 1e9:.2f} GB)" for way in able[:4]]
    if room is not None and memory.peak < 0.8 * room:
        says += "; but with these settings it would fit, so the log is perhaps of others"
    return ErrorDiagnosis(
        kind=kind,
        line=line[:300],
        says=f"{says}; these settings need about {memory.peak / 1e9:.2f} GB, during {memory.when}",
        numbers=numbers,
        peak=memory.peak,
        when=memory.when,
        savings=ways,
        fits=fits,
        tries=[*first, Give("train.auto_batch", True), *tries],
    )


def _sizes(log: str) -> Iterator[tuple[str, float]]:
    """Bytes that PyTorch's messages name."""
    for name, text in (
        ("tried", rf"(?:tried to allocate|allocate)\s+{SIZE}"),
        ("total", rf"total capacity of\s+{SIZE}"),
        ("free", rf"of which\s+{SIZE}\s+is free|{SIZE}\s+free"),
        ("allocated", rf"{SIZE}\s+(?:is allocated by PyTorch|already allocated)"),
        ("reserved", rf"{SIZE}\s+is reserved by PyTorch"),
    ):
        if found := re.search(text, log, re.I):
            number, unit = [group for group in found.groups() if group is not None][:2]
            yield name, float(number) * UNITS[unit.lower()]


def _settings(request: DiagnoseErrorRequest, workspace: Workspace) -> tuple[ModelConfig, TrainConfig] | None:
    """Model and training that the log is of, if they are known."""
    model: dict[str, Any] = {}
    train: dict[str, Any] = {}
    if request.run is not None:
        config = workspace.store.get(request.run).config
        model, train = dict(config["model"]), dict(config["train"])
    if request.run is None and request.preset is None and not request.model:
        return None
    shape = (
        ModelConfig.of(model | request.model)
        if request.run is not None or request.preset is None
        else preset(request.preset, **request.model)
    )
    fields = train | request.train
    if not any(fields.get(name) is not None for name in BUDGETS):
        fields["steps"] = 1
    found = train_config(shape, fields)
    return shape, found if found.amp is not None else found.model_copy(update={"amp": False})
