"""Trains a model on a corpus, into a run folder and the run store; resumes a training that was stopped."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bit_transformer.checkpoint import MODEL_FILE, load_checkpoint, read_config
from bit_transformer.config import BUDGETS, DataConfig, DistributedConfig, ModelConfig, TrainConfig
from bit_transformer.data.sources import Corpus, find_files, split, standard_parts
from bit_transformer.data.windows import Windows
from bit_transformer.distributed.checkpoints import DOCUMENT, complete, part_folders
from bit_transformer.distributed.data_parallel import DataParallel
from bit_transformer.distributed.world import World, join
from bit_transformer.errors import (
    Ask,
    BitStreamError,
    BitTransformerError,
    Cancelled,
    CheckpointError,
    ConfigError,
    Give,
    MissingExtra,
    NonFiniteLoss,
    RunNotFound,
)
from bit_transformer.evaluation.metrics import bits_per_byte
from bit_transformer.growth import smaller_config, stages
from bit_transformer.model import BitTransformerLM
from bit_transformer.quantization import is_quantized, set_rounding
from bit_transformer.runs.lock import held
from bit_transformer.runs.store import RunStore, Status
from bit_transformer.safety.calibration import GATE_FILE
from bit_transformer.service import launch
from bit_transformer.service.evaluation import Comparison, compare_on
from bit_transformer.service.files import check_run_folder, write_file
from bit_transformer.service.jobs import Job, Reading
from bit_transformer.service.loggers import FOLDERS as LOG_FOLDERS
from bit_transformer.service.loggers import JSONL_FILE, check_logs, open_logs
from bit_transformer.service.memory import fits, micro_batches_that_fit
from bit_transformer.service.observers import (
    KEPT,
    PARTS,
    TRAINING_FILE,
    WATCHED,
    Checkpoints,
    Probe,
    Recorder,
    Reporter,
    Samples,
    stop_when,
)
from bit_transformer.service.plots import plot_loss
from bit_transformer.service.provenance import provenance
from bit_transformer.service.requests import LOG_TO, DistillRequest, FurtherRequest, ResumeRequest, TrainRequest
from bit_transformer.service.runs import growths
from bit_transformer.service.settings import train_config
from bit_transformer.service.steering import INTERRUPTED, PAUSED, Clock, Steering
from bit_transformer.service.threads import threads_that_pay
from bit_transformer.service.workspace import Workspace
from bit_transformer.telemetry import Alert
from bit_transformer.training import (
    Observer,
    Trainer,
    autocast_wanted,
    build_windows,
    check_ranks,
    check_teacher,
    check_training,
    grows_context,
)

CONFIG_FILE, METRICS_FILE, PLOT_FILE = "config.json", "metrics.csv", "loss.png"
START_FILE = "start.safetensors"  # the model that a training with `init` started from
RUN_FILES = (CONFIG_FILE, METRICS_FILE, PLOT_FILE, MODEL_FILE, TRAINING_FILE, GATE_FILE, START_FILE, JSONL_FILE)
VALIDATION_PIECE = 4096


@dataclass(frozen=True)
class TrainResult:
    """The result of a training.

    Attributes:
        status: `finished`, or `stopped` by an interrupt.
        note: why it ended.
        best_step: the update whose weights were kept; the last one if there was no validation.
        parameters: total; `active_parameters`: those that one position uses.
        val_bpb: of the last validation during training, on a small sample; None if there was none.
        comparison: the model next to compressors on held-out bytes; None if it was stopped or nothing is held out.
    """

    run: str
    folder: str
    status: str
    note: str
    steps: int
    best_step: int
    seconds: float
    bytes_seen: int
    train_bytes: int
    parameters: int
    active_parameters: int
    comparison: Comparison | None
    val_bpb: float | None = None


def train(request: TrainRequest, workspace: Workspace, job: Job) -> TrainResult:
    """Train a new model.

    Raises:
        BitTransformerError: invalid settings or data; then nothing is written.
    """
    if launch.wanted(request.distributed):
        spread = request.distributed
        assert spread is not None
        launch.check_count(spread.nproc or 1, workspace)
        check_ranks(request.train, DataParallel(World(0, spread.nproc or 1), shard=spread.shard))
        return launch.launched("train", request, request.out, workspace, job)
    return _train(request, _teacher(request, workspace), workspace, job)


def train_further(request: FurtherRequest, workspace: Workspace, job: Job) -> TrainResult:
    """Train the model of a run further, as a new run: weights, experts and optimizers continue from their state.

    Raises:
        BitTransformerError: no such run, or invalid settings or data.
    """
    path, out = workspace.model_path(request.run), request.out
    if launch.wanted(request.distributed):
        return launch.launched("train_further", request, out, workspace, job)
    if path.resolve().parent == out.resolve():
        raise ConfigError(
            f"got out={str(out)!r}, the folder of the run to start from; the new run needs another",
            field="out",
            tries=(Give("out", f"{out}-more"), Ask("resume", more=(Give("budget", {"seconds": 600}),))),
        )
    whole = _request_from(request, path, read_config(path), workspace, init=path)
    if whole.train.progressive:
        raise ConfigError(
            "got progressive and a model to start from; a training with growth starts with a new model. Try without one of them",
            field="train.progressive",
        )
    return train(whole, workspace, job)


def _train(request: TrainRequest, teacher: BitTransformerLM | None, workspace: Workspace, job: Job) -> TrainResult:
    check_training(request.model, request.train)
    check_logs(request.log_to)
    check_run_folder(request.out)
    with _ranks(request.out, request.distributed, request.train, workspace, job) as (parallel, asked):
        return _train_held(request, teacher, workspace, job, asked, parallel)


@contextmanager
def _ranks(
    out: Path, distributed: DistributedConfig | None, train: TrainConfig, workspace: Workspace, job: Job
) -> Iterator[tuple[DataParallel, Callable[[], bool]]]:
    """Within: this process trains into a run folder, alone or as one of several; and a function that says whether it was asked to stop.
    Only rank 0 holds the folder, writes to it and listens."""
    if distributed is None:
        with held(out), job.stoppable(out) as asked:
            yield DataParallel(), asked
        return
    with join(workspace.device, timeout=distributed.timeout) as world, world.watched():
        parallel = DataParallel(world, shard=distributed.shard, bfloat16=autocast_wanted(world.device, train.amp))
        check_ranks(train, parallel)
        with held(out) if world.is_main else nullcontext(), job.stoppable(out if world.is_main else None) as asked:
            yield parallel, asked


def _train_held(
    request: TrainRequest,
    teacher: BitTransformerLM | None,
    workspace: Workspace,
    job: Job,
    asked: Callable[[], bool],
    parallel: DataParallel,
) -> TrainResult:
    there = [name for name in RUN_FILES if (request.out / name).exists()]
    if there and not request.overwrite:
        raise ConfigError(
            f"{request.out} already holds {there[0]}; a run needs its own folder",
            field="out",
            tries=(Ask("resume", more=(Give("out", str(request.out)),)), Give("overwrite", True), Give("out")),
        )
    if request.eval_bytes < 1:
        raise ConfigError(
            f"got eval_bytes={request.eval_bytes}; at least 1 is needed",
            field="eval_bytes",
            tries=("data.holdout=0 to hold nothing out",),
        )
    store = workspace.store
    if parallel.world.is_main:
        store.check_name(_name(request.out), request.out)  # before the experts read the data
    data = load_data(request, workspace)
    began = time.monotonic()
    with job.cancellable(asked):
        trainer = _trainer(request, data, workspace, job, teacher, parallel)
    trainer.progress.seconds = time.monotonic() - began  # the experts' pass over the data is part of the budget
    if request.init is not None:
        _begin_like(trainer, request.init.with_name(TRAINING_FILE), job)
    _foresee(trainer, job)
    parallel.world.meet()  # all have looked before one writes
    if parallel.world.is_main:
        document = {**_document(request, data, workspace), "job": job.number}
        store.begin(_name(request.out), request.out, document, again=job.again)
        for name in there:
            (request.out / name).unlink()
        logs = [request.out / name for name in LOG_FOLDERS] if there else []
        for parts in (*part_folders(request.out, PARTS), request.out / KEPT, *logs):
            shutil.rmtree(parts, ignore_errors=True)
        if request.init is not None:
            write_file(
                request.out / START_FILE, request.init.read_bytes()
            )  # to resume from, even if that run is changed or removed
        write_file(request.out / CONFIG_FILE, f"{json.dumps(document, indent=2)}\n".encode())
    return _run(trainer, request, data.held_out, store, job, asked)


def resume(request: ResumeRequest, workspace: Workspace, job: Job) -> TrainResult:
    """Resume a training from its last checkpoint, in its own store. With a larger budget, a finished run is continued.

    Raises:
        CheckpointError: no such run, it has no checkpoint, or its data changed.
        ConfigError: the budget is already spent.
        RunBusy: another process trains it.
    """
    if launch.wanted(request.distributed):
        return launch.launched("resume", request, request.out, workspace, job)
    check_run_folder(request.out)
    train = _read_request(request.out, workspace)[0].train
    with _ranks(request.out, request.distributed, train, workspace, job) as (parallel, asked):
        return _resume_held(request, workspace, job, asked, parallel)


def _resume_held(
    asked: ResumeRequest,
    workspace: Workspace,
    job: Job,
    asked_to_stop: Callable[[], bool],
    parallel: DataParallel,
) -> TrainResult:
    out, budget = asked.out, asked.budget
    request, digest, workspace = _read_request(out, workspace)
    if budget:
        own = {name: value for name, value in request.train.model_dump().items() if name not in BUDGETS}
        request = request.model_copy(update={"train": TrainConfig.of({**own, **budget})})
    if asked.auto_batch:
        request = request.model_copy(update={"train": request.train.model_copy(update={"auto_batch": True})})
    check_logs(request.log_to)
    store = workspace.store
    if parallel.world.is_main:
        try:
            store.get(_name(out))
        except (
            RunNotFound
        ):  # the folder was moved, or the run removed from the store: the folder has all that is needed
            store.begin(_name(out), out, json.loads((out / CONFIG_FILE).read_text()))
    parallel.world.meet()
    recorded = store.get(_name(out))
    # Processes that were started again after the end of the training only repeat the last evaluation.
    if recorded.status == "finished" and not budget and not launch.restarted():
        name, amount = request.train.budget
        larger = Give("budget", {name: 2 * amount})
        raise CheckpointError(
            f"{out} is finished: its budget is spent",
            field="budget",
            tries=(Ask("resume", more=(Give("out", str(out)), larger)),),
        )
    data = load_data(request, workspace)
    if data.train.digest() != digest:
        raise CheckpointError(
            f"{out}: its training files have changed; a resumed run needs the same ones. Try a new run"
        )
    with job.cancellable(asked_to_stop):
        trainer = _trainer(request, data, workspace, job, _teacher(request, workspace), parallel)
    state = training_state(out)
    assert state is not None  # `_read_request` has found it
    trainer.load(state)
    p, (name, amount) = trainer.progress, request.train.budget
    if budget and p.share >= 1:
        spent = {"steps": p.step, "bytes": math.ceil(p.bytes_seen), "seconds": math.ceil(p.seconds)}.get(name, amount)
        raise ConfigError(
            f"got {name}={amount:g}, which is already spent: {p.step:,} updates, {p.bytes_seen:,.0f} bytes, {p.seconds:.0f} seconds. "
            f"Try {name}={2 * max(amount, spent):g}",
            field=name,
        )
    _foresee(trainer, job)
    parallel.world.meet()
    if budget and parallel.world.is_main:
        document = json.loads((out / CONFIG_FILE).read_text()) | {"train": request.train.model_dump(mode="json")}
        write_file(out / CONFIG_FILE, f"{json.dumps(document, indent=2)}\n".encode())
    if parallel.world.is_main:
        store.go_on(_name(out), trainer.progress.step, trainer.progress.commands)
    return _run(trainer, request, data.held_out, store, job, asked_to_stop)


@dataclass(frozen=True)
class Distillation:
    """The result of a distillation, and what was lost.

    Attributes:
        training: of the student.
        teacher_bpb, student_bpb: on the same held-out bytes; None if the training was stopped or nothing is held out.
        parameters, flops: of the student as a fraction of the teacher's; active parameters, and operations per byte.
    """

    training: TrainResult
    teacher: str
    teacher_bpb: float | None
    student_bpb: float | None
    parameters: float
    flops: float


def distill(request: DistillRequest, workspace: Workspace, job: Job) -> Distillation:
    """Train a smaller model to predict what a larger one predicts, and the data.

    Raises:
        BitTransformerError: no such run, a student that is not smaller, or invalid settings or data.
    """
    path, out = workspace.model_path(request.run), request.out
    if path.resolve().parent == out.resolve():
        raise ConfigError(
            f"got out={str(out)!r}, which is the teacher's own folder; the student needs another",
            field="out",
            tries=(Give("out", f"{out}-small"),),
        )
    teacher = workspace.model(request.run)
    shape = smaller_config(teacher.config, request.model)
    with torch.device("meta"):  # only shapes
        student = BitTransformerLM(shape)
    before, after = teacher.num_parameters(), student.num_parameters()
    if after.total >= before.total:
        raise ConfigError(
            f"got a student of {after.total:,} parameters; the teacher has {before.total:,}. Try fewer layers, or less width",
            field="model",
        )
    check_teacher(teacher.config, shape)
    whole = _request_from(request, path, shape, workspace, teacher=path)
    result = _train(whole, teacher, workspace, job)
    teacher_bpb = None
    if result.comparison:
        teacher_bpb = bits_per_byte(teacher, _last_sample(whole, load_data(whole, workspace).held_out)).bpb
    return Distillation(
        training=result,
        teacher=request.run,
        teacher_bpb=teacher_bpb,
        student_bpb=result.comparison.bpb if result.comparison else None,
        parameters=after.active / before.active,
        flops=student.flops_per_byte(training=False) / teacher.flops_per_byte(training=False),
    )


def _request_from(
    request: FurtherRequest | DistillRequest, path: Path, shape: ModelConfig, workspace: Workspace, **role: Path
) -> TrainRequest:
    """A training that starts from the model at `path`: on the data of its run, unless other data is given.

    Args:
        role: what that model is to the training: `init` or `teacher`.
    """
    folder, train_fields = path.parent, dict(request.train)
    if (folder / CONFIG_FILE).is_file() and training_state(folder) is not None:
        earlier, digest, own = _read_request(folder, workspace)
        data = DataConfig.of({**earlier.data.model_dump(), **request.data})
        if data == earlier.data and load_data(earlier, own).train.digest() != digest:
            raise CheckpointError(f"{folder}: its training files have changed. Try naming corpora")
        if data.corpora == earlier.data.corpora:
            train_fields = _same_validation(earlier, data, train_fields)
    elif request.data.get("corpora"):
        data = DataConfig.of(request.data)
    else:
        raise ConfigError(f"{folder} holds no run whose data can be read again. Try naming corpora")
    return TrainRequest(
        out=request.out,
        model=shape,
        train=train_config(shape, train_fields),
        data=data,
        eval_bytes=request.eval_bytes,
        overwrite=request.overwrite,
        distributed=request.distributed if isinstance(request, FurtherRequest) else None,
        log_to=request.log_to if isinstance(request, FurtherRequest) else LOG_TO,
        **role,
    )


def _same_validation(earlier: TrainRequest, data: DataConfig, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with which validation uses the same bytes as an earlier run of the same corpora, which its model was not trained on.

    Raises:
        ConfigError: a different number of bytes is requested.
    """
    same, wanted = earlier.train.eval_bytes, fields.get("eval_bytes", earlier.train.eval_bytes)
    if wanted != same or earlier.data != data:
        name = f"train.eval_bytes={wanted}" if wanted != same else "another split of the data"
        raise ConfigError(
            f"got {name}; on the same files, validation needs the bytes that the earlier run held out. Try without, or other files"
        )
    return {**fields, "eval_bytes": same}


