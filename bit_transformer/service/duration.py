"""How long a training takes here: some of its updates are made and timed, on random bytes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import torch

from bit_transformer.config import BUDGETS, TrainConfig
from bit_transformer.data.sources import Corpus, bytes_corpus
from bit_transformer.data.windows import CorpusWindows, Windows
from bit_transformer.errors import ConfigError, Give
from bit_transformer.evaluation.metrics import bits_per_byte, default_protocol, window_bytes
from bit_transformer.evaluation.scorer import Score
from bit_transformer.model import BitTransformerLM
from bit_transformer.pieces import VALIDATION_ROWS
from bit_transformer.service.jobs import Job, Reading
from bit_transformer.service.requests import TimeRequest
from bit_transformer.service.threads import threads_that_pay
from bit_transformer.service.workspace import Workspace
from bit_transformer.training import Record, StopTraining, Trainer
from bit_transformer.training.batches import pass_is_too_long
from bit_transformer.training.streamed import StreamedWindows

LONGEST = 600.0  # seconds of measuring that may be asked for
WARM_UP, LEAST = 2, 2  # updates before the measured ones, and least number of these
LONG = 40.0  # seconds after which one measured update is enough
PASSED = 1 << 18  # bytes that experts read, to see how fast they are
IN_MEMORY = 1 << 62  # bytes of features: all stay in memory, so that nothing is written to the cache


@dataclass(frozen=True)
class TimeEstimate:
    """How long a training takes, as measured here and now.

    Attributes:
        seconds: for the whole budget: the experts' first pass, updates and validations. The last evaluation comes after it.
        updates: in the budget.
        seconds_per_update: on average, without validations.
        bytes_per_s: data bytes per second of updates.
        first_pass_bytes_per_s: how fast the experts read the data before the first update; None without experts, or where they read it during
            training.
        first_pass_seconds: 0 where there is none; None where it depends on data_bytes, which was not given.
        validation_seconds: of all validations together.
        measured_updates, measured_seconds: what was timed.
        threads: of PyTorch, on a processor.
        how: all this in words.
    """

    seconds: float
    updates: int
    seconds_per_update: float
    bytes_per_s: float
    first_pass_bytes_per_s: float | None
    first_pass_seconds: float | None
    validation_seconds: float
    measured_updates: int
    measured_seconds: float
    device: str
    threads: int
    how: str


def estimate_time(request: TimeRequest, workspace: Workspace, job: Job) -> TimeEstimate:
    """Measure how long a training takes here. Nothing is written, and torch's settings and generators are as before.

    Raises:
        ConfigError: invalid settings, or a budget in epochs without the size of the data.
        OutOfMemory: the training does not fit into memory.
    """
    train, data_bytes, seconds = request.train, request.data_bytes, request.seconds
    if not 0 < seconds <= LONGEST:
        raise ConfigError(f"got seconds={seconds:g}; it must be in (0, {LONGEST:g}]. Try 5", field="seconds")
    if data_bytes is not None and data_bytes < 1:
        raise ConfigError(f"got data_bytes={data_bytes}; it must be at least 1. Try 1000000", field="data_bytes")
    if train.epochs is not None and data_bytes is None:
        raise ConfigError(
            "got a budget in epochs and no data_bytes; it must be known how long an epoch is",
            field="data_bytes",
            tries=(Give("data_bytes", 1_000_000), Give("train", {"seconds": 60})),
        )
    with _as_before(workspace.device), job.cancellable():
        return _estimate(request, workspace.device, job)


@contextmanager
def _as_before(device: torch.device) -> Iterator[None]:
    """Within: torch's generators may be used; afterwards they are where they were."""
    used = device.type == "cuda" or torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if used else []):
        yield


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _estimate(request: TimeRequest, device: torch.device, job: Job) -> TimeEstimate:
    shape, train, data_bytes = request.model, request.train, request.data_bytes
    torch.manual_seed(train.seed)
    model = BitTransformerLM(shape).to(device)
    size = window_bytes(model, train.window)
    passed_per_s, windows = _windows(model, train, size, data_bytes)
    each = train.batch_size * windows.window_bytes
    # Rounded weights take longer. So both kinds of updates are measured, and each counts as often as there are.
    kinds = [(1.0, None)] if train.qat is None else [(train.qat_after, None), (1 - train.qat_after, train.qat)]
    per_update, paces = 0.0, []
    for share, qat in kinds:
        pace = _timed(model, windows, _long(train, qat), request.seconds / len(kinds), job)
        per_update += share * pace.seconds / pace.updates
        paces.append(pace)
    pass_seconds = 0.0 if passed_per_s is None else None if data_bytes is None else data_bytes / passed_per_s
    with _threads(paces[-1].threads):
        checks = _validation_seconds(model, train, data_bytes, request.seconds)
    name, amount = train.budget
    if name == "seconds":
        updates = max(1, math.floor((amount - (pass_seconds or 0.0) - checks) / per_update))
        whole = amount
    else:
        if name == "epochs":
            assert data_bytes is not None
            amount *= max(1, data_bytes // size - 1) * size  # as `CorpusWindows` counts
        if name == "flops":
            amount /= model.flops_per_byte()
        updates = math.ceil(amount / (1 if name == "steps" else each))
        whole = updates * per_update + (pass_seconds or 0.0) + checks
    measured, spent = sum(pace.updates for pace in paces), sum(pace.seconds for pace in paces)
    return TimeEstimate(
        seconds=whole,
        updates=updates,
        seconds_per_update=per_update,
        bytes_per_s=each / per_update,
        first_pass_bytes_per_s=passed_per_s,
        first_pass_seconds=pass_seconds,
        validation_seconds=checks,
        measured_updates=measured,
        measured_seconds=spent,
        device=str(device),
        threads=paces[-1].threads,
        how=_in_words(request, device, measured, spent, paces[-1].threads, pass_seconds, checks),
    )


def _in_words(
    request: TimeRequest,
    device: torch.device,
    updates: int,
    seconds: float,
    threads: int,
    first_pass: float | None,
    checks: float,
) -> str:
    """How an estimate was made, and what it leaves out."""
    where = f"{device} with {threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else str(device)
    text = f"{updates} update{'s' * (updates != 1)} in {seconds:.2g} s after a warm-up, on random bytes, on {where}"
    if first_pass is None:
        text += "; without the experts' first pass, because data_bytes is not given"
    if not checks:
        text += "; without validations"
    if request.train.progressive:
        text += "; all at the last shape, so a training that grows takes less"
    if request.train.compile_model:
        text += "; compiling is not counted"
    return text


def _long(train: TrainConfig, qat: int | None) -> TrainConfig:
    """The same updates with a budget that does not end, and nothing between them."""
    fields = {key: value for key, value in train.model_dump().items() if key not in BUDGETS}
    free = {"steps": 1 << 40, "progressive": None, "telemetry": 0, "sample_bytes": 0, "qat": qat, "qat_after": 0.0}
    return TrainConfig.of({**fields, **free})


# ---- data ----


def _windows(
    model: BitTransformerLM, train: TrainConfig, size: int, data_bytes: int | None
) -> tuple[float | None, Windows]:
    """Windows of random bytes as the training would draw them; and how fast its experts read the data first, in bytes per second, if they do."""
    shape = model.config
    rows = train.batch_size
    if not shape.experts:
        return None, CorpusWindows(
            _random(8 * rows * size), size, parity=shape.parity, align=shape.align_bytes, seed=train.seed
        )
    from bit_transformer.experts.passes import feature_bytes
    from bit_transformer.experts.shards import sharded_features

    corpus = _random(max(2 * rows * size, PASSED)).aligned(shape.align_bytes)
    if data_bytes is not None:
        each = feature_bytes(corpus, shape) / len(corpus)
        if data_bytes * each > train.feature_cache or pass_is_too_long(data_bytes, train, shape):
            return None, StreamedWindows(corpus, size, shape, streams=rows, seed=train.seed)
    first = corpus.part(0, 1024 * train.workers).aligned(shape.align_bytes)
    began = time.perf_counter()
    for part in (first, corpus):  # the first time loads what numba has compiled
        began = time.perf_counter()
        features = sharded_features(part, shape, train.workers, limit=0, memory=IN_MEMORY)
    seconds = time.perf_counter() - began
    model.bank = features.bank
    windows = CorpusWindows(
        corpus, size, parity=shape.parity, align=shape.align_bytes, seed=train.seed, features=features
    )
    return len(corpus) / seconds, windows


def _random(size: int) -> Corpus:
    return bytes_corpus(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8))


