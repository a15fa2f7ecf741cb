"""Measures how many CPU threads are fastest for a training: on a busy machine more threads are often much slower."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from bit_transformer.service.jobs import Job
from bit_transformer.training import Trainer, autocast
from bit_transformer.training.out_of_memory import is_out_of_memory

ROUNDS, LONGEST = 3, 5.0  # rounds of measuring, and seconds after which no new round starts
WORTH = 0.9  # fewer threads are chosen if an update then takes less than this fraction of the time
CHOSEN_BY_USER = "OMP_NUM_THREADS"


@contextmanager
def threads_that_pay(trainer: Trainer, job: Job) -> Iterator[None]:
    """Within: PyTorch uses the number of threads that is fastest now; a resumed training uses its earlier number.

    Nothing is measured on a GPU, if `OMP_NUM_THREADS` is set, if the trunk is compiled, or if the model will grow.
    """
    before = torch.get_num_threads()
    p, config = trainer.progress, trainer.config
    chosen = os.environ.get(CHOSEN_BY_USER)
    measurable = trainer.device.type == "cpu" and not (config.compile_model or config.progressive)
    try:
        if chosen or not measurable or before == 1:
            if p.threads not in (0, before):
                job.notice(
                    f"the training had {_count(p.threads)}, and now has {before}: results may differ by rounding"
                )
            p.threads = before
        elif p.threads:
            torch.set_num_threads(p.threads)
        else:
            began = time.monotonic()
            seconds = _measured_or_not(trainer, before)
            p.threads = _fastest(seconds)
            p.seconds += time.monotonic() - began  # part of the budget
            torch.set_num_threads(p.threads)
            if p.threads < before:
                job.notice(
                    f"an update takes {seconds[p.threads]:.2g} s with {_count(p.threads)}, {seconds[before]:.2g} s with {before}: the "
                    f"training uses {_count(p.threads)}. Set {CHOSEN_BY_USER} to choose another number"
                )
        yield
    finally:
        torch.set_num_threads(before)


def _measured_or_not(trainer: Trainer, most: int) -> dict[int, float]:
    """Seconds by number of threads. Empty if a micro-batch does not fit into memory; the training itself raises that error."""
    try:
        return measured(lambda: _pass(trainer), most)
    except (RuntimeError, MemoryError) as failed:
        if not is_out_of_memory(failed):
            raise
    trainer.optimizers.zero_grad()
    return {most: 0.0}


def measured(call: Callable[[], object], most: int) -> dict[int, float]:
    """Seconds of a call with `most` threads, half of them, and so on down to one: the minimum over interleaved rounds."""
    seconds = {most >> halving: math.inf for halving in range(most.bit_length())}
    torch.set_num_threads(1)
    call()  # warms up
    began = time.monotonic()
    for _ in range(ROUNDS):
        for count in seconds:
            torch.set_num_threads(count)
            start = time.perf_counter()
            call()
            seconds[count] = min(seconds[count], time.perf_counter() - start)
        if time.monotonic() - began > LONGEST:
            break
    return seconds


def _fastest(seconds: dict[int, float]) -> int:
    most = max(seconds)
    best = min(seconds, key=lambda count: seconds[count])
    return best if seconds[best] < WORTH * seconds[most] else most


def _pass(trainer: Trainer) -> None:
    """Forward and backward pass of one micro-batch of random bits; restores the training's state."""
    model, config = trainer.model, trainer.config
    rows = math.ceil(config.batch_size / trainer.micro_batches)
    bits = round(trainer.windows.window_bytes * model.config.byte_bits)
    bits_BT = torch.randint(0, 2, (rows, bits), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    said_BTF = None
    if model.mixer is not None:
        said_BTF = torch.zeros((rows, bits, model.mixer.features), dtype=torch.int8)
    was_training = model.training
    model.train()
    with autocast(trainer.device, config.amp):
        made = trainer.objective(model, bits_BT, said_BTF)
    made.loss.backward()  # type: ignore[no-untyped-call]
    trainer.optimizers.zero_grad()
    model.train(was_training)


def _count(threads: int) -> str:
    return "one thread" if threads == 1 else f"{threads} threads"