def _last_sample(request: TrainRequest, held_out: Corpus) -> Corpus:
    """The bytes that the last evaluation scores."""
    return held_out.thinned(request.eval_bytes, 1 << 16, request.model.align_bytes)


def _name(out: Path) -> str:
    return out.resolve().name


def _run(
    trainer: Trainer, request: TrainRequest, held_out: Corpus, store: RunStore, job: Job, asked: Callable[[], bool]
) -> TrainResult:
    run, out = _name(request.out), request.out
    parallel = trainer.parallel
    if not parallel.world.is_main:
        return _run_beside(trainer, request)
    recorder = Recorder(store, run)
    checkpoints = Checkpoints(out, parallel, recorder)
    # A look at predictions calls the model on this rank alone, which sharded models cannot.
    probes = [] if parallel.shards else [_probe(store, run, job)]
    samples = [] if parallel.shards else [_samples(store, run)]
    clock = trainer.clock
    assert isinstance(clock, Clock)
    steering = Steering(
        store,
        run,
        save=checkpoints.save,
        keep=checkpoints.keep,
        asked=asked,
        live=recorder.live,
        clock=clock,
        job=job,
    )
    # What was changed must be in the checkpoint after the same update, so steering comes before it.
    settings = request.model_dump(mode="json", include={"model", "train", "data"})
    logs = open_logs(request.log_to, out, run, settings, trainer.progress.step, job.notice)
    observers: list[Observer] = [*probes, *samples, recorder, logs, steering, checkpoints, Reporter(job)]
    try:
        steering.begin(trainer)
        with store.in_use(), threads_that_pay(trainer, job) if parallel.size == 1 else nullcontext():
            trainer.observers = [*observers, stop_when(asked)]
            trainer.run()
            checkpoints.save_last(trainer)
        recorder.flush()
        p = trainer.progress
        status: Status = "stopped" if p.stopped in (INTERRUPTED, PAUSED) else "finished"
        comparison = None
        if status == "finished" and len(held_out):
            model = load_checkpoint(out / MODEL_FILE, device=trainer.device)
            with suppress(Cancelled), job.cancellable(asked):  # the training itself is done
                comparison = compare_on(model, _last_sample(request, held_out), job)
    except BaseException as failed:
        try:
            with suppress(BitTransformerError, OSError):  # what went wrong first is what the user must read
                if isinstance(failed, NonFiniteLoss):
                    store.drop_changes(run)
                recorder.flush()
                _export(store, run, out, job)
        finally:
            reason = str(failed) if isinstance(failed, BitTransformerError) else type(failed).__name__
            try:
                logs.end("failed", reason)
            finally:
                store.end(run, "failed", reason)
        raise
    try:
        logs.end(status, p.stopped, asdict(comparison) if comparison else None)
        _export(store, run, out, job)
    finally:  # last: who sees that a run has ended may resume it, or remove it
        store.end(run, status, p.stopped, asdict(comparison) if comparison else None)
    validated = store.last(run, "val_bpb")
    return _result(trainer, request, status, comparison, validated[1] if validated else None)


