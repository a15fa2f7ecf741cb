"""Starts the processes of jobs, and finds out how they ended. The processes go on without it, and a scheduler that starts later finds them again."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from bit_transformer.errors import StoreError
from bit_transformer.service.home import Home

if TYPE_CHECKING:
    from bit_transformer.runs.jobs import JobRecord

_log = logging.getLogger(__name__)
LOOK = 0.25  # seconds between looks
LOG_TAIL = 64 << 10
SERVER_LOCK = "server.lock"  # a server holds it


class Scheduler:
    """Runs the queue of a home. Several processes may have one on the same home: the one that holds the lock works, and another goes on when it ends.

    Args:
        limit: jobs that run at a time.
        device: for their models.
        yields: it works only as long as no server uses the home, whose limit and device then count.
    """

    def __init__(self, home: Home, *, limit: int = 1, device: str = "auto", yields: bool = False) -> None:
        self.home, self.limit, self.device, self.yields = home, limit, device, yields
        self._mine: dict[int, subprocess.Popen[bytes]] = {}
        self._lock: int | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        """Begin to look after jobs, in a thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking; processes go on."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(5)
        if self._lock is not None:
            with contextlib.suppress(StoreError, OSError):
                self.look()  # what was asked to stop just now is told
            os.close(self._lock)
            self._lock = None

    def _run(self) -> None:
        while not self._closed.wait(LOOK):
            try:
                if self._works():
                    self.look()
            except (StoreError, OSError) as failed:  # a full disk; the next look may find room
                _log.warning("the queue waits: %s", failed)
            except Exception:
                _log.exception("the queue could not be looked after")

    def _works(self) -> bool:
        """Whether this one looks after the home's queue; it does, once no other does."""
        if self.yields and self._is_served():
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None
            return False
        if self._lock is None:
            lock = os.open(self.home.folder / "scheduler.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                return False
            self._lock = lock
        return True

    def _is_served(self) -> bool:
        """Whether a server uses the home."""
        with contextlib.suppress(OSError), (self.home.folder / SERVER_LOCK).open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def look(self) -> None:
        """Record jobs whose process has ended, and start those that are due."""
        for number, process in list(self._mine.items()):
            if process.poll() is not None and self.home.jobs.get(number).state != "running":
                del self._mine[number]  # it has said how it ended; polling has kept it from staying as a zombie
        running = 0
        for job in self.home.jobs.list_jobs("running"):
            if (lock := self._free_lock(job.id)) is None:
                running += 1
                if job.stopping and not job.told:
                    self._ask_to_stop(job.id)
                continue
            try:
                self._ended(job)
            finally:
                os.close(lock)
        while running < self.limit and (job_to_start := self.home.jobs.start_next()) is not None:
            self._start(job_to_start)
            running += 1

    def stop(self, number: int) -> None:
        """Ask a job to stop: a training saves first; one that waits does not begin."""
        self.home.jobs.ask_to_stop(number)  # the next look tells its process

    def _ask_to_stop(self, number: int) -> None:
        with contextlib.suppress(OSError, ValueError):  # it has not written its number yet, or has just ended
            os.kill(int((self._folder(number) / "lock").read_text()), signal.SIGTERM)
            self.home.jobs.told(number)

    def forget(self, number: int) -> None:
        """Remove the log of a job that has ended."""
        shutil.rmtree(self._folder(number), ignore_errors=True)

    def log(self, number: int) -> str:
        """The end of what a job has printed."""
        try:
            with (self._folder(number) / "log").open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    def _folder(self, number: int) -> Path:
        return self.home.jobs_folder / str(number)

    def _free_lock(self, number: int) -> int | None:
        """The job's lock, taken, if no process holds it."""
        folder = self._folder(number)
        folder.mkdir(exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock

    def _start(self, job: JobRecord) -> None:
        lock = self._free_lock(job.id)
        if lock is None:  # its process of before has not ended quite
            self.home.jobs.again(job.id, counts=False)
            return
        os.ftruncate(lock, 0)  # it may name an earlier process
        command = [sys.executable, "-m", "bit_transformer.service.job_process", str(self.home.folder), str(job.id)]
        with (self._folder(job.id) / "log").open("ab") as log:
            self._mine[job.id] = subprocess.Popen(
                [*command, self.device, str(lock)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.home.folder,
                pass_fds=(lock,),  # the process holds the lock from its first moment
                start_new_session=True,  # so that it outlives this one
            )
        os.close(lock)

    def _ended(self, job: JobRecord) -> None:
        """A process ended without saying how."""
        jobs = self.home.jobs
        job = jobs.get(job.id)  # it may have said so just now
        mine = self._mine.pop(job.id, None)
        code = mine.poll() if mine is not None else None
        if job.state != "running":
            return
        if job.stopping:
            jobs.end(job.id, "stopped")
        elif not job.begun and mine is None:  # this server's forerunner ended before it had started it
            jobs.again(job.id, counts=False)
        elif job.restarts_left > 0:
            jobs.again(job.id, counts=True)
        else:
            how = f" by signal {-code}" if code is not None and code < 0 else ""
            last = next((line for line in reversed(self.log(job.id).splitlines()) if line.strip()), "")
            text = (
                f"its process was killed{how}, or ended without a word{f': {last[:200]}' if last else ''}. Try resume"
            )
            jobs.end(job.id, "killed", error={"error": "Killed", "message": text, "field": None, "tries": ["resume"]})
