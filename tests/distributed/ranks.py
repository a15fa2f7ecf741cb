"""A few processes with a gloo group among them, forked: a tenth of a second instead of the ten that launching takes."""

from __future__ import annotations

import os
import pickle
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing


def on_ranks(count: int, work: Callable[..., Any], *args: Any, timeout: float = 60) -> list[Any]:
    """Run `work(rank, *args)` in so many processes, with the process group up. Returns what each returned, by rank.

    Processes are forked, so `work` may be any function, and `args` and everything it closes over are there without copies. What it
    returns is pickled; tensors go by value.

    Raises:
        RuntimeError: work failed in a rank (with its traceback), a process died, or the time was up; the other processes are killed.
    """
    if torch.accelerator.is_available():
        pytest.skip("the processes are forked, which autograd's threads for devices do not survive")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked process cannot use the threads of OpenMP that its parent started
    context = multiprocessing.get_context("fork")
    ends, processes = [], []
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later: other threads are not forked
            for rank in range(count):
                end, other_end = context.Pipe()
                process = context.Process(
                    target=_rank, args=(rank, count, folder, other_end, timeout, work, args), daemon=True
                )
                process.start()
                other_end.close()  # so that the process' death is seen here
                ends.append(end)
                processes.append(process)
            results = _results(ends, time.monotonic() + timeout)
            for end, process in zip(ends, processes, strict=True):
                end.send("all are done")
                process.join(timeout)
            return results
    finally:
        for process in processes:
            process.kill()
            process.join()
        torch.set_num_threads(threads)


def _results(ends: list[Connection], time_is_up: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(ends):
        waiting = [end for rank, end in enumerate(ends) if rank not in results]
        ready = wait(waiting, max(0.0, time_is_up - time.monotonic()))
        if not ready:
            raise RuntimeError(f"ranks {[ends.index(end) for end in waiting]} are not done in time")
        for end in ready:
            rank = ends.index(end)
            try:
                done, results[rank] = pickle.loads(end.recv_bytes())
            except EOFError:
                done, results[rank] = False, "the process died"
            if not done:
                raise RuntimeError(f"rank {rank} failed:\n{results[rank]}")
    return [results[rank] for rank in range(len(ends))]


def _rank(
    rank: int,
    count: int,
    folder: str,
    end: Connection,
    timeout: float,
    work: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        store = f"file://{Path(folder, 'group')}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
        dist.barrier()
        answer = pickle.dumps((True, work(rank, *args)))
    except BaseException:
        answer = pickle.dumps((False, traceback.format_exc()))
    end.send_bytes(answer)
    end.poll(timeout)  # others may still need the connections
    if dist.is_initialized():
        dist.destroy_process_group()
