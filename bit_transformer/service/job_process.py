"""The process of one job: runs an operation, and records in the store how far it is and how it ended. It outlives the server that started it.

python -m bit_transformer.service.job_process HOME NUMBER DEVICE LOCK

LOCK is the number of an open file whose lock the server took for this process. The system releases it when the process ends, in whatever way, so
that a server can tell, also one that was started later.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from bit_transformer.errors import Advice, Ask, BitTransformerError, Cancelled, Give
from bit_transformer.runs.jobs import TRAININGS, JobRecord, JobStore
from bit_transformer.service.home import Home
from bit_transformer.service.jobs import Job, Message, Notice, Reading, Update
from bit_transformer.service.operations import OPERATIONS, Operation

LINES = 10.0  # seconds between lines of progress in the log
EVERY = 0.5  # seconds between records of progress
ROOM = 256 << 20  # bytes of the disk that one file may not take


ROUTES = {
    "runs.list": "GET /api/runs",
    "runs.show": "GET /api/runs/RUN",
    "jobs.list": "GET /api/jobs",
    "resume": "POST /api/runs/RUN/resume",
    "runs.checkpoint": "POST /api/runs/RUN/checkpoint",
    "runs.branch": "POST /api/runs/RUN/branch",
}  # operations with routes of their own


def as_request(advice: Advice) -> str:
    """Advice in the words of HTTP."""
    if isinstance(advice, Give):
        value = json.dumps(advice.value, default=str)
        return f"another {advice.field}" if advice.value is None else f"{advice.field}={value}"
    if not isinstance(advice, Ask):
        return advice
    operation, run = OPERATIONS.get(advice.operation), Path(advice.run).name
    if advice.operation in ROUTES:
        words = ROUTES[advice.operation].replace("RUN", run or "RUN")
    else:
        kind = "POST /api/jobs with operation " if operation is None or operation.writes else "POST /api/operations/"
        words = f"{kind}{advice.operation}{f' for run {run}' if run else ''}"
    given = ", ".join(as_request(more) for more in advice.more if more.field != "out")
    return f"{words}, {given}" if given else words


def error_record(error: BaseException) -> dict[str, Any]:
    """An error as a record for other programs: what it is, its message, the field that was wrong, what to try."""
    if isinstance(error, BitTransformerError):
        return {
            "error": type(error).__name__,
            "message": error.said(as_request),
            "field": error.field,
            "tries": [as_request(advice) for advice in error.tries],
        }
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        text = f"{where}{error.strerror or error}. Try freeing space, or another place"
        return {"error": type(error).__name__, "message": text, "field": None, "tries": []}
    return {
        "error": "Fault",
        "message": f"a fault of this program: {type(error).__name__}: {error}. The job's log has more",
        "field": None,
        "tries": [],
    }


def as_line(message: Update | Reading) -> str:
    """How far a job is, as a line of its log."""
    if isinstance(message, Reading):
        of = f" of {message.total:,}" if message.total else ""
        return f"{message.doing} {message.done:,}{of} {message.unit}"
    val = "" if message.val_bpb is None else f", validation {message.val_bpb:.3f}"
    return f"step {message.step:,} ({message.share:.0%}): train {message.bpb:.3f}{val} bits per byte, {message.bytes_per_s / 1e3:.1f} kB/s, {message.eta:.0f} s left"


class Reports:
    """Records what a job says, not too often."""

    def __init__(self, jobs: JobStore, job: JobRecord) -> None:
        self.jobs, self.job = jobs, job
        self.written = self.printed = 0.0

    def __call__(self, message: Message) -> None:
        """Record a message, or drop it if another of its kind was recorded just now."""
        now = time.monotonic()
        if isinstance(message, Notice):
            print(f"note: {message.text}", flush=True)
            self.jobs.add_notice(self.job.id, self.job.run, message.text)
            return
        if now - self.printed >= LINES:
            self.printed = now
            print(as_line(message), flush=True)
        if now - self.written < EVERY:
            return
        self.written = now
        if isinstance(message, Update):
            progress = {"done": round(100 * message.share), "total": 100, "doing": "training", "unit": "%"}
        else:
            progress = dataclasses.asdict(message)
        self.jobs.set_progress(self.job.id, progress)


def run(home: Home, number: int, device: str) -> int:
    """Run a job; the exit code."""
    jobs = home.jobs
    job = jobs.get(number)
    if job.state != "running" or job.begun:
        return 0  # somebody else has it
    jobs.begin(number)
    if job.stopping:
        jobs.end(number, "stopped")
        return 0
    if job.allowance is not None:
        timer = threading.Timer(max(0.0, job.allowance - job.spent), _stop, (home, number))
        timer.daemon = True
        timer.start()
    try:
        _limit_files(home)
        operation, request, again = _what_to_do(home, job)
        work = Job(Reports(jobs, job), number=number, again=again)
        result = operation(request, home.workspace(device), work)
        plain = home.named(operation.result().dump_python(result, mode="json"))
    except (Cancelled, KeyboardInterrupt) as stopped:
        jobs.end(number, "stopped", error=error_record(stopped) if isinstance(stopped, Cancelled) else None)
    except (BitTransformerError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        jobs.end(number, "failed", error=home.named(error_record(error)))
        return 2
    except BaseException as fault:
        traceback.print_exc()
        jobs.end(number, "failed", error=error_record(fault))
        return 1
    else:
        print(f"done: {json.dumps(plain)[:2000]}")
        stopped_early = isinstance(plain, dict) and plain.get("status") == "stopped"
        jobs.end(number, "stopped" if stopped_early else "finished", result=plain)
    return 0


def _what_to_do(home: Home, job: JobRecord) -> tuple[Operation, Any, bool]:
    """The operation, its request, and whether it is a training that this job had begun. Where its process was killed, such a training goes on from
    its last checkpoint."""
    operation = OPERATIONS[job.operation]
    request: Any = home.request(job.operation, job.request)
    restarted = job.restarts_left < job.restarts
    begun = restarted and job.operation in TRAININGS and (job.operation == "resume" or _begun_by(job, request.out))
    if begun:
        from bit_transformer.service.worker import again

        operation, request, after = again(operation, request)
        home.jobs.add_notice(job.id, job.run, f"the process had ended and was started again, {after}")
    return operation, request, begun


def _begun_by(job: JobRecord, folder: Path) -> bool:
    """Whether the run in a folder was begun by a job; it may still hold one that was to be replaced."""
    with suppress(OSError, ValueError, AttributeError):
        return bool(json.loads((folder / "config.json").read_text()).get("job") == job.id)
    return False


def _stop(home: Home, number: int) -> None:
    """Stop this process, whose job has used up its allowance, as if it had been asked to: a training saves first."""
    jobs = home.jobs
    job = jobs.get(number)
    if job.stopping:
        return
    jobs.ask_to_stop(number)
    jobs.told(number)
    jobs.add_notice(number, job.run, f"stopped: it has run for the {job.allowance:,.0f} s that it was allowed")
    os.kill(os.getpid(), signal.SIGTERM)


def _limit_files(home: Home) -> None:
    """Let no file grow until the disk is full, whatever a request or a compressed file says.

    Raises:
        OSError: it is nearly full.
    """
    free = shutil.disk_usage(home.folder).free
    if free < 2 * ROOM:
        raise OSError(errno.ENOSPC, f"only {free >> 20} MB are left on the disk", str(home.folder))
    try:
        import resource
    except ImportError:  # not on Windows
        return
    # The limit is on the size of any file, and the store may be large already.
    most = free - ROOM + 2 * home.store_path.stat().st_size
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if hard == resource.RLIM_INFINITY or most < hard:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing fails with an error
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))


def main() -> None:
    """Entry point."""
    home, number, device, lock = Home(Path(sys.argv[1])), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    os.set_inheritable(lock, False)  # processes that this one starts must not hold it
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # also while it loads, being asked to stop is no crash
    code = run(home, number, device)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # what PyTorch's threads leave can abort a normal end


if __name__ == "__main__":
    main()
