"""The processes of a training: joining them, who is which, agreeing on numbers, and saying who did not answer.

Every process ("rank") runs the same program. `torchrun` starts them and tells each its place by environment variables; `join` connects them, by
NCCL if they have GPUs, else by gloo. Numbers that decide something, such as the seconds of a budget, are taken from rank 0.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from bit_transformer.errors import ConfigError, RankFailed

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# What PyTorch's backends say when another process is gone or late.
_LOST = re.compile(
    r"(?i)timed? ?out|connection (closed|reset|refused)|broken pipe|connectFullMesh|remote process exited"
)


@dataclass
class World:
    """The processes of a training.

    Attributes:
        rank: of this process, from 0. `size`: how many there are; 1: this one alone.
        device: of this process.
        timeout: seconds that a process waits for the others.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    timeout: float = 600.0

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which keeps records and writes files."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """For messages: `rank 1: `; empty for a process alone."""
        return f"rank {self.rank}: " if self.size > 1 else ""

    def from_main(self, *numbers: float) -> list[float]:
        """Numbers of rank 0, on all ranks."""
        if self.size == 1:
            return list(numbers)
        told = torch.tensor(numbers, dtype=torch.float64)  # on the processor: gloo
        dist.broadcast(told, 0)
        return told.tolist()

    def agree(self, number: float) -> float:
        """A number of rank 0, on all ranks."""
        return self.from_main(number)[0]

    def meet(self) -> None:
        """Wait for all other ranks."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1))  # on the processor; a broadcast would let rank 0 go on

    def beat(self, step: int) -> None:
        """Tell the others which update this rank has reached; read where one of them is late."""
        if self.size > 1:
            dist.distributed_c10d._get_default_store().set(f"beat/{self.rank}", f"{step} {time.time()}")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within: an error of communication says which rank did not answer.

        Raises:
            RankFailed: another rank ended, or did not answer in time.
        """
        try:
            yield
        except RuntimeError as failed:
            if self.size == 1 or not _LOST.search(str(failed)):
                raise
            raise RankFailed(
                f"rank {self.rank}: {self._late()}. Try again: the training continues from its last checkpoint"
            ) from failed

    def _late(self) -> str:
        """Which ranks are behind, by what they told last."""
        beats: dict[int, tuple[float, float]] = {}  # update, time
        store = dist.distributed_c10d._get_default_store()
        for rank in range(self.size):
            with suppress(RuntimeError):  # a store that went away with rank 0
                if store.check([f"beat/{rank}"]):
                    told = store.get(f"beat/{rank}").decode().split()
                    beats[rank] = (float(told[0]), float(told[1]))
        others = [rank for rank in range(self.size) if rank != self.rank]
        unheard = [rank for rank in others if rank not in beats]
        if unheard:
            return f"rank {unheard[0]} did not answer, and had made no update"
        late = min(others, key=lambda rank: beats[rank])
        step, when = beats[late]
        return f"rank {late} did not answer; it was last heard of {time.time() - when:.0f} s ago, at update {step:.0f}"


def launched() -> bool:
    """Whether a launcher such as torchrun started this process."""
    return all(name in os.environ for name in VARIABLES)


def is_main() -> bool:
    """Whether this process is rank 0, or alone; also before `join`."""
    return not launched() or os.environ["RANK"] == "0"


@contextmanager
def join(device: torch.device | None = None, *, timeout: float = 600.0) -> Iterator[World]:
    """Within: this process is one of those that a launcher started.

    Args:
        device: the CPU, or CUDA: then the GPU of the process's local rank. Default: CUDA if there is a GPU.
        timeout: seconds that a process waits for the others.

    Raises:
        ConfigError: no launcher started it, or there are fewer GPUs than processes on this machine.
        RankFailed: the others could not be reached.
    """
    if not launched():
        missing = ", ".join(name for name in VARIABLES if name not in os.environ)
        raise ConfigError(
            f"got distributed without a launcher: {missing} must be set. Try torchrun --nproc-per-node 2, or nproc=2 in its place",
            field="distributed",
        )
    rank, size, local = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", "0"))
    count = torch.cuda.device_count()
    device = device or torch.device("cuda" if count else "cpu")
    if device.type == "cuda":
        if local >= count:
            raise ConfigError(
                f"rank {rank}: got local rank {local} and {count} GPUs; each process needs one. Try nproc={count}"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store, *_ = next(rendezvous("env://", timeout=timedelta(seconds=timeout)))
        # torchrun keeps the store when it starts processes again, and what the earlier ones wrote there would be taken for new.
        store = PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout))
    except (RuntimeError, ValueError) as failed:
        reason = str(failed).splitlines()[0]
        raise RankFailed(
            f"rank {rank}: could not reach {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({reason}). Try torchrun, which sets both"
        ) from failed
    try:
        yield World(rank, size, device, timeout)
    finally:
        dist.destroy_process_group()