def _run_beside(trainer: Trainer, request: TrainRequest) -> TrainResult:
    """What ranks other than 0 do: train, and write their parts of checkpoints."""
    checkpoints = Checkpoints(request.out, trainer.parallel)
    trainer.observers = [checkpoints]
    trainer.run()
    checkpoints.save_last(trainer)
    return _result(trainer, request, "finished", None, None)


def _result(
    trainer: Trainer, request: TrainRequest, status: Status, comparison: Comparison | None, val_bpb: float | None
) -> TrainResult:
    p, count = trainer.progress, trainer.model.num_parameters()
    return TrainResult(
        run=_name(request.out),
        folder=str(request.out),
        status=status,
        note=p.stopped,
        steps=p.step,
        best_step=p.best_step if trainer.best is not None else p.step,
        seconds=round(p.seconds, 2),
        bytes_seen=round(p.bytes_seen),
        train_bytes=round(len(trainer.windows) * trainer.windows.window_bytes),
        parameters=count.total,
        active_parameters=count.active,
        comparison=comparison,
        val_bpb=val_bpb,
    )


def _probe(store: RunStore, run: str, job: Job) -> Probe:
    """A run's telemetry, which records drift, and continues from earlier records."""

    def tell(alert: Alert) -> None:
        store.add_alert(run, alert.step, alert.metric, alert.detector, alert.size)
        change = f"{alert.metric} changed by {alert.size:+.3f}"
        job.notice(f"drift: {change}, detected at step {alert.step} ({alert.detector})")

    return Probe(tell, {name: store.series(run, name) for name in WATCHED})


