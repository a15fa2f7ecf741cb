"""Starts an operation in several processes on this machine, by torchrun, and passes on what they report.

The processes are `service/worker.py`. What they say goes through files in a temporary folder: progress as lines of JSON, then a result or an error.
torchrun watches them: if one ends, it ends all and starts them again, and they continue from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from bit_transformer import errors
from bit_transformer.config import DistributedConfig
from bit_transformer.distributed.world import is_main as is_main
from bit_transformer.distributed.world import launched as is_launched
from bit_transformer.errors import BitTransformerError, ConfigError, RankFailed
from bit_transformer.machine import cores, free_memory
from bit_transformer.service.jobs import STOP_FILE, Job, Message, Notice, Reading, Update
from bit_transformer.service.workspace import Workspace

ASKED, EVENTS, RESULT, ERROR = "asked.json", "events.jsonl", "result.json", "error.json"
LOST, FAULT = "lost", "fault"  # with the number of the start and the rank: why it gave up; a traceback
POLL = 0.2  # seconds between looks
CROWD, PROCESS = 4, 400 << 20  # most processes a core, and the memory of one before it has a model
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Update, Reading, Notice)}


def wanted(distributed: DistributedConfig | None) -> bool:
    """Whether processes are to be started for a request."""
    return distributed is not None and distributed.nproc is not None


def restarted() -> bool:
    """Whether torchrun has started this process again, after one had failed."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def leave(code: int = 0) -> NoReturn:
    """End a process that torchrun started. Not by `sys.exit`: what PyTorch's background threads leave can abort the process while Python ends, and
    torchrun would start all again."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def launched(name: str, request: Any, out: Path, workspace: Workspace, job: Job) -> Any:
    """Run an operation in several processes, which train into the folder `out`.

    Raises:
        ConfigError: processes were asked for within processes, or more than there are GPUs.
        RankFailed: processes ended without a result, as often as restarts are allowed.
        BitTransformerError: as raised in the processes.
    """
    from bit_transformer.service.operations import OPERATIONS

    how: DistributedConfig = request.distributed
    if is_launched():
        raise ConfigError(
            f"rank {os.environ['RANK']}: got nproc={how.nproc} in a process that torchrun started. Try without nproc",
            field="distributed.nproc",
        )
    check_count(how.nproc or 1, workspace)
    with tempfile.TemporaryDirectory(prefix="btlm-") as place:
        folder = Path(place)
        inside = request.model_copy(update={"distributed": how.model_copy(update={"nproc": None})})
        asked = {
            "operation": name,
            "request": json.loads(inside.model_dump_json()),
            "store": str(workspace.store_path.resolve()),
            "device": workspace.device_name,
            "job": job.number,
            "again": job.again,
        }
        (folder / ASKED).write_text(json.dumps(asked))
        code = _watched(how, folder, out, job)
        if (folder / RESULT).exists():
            return OPERATIONS[name].result().validate_json((folder / RESULT).read_bytes())
        if (folder / ERROR).exists():
            raise _error(json.loads((folder / ERROR).read_text()))
        for fault in latest(folder, FAULT):
            raise RuntimeError(f"rank {fault.name.rpartition('-')[2]} failed:\n{fault.read_text()}")
        reasons = [path.read_text() for path in latest(folder, LOST)] or deaths(folder / "log")
        raise RankFailed(
            f"{how.nproc} processes ended {how.restarts + 1} times and gave no result ({'; '.join(reasons) or f'code {code}'}). "
            f"Try resume, or fewer processes"
        )


def check_count(nproc: int, workspace: Workspace) -> None:
    """Refuse more processes than there are GPUs; on a processor, more than make sense or fit into memory."""
    if workspace.device.type == "cuda":
        import torch

        most, there = torch.cuda.device_count(), "GPUs; each process needs one"
    else:
        free = free_memory()
        most = CROWD * cores() if free is None else max(1, min(CROWD * cores(), free // PROCESS))
        there = f"processes at most, for {cores()} cores and the free memory"
    if nproc > most:
        raise ConfigError(
            f"got nproc={nproc}; here are {most} {there}. Try nproc={min(most, cores())}", field="distributed.nproc"
        )


def latest(folder: Path, kind: str) -> list[Path]:
    """Notes of ranks from the latest start that left any."""
    notes = sorted(folder.glob(f"{kind}-*"), key=lambda path: [int(part) for part in path.name.split("-")[1:]])
    return [path for path in notes if path.name.split("-")[1] == notes[-1].name.split("-")[1]]


def deaths(log: Path) -> list[str]:
    """Which process ended last, by what torchrun has written."""
    found = re.findall(r"exitcode: (-?\d+)\) local_rank: (\d+)", log.read_text(errors="replace"))
    return [
        f"rank {rank} was killed by signal {code[1:]}"
        if code.startswith("-")
        else f"rank {rank} ended with code {code}"
        for code, rank in found[-1:]
    ]


def _watched(how: DistributedConfig, folder: Path, out: Path, job: Job) -> int:
    """Start torchrun, pass on progress until it ends; its exit code."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(how.nproc)]
    command += [
        "--max-restarts",
        str(how.restarts),
        "--monitor-interval",
        "0.5",
        "-m",
        "bit_transformer.service.worker",
        str(folder),
    ]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // (how.nproc or 1)))
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    with (folder / "log").open("wb") as log, job.stoppable() as stop_asked:
        # In its own session, so that Ctrl-C comes here alone, and the training is asked to stop by its file.
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True, preexec_fn=_ends_with_parent()
        )
        seen = 0
        try:
            while True:
                code = process.poll()
                seen = _passed_on(folder / EVENTS, seen, job)
                if code is not None:
                    return code
                if stop_asked() and out.is_dir():
                    (out / STOP_FILE).touch()  # at each look: a training that begins removes an old one
                time.sleep(POLL)
        finally:
            (out / STOP_FILE).unlink(missing_ok=True)
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)


