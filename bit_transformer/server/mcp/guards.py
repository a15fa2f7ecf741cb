"""What agents may do: writing at all, and how much time, memory and disk their jobs may take."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from bit_transformer.errors import BitTransformerError, ConfigError, JobNotFound, Refused
from bit_transformer.server.state import State
from bit_transformer.service.jobs import OPEN

_log = logging.getLogger(__name__)
LOOK = 1.0  # seconds between looks at what agents' jobs have written
BESIDE = 60.0  # seconds that a job may take beside its training: loading, the last evaluation


@dataclass(frozen=True)
class Budget:
    """What all agents of this server may take together, since it started. None: no limit.

    Attributes:
        seconds: that their jobs run, added up. Each job is given what it may take, and stops itself after that, also when this server is gone.
        memory: bytes, of one training by the estimator; of all its processes on a processor, of each on GPUs.
        disk: bytes that their jobs and uploads wrote.
    """

    seconds: float | None = None
    memory: int | None = None
    disk: int | None = None

    def __post_init__(self) -> None:
        for name in ("seconds", "memory", "disk"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"got a budget of {name}={value}; it must be above 0. Try without it", field=name)


@dataclass
class Guards:
    """Keeps agents within their budget.

    Attributes:
        read_only: nothing can be written, by anybody.
        jobs: that agents have started, and the seconds that each had run when it was last looked at.
        files: that they write to, and the bytes that were there before.
    """

    state: State
    budget: Budget = Budget()
    read_only: bool = False
    jobs: dict[int, float] = field(default_factory=dict)
    files: dict[Path, int] = field(default_factory=dict)

    def check_writes(self, may_write: bool) -> None:
        """Refuse a tool that writes.

        Raises:
            Refused: the server is read-only, or the client has no token for writes.
        """
        if self.read_only:
            raise Refused("this server is read-only", tries=("a server that was started without --read-only",))
        if not may_write:
            raise Refused(
                "got the token for reads; this tool writes",
                tries=("the token in the file `token` of the server's home",),
            )

    def allowance(self, asked: float | None = None) -> float | None:
        """Seconds that a new job may run; None: no limit.

        Args:
            asked: seconds that its training takes, where it says.

        Raises:
            Refused: nothing is left, or less than it asks for.
        """
        self.check_disk()
        limit = self.budget.seconds
        if limit is None:
            return None
        left = limit - self.seconds(promised=True)
        if left <= 0 or (asked is not None and asked > left):
            wants = f", and this asks for {asked:,.0f}" if asked is not None else ""
            raise Refused(
                f"agents' jobs have taken or may still take {limit - left:,.0f} of {limit:,.0f} s{wants}",
                tries=("a shorter training", "waiting for other jobs", "another budget of the server's owner"),
            )
        return left if asked is None else min(left, asked + BESIDE)

    def check_disk(self) -> None:
        """Refuse to write more.

        Raises:
            Refused: the disk is used up.
        """
        if self.budget.disk is not None and (used := self.disk()) >= self.budget.disk:
            raise Refused(
                f"agents' jobs have written {used / 1e6:,.0f} of {self.budget.disk / 1e6:,.0f} MB",
                tries=("remove_run for runs that are not needed",),
            )

    def check_memory(self, peak: int) -> None:
        """Refuse a training that takes too much.

        Raises:
            Refused: its peak is above the limit.
        """
        if self.budget.memory is not None and peak > self.budget.memory:
            raise Refused(
                f"this training takes about {peak / 1e9:.2f} GB; agents may take {self.budget.memory / 1e9:.2f}",
                tries=("estimate_memory, which says what saves how much",),
            )

    def seconds(self, *, promised: bool = False) -> float:
        """Seconds that agents' jobs have run; with `promised`, of open ones all that they may still run."""
        total = 0.0
        for number, before in self.jobs.items():
            try:
                job = self.state.home.jobs.get(number)
            except JobNotFound:  # it has ended, and its record was removed
                total += before
                continue
            self.jobs[number] = job.seconds()
            total += job.allowance if promised and job.allowance is not None and job.state in OPEN else job.seconds()
        return total

    def writes_to(self, path: Path) -> None:
        """Count what is written to a file or folder from now on."""
        self.files.setdefault(path, size_of(path))

    def disk(self) -> int:
        """Bytes that agents' jobs and uploads wrote."""
        return sum(max(0, size_of(path) - before) for path, before in self.files.items())

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Within: jobs are stopped once the disk is used up."""
        task = asyncio.create_task(self._watch()) if self.budget.disk is not None else None
        try:
            yield
        finally:
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            try:
                await asyncio.to_thread(self.enforce)
            except (BitTransformerError, OSError) as failed:
                _log.warning("agents' budget could not be looked after: %s", failed)

    def enforce(self) -> None:
        """Stop agents' jobs that still run, if the disk is used up. Trainings save first."""
        try:
            self.check_disk()
        except Refused as spent:
            for number in self.jobs:
                with contextlib.suppress(JobNotFound):
                    job = self.state.home.jobs.get(number)
                    if job.state in OPEN and not job.stopping:
                        self.state.scheduler.stop(number)
                        self.state.home.jobs.add_notice(number, job.run, f"stopped: {spent.what}")


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return path.stat().st_size
    return 0