def _samples(store: RunStore, run: str) -> Samples:
    """A run's samples, which are recorded."""

    def tell(step: int, data: bytes) -> None:
        store.add_happening(run, step, "sample", {"data": base64.b64encode(data).decode()})

    return Samples(tell)


class Data(NamedTuple):
    """Parts of the data. No byte is in two of them, except in validations that sample the held-out part."""

    train: Corpus
    validation: Corpus
    held_out: Corpus


def load_data(request: TrainRequest, workspace: Workspace) -> Data:
    """What a training reads: the part to train on, the validation sample, the held-out part."""
    data, align, wanted = request.data, request.model.align_bytes, request.train.eval_bytes
    if data.split == "standard":
        train_part, own, test = (part.aligned(align) for part in standard_parts(data.corpora))
        held_out = test if data.holdout else Corpus([])
        selects = held_out if data.validation == "held-out" and len(held_out) else own
        return Data(train_part, selects.thinned(wanted, VALIDATION_PIECE, align), held_out)
    train_part, held_out = train_and_held_out(data, align, leave_out=(request.out, workspace.store_path))
    held_out = held_out.aligned(align)
    if data.validation == "held-out" or not len(held_out):
        return Data(train_part, held_out.thinned(wanted, VALIDATION_PIECE, align), held_out)
    train_part = train_part.aligned(align)
    most = len(train_part) // 10
    validation = train_part.thinned(min(wanted, most), VALIDATION_PIECE, align) if most >= align else Corpus([])
    return Data(train_part.without(validation), validation, held_out)