def _ends_with_parent() -> Callable[[], None] | None:
    """For a new process: end when this one does, in whatever way. Only on Linux: prctl(2)."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    set_option = ctypes.CDLL(None).prctl
    return lambda: set_option(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _passed_on(path: Path, seen: int, job: Job) -> int:
    """Report new lines of the events; returns how many bytes were read."""
    if not path.exists():
        return seen
    with path.open("rb") as file:
        file.seek(seen)
        new = file.read()
    whole = new[: new.rfind(b"\n") + 1]
    for line in whole.splitlines():
        kind, fields = json.loads(line)
        job.tell(_KINDS[kind](**fields))
    return seen + len(whole)


def write_event(folder: Path, message: Message) -> None:
    """In a process that was started: report progress."""
    with (folder / EVENTS).open("a") as file:
        file.write(json.dumps([type(message).__name__, dataclasses.asdict(message)]) + "\n")


def write_error(folder: Path, error: BitTransformerError) -> None:
    """In a process that was started: report an error that starting again would not mend. The first one counts."""
    told = {
        "kind": type(error).__name__,
        "text": str(error),
        "field": error.field,
        "step": getattr(error, "step", None),
    }
    temporary = folder / f".{ERROR}.{os.getpid()}"
    temporary.write_text(json.dumps(told))
    with contextlib.suppress(FileExistsError):
        (folder / f"{ERROR}.lock").open("x").close()
        os.replace(temporary, folder / ERROR)


def write_result(folder: Path, operation: str, result: Any) -> None:
    """In a process that was started: give the result."""
    from bit_transformer.service.operations import OPERATIONS

    temporary = folder / f".{RESULT}.tmp"
    temporary.write_bytes(OPERATIONS[operation].result().dump_json(result))
    os.replace(temporary, folder / RESULT)


def _error(told: dict[str, Any]) -> BitTransformerError:
    kind = getattr(errors, told["kind"], BitTransformerError)
    error: BitTransformerError = kind.__new__(kind)
    error.args = (told["text"],)
    error.what, error.field, error.tries = told["text"], told["field"], ()
    if told["step"] is not None:
        error.step = told["step"]  # type: ignore[attr-defined]
    return error