# ---- time ----


@dataclass
class _Pace:
    """Measured updates."""

    updates: int = 0
    seconds: float = 0.0
    threads: int = 1


def _timed(model: BitTransformerLM, windows: Windows, train: TrainConfig, seconds: float, job: Job) -> _Pace:
    """Make updates for so many seconds; of a model whose updates take long, one after the warm-up."""
    pace, began, made = _Pace(), 0.0, 0
    first = 0.0  # when the first update began

    def watch(trainer: Trainer, record: Record) -> None:
        nonlocal began, made
        made += 1
        if made <= WARM_UP:
            trainer.settle()  # an accelerator is done with it
            began = time.perf_counter()
            return
        pace.updates, pace.seconds = made - WARM_UP, time.perf_counter() - began
        job.tell(Reading(min(round(1000 * pace.seconds), round(1000 * seconds)), round(1000 * seconds), "timed", "ms"))
        if pace.seconds >= seconds and (pace.updates >= LEAST or time.perf_counter() - first >= max(LONG, seconds)):
            trainer.settle()
            pace.seconds = time.perf_counter() - began
            raise StopTraining("measured")

    trainer = Trainer(model, windows, train, observers=[watch])
    with threads_that_pay(trainer, job):
        pace.threads = torch.get_num_threads()
        first = time.perf_counter()
        trainer.run()
    return pace


def _validation_seconds(model: BitTransformerLM, train: TrainConfig, data_bytes: int | None, seconds: float) -> float:
    """What all validations take: how fast one is, measured for at most so many seconds, times what they score."""
    most = train.eval_bytes if data_bytes is None else min(train.eval_bytes, max(1, data_bytes // 10))
    rows = min(VALIDATION_ROWS, math.ceil(train.batch_size / train.accum_steps))
    how = default_protocol(model, overlap=0.0)
    began, scored = time.perf_counter(), 0

    class Enough(Exception):
        pass

    def tell(so_far: Score) -> None:
        nonlocal scored
        scored = so_far.bytes
        if time.perf_counter() - began > seconds:
            raise Enough

    with suppress(Enough):
        bits_per_byte(model, _random(most), how, batch=rows, scored=tell)
    per_byte = (time.perf_counter() - began) / scored
    if how.samples:  # as validation does
        per_byte *= 2 / how.samples
    times = math.ceil(1 / train.eval_every) * (2 if train.average and train.keep_best else 1)
    return times * most * per_byte