def train_and_held_out(data: DataConfig, align: int = 1, leave_out: Sequence[Path] = ()) -> tuple[Corpus, Corpus]:
    """The part to train on, with what validations take of it, and the held-out part.

    Args:
        align: cuts are at multiples of this many bytes.
        leave_out: files and folders that are no data.
    """
    if data.split == "standard":
        parts = standard_parts(data.corpora)
        return parts.train, parts.test if data.holdout else Corpus([])
    return split(find_files(data.corpora, leave_out=leave_out), data.split, data.holdout, align)


def _trainer(
    request: TrainRequest,
    data: Data,
    workspace: Workspace,
    job: Job,
    teacher: BitTransformerLM | None,
    parallel: DataParallel,
) -> Trainer:
    config, device = request.train, workspace.device

    def begin(shape: ModelConfig) -> tuple[BitTransformerLM, Windows]:
        torch.manual_seed(config.seed)
        if request.init is None:
            model = BitTransformerLM(shape).to(device)
        else:
            model = load_checkpoint(request.init, device=device, config=shape)
            if not is_quantized(model):
                set_rounding(model, None)  # this training says itself for how many bits it is
        passed = lambda done, total: job.tell(Reading(done, total))  # noqa: E731
        return model, build_windows(model, data.train, config, say=job.notice, passed=passed)

    context = config.window is None
    model, windows = begin(stages(request.model, context=context)[0] if config.progressive else request.model)
    if config.progressive and context and not grows_context(windows, config):
        model, windows = begin(stages(request.model, context=False)[0])
    validation = data.validation if len(data.validation) else None
    trainer = Trainer(
        model, windows, config, validation, teacher=teacher, target=request.model, parallel=parallel, clock=Clock()
    )
    mine = config.model_copy(update={"batch_size": config.batch_size // parallel.size})
    trainer.growth.may_grow = lambda shape: fits(shape, mine, device, trainer.micro_batches)
    return trainer


def _teacher(request: TrainRequest, workspace: Workspace) -> BitTransformerLM | None:
    """The loaded teacher, checked against the student before the data is read."""
    if request.teacher is None:
        return None
    teacher = load_checkpoint(request.teacher, device=workspace.device)
    check_teacher(teacher.config, request.model)
    return teacher


def _begin_like(trainer: Trainer, training: Path, job: Job) -> None:
    """Load the optimizer state of the training that the model comes from, if it exists and fits."""
    if not training.is_file():
        job.notice(f"{training} does not exist: the optimizers start anew")
        return
    try:
        trainer.take_optimizers(training)
    except CheckpointError as other:
        job.notice(f"the optimizers start anew ({other})")


def _foresee(trainer: Trainer, job: Job) -> None:
    """Before training, warn if memory is too small, or start with micro-batches that fit."""
    parallel, config = trainer.parallel, trainer.config
    if parallel.shards:  # what fits was not asked of this rank alone
        return
    mine = config.model_copy(update={"batch_size": config.batch_size // parallel.size})
    parts = micro_batches_that_fit(trainer.model.config, mine, trainer.device)
    if parts is not None and parts <= trainer.micro_batches:
        return
    if trainer.config.auto_batch:
        trainer.progress.micro_batches = parts or trainer.config.batch_size
    if parts is None or not trainer.config.auto_batch:
        job.notice(f"memory may be too small: {trainer.memory_advice()}")


def _document(request: TrainRequest, data: Data, workspace: Workspace) -> dict[str, Any]:
    return {
        "model": request.model.model_dump(mode="json"),
        "train": request.train.model_dump(mode="json"),
        "data": {
            **request.data.model_dump(mode="json"),
            "train_bytes": len(data.train),
            "validation_bytes": len(data.validation),
            "held_out_bytes": len(data.held_out),
            "digest": data.train.digest(),
        },
        "eval_bytes": request.eval_bytes,
        "log_to": list(request.log_to),
        "teacher": str(request.teacher.resolve()) if request.teacher else None,
        "init": str(request.init.resolve()) if request.init else None,
        "store": str(workspace.store_path.resolve()),
        "command": sys.argv,
        "provenance": provenance(),
    }


def held_out_part(out: Path, workspace: Workspace) -> Corpus:
    """The bytes that a run held out.

    Raises:
        CheckpointError: no run folder, or its files changed.
        BitStreamError: nothing was held out.
    """
    request, digest, own = _read_request(out, workspace)
    data = load_data(request, own)
    if data.train.digest() != digest:
        raise CheckpointError(f"{out}: its training files have changed. Try naming held-out files")
    if not len(data.held_out):
        raise BitStreamError(f"{out} held out no data. Try naming files that it was not trained on")
    return data.held_out


def split_of(out: Path) -> str:
    """How a run's data was split.

    Raises:
        CheckpointError: no run folder.
    """
    return _read_request(out, Workspace())[0].data.split


def trained_on(out: Path, workspace: Workspace) -> Corpus:
    """The bytes that the run in a folder was trained on.

    Raises:
        BitTransformerError: there is no such run, or its files have changed or are gone.
    """
    request, digest, workspace = _read_request(out, workspace)
    training = load_data(request, workspace).train
    if training.digest() != digest:
        raise CheckpointError(f"{out}: its training files have changed. Try evaluating with the same ones in place")
    return training


def _read_request(out: Path, workspace: Workspace) -> tuple[TrainRequest, str, Workspace]:
    """A run's request, the digest of its training bytes, and a workspace with its own store."""
    path = out / CONFIG_FILE
    if training_state(out) is None or not path.is_file():
        raise CheckpointError(
            f"{out}: holds no run with a checkpoint to resume", field="out", tries=(Ask("runs.list"), Ask("train"))
        )
    try:
        document = json.loads(path.read_text())
        stored = {"validation": "held-out", **document["data"]}  # of runs from before this field existed
        data = DataConfig.of({key: stored[key] for key in DataConfig.model_fields})
        model, train = ModelConfig.of(document["model"]), TrainConfig.of(document["train"])
        teacher = Path(document["teacher"]) if document.get("teacher") else None
        init = out / START_FILE if document.get("init") else None
        request = TrainRequest(
            out=out,
            model=model,
            train=train,
            data=data,
            eval_bytes=document["eval_bytes"],
            teacher=teacher,
            init=init,
            log_to=document.get("log_to", LOG_TO),
        )
        own = Workspace(Path(document["store"]), workspace.device_name)
        digest: str = document["data"]["digest"]
    except (KeyError, TypeError, ValueError) as damaged:
        raise CheckpointError(f"{path}: is damaged or of another version ({damaged}). Try a new run") from None
    if "-" in data.corpora:
        raise BitStreamError(f"{out} was trained on standard input, which cannot be read again. Try a file")
    return request, digest, own


def training_state(out: Path) -> Path | None:
    """The latest checkpoint of a training: one file, or a folder of parts. None if there is none."""
    there = [path for path in (out / TRAINING_FILE, *complete(out, PARTS)[-1:]) if path.exists()]

    def written(path: Path) -> float:
        return (path / DOCUMENT if path.is_dir() else path).stat().st_mtime

    return max(there, key=written, default=None)


def _export(store: RunStore, run: str, out: Path, job: Job) -> None:
    """Write the run's metrics to its folder: a table and a plot."""
    keys = store.metric_keys(run)
    columns = {key: dict(store.series(run, key)) for key in keys}
    steps = sorted({step for column in columns.values() for step in column})
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["step", *keys])
    writer.writerows([step, *(columns[key].get(step, "") for key in keys)] for step in steps)
    write_file(out / METRICS_FILE, text.getvalue().encode())
    if "train_bpb" in columns:
        marks = growths(store, run)[1:]
        try:
            plot_loss(columns["train_bpb"], columns.get("val_bpb", {}), out / PLOT_FILE, title=run, marks=marks)
        except MissingExtra as missing:  # a training does not fail because of a plot
            job.notice(f"{PLOT_FILE} was not written: {missing}")
