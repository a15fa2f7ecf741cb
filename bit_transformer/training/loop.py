"""The training loop: draw windows, forward, backward, update, call observers, until the budget is spent.

The loop holds only the algorithm. Progress bars, run records, checkpoints and stops are observers: they are called after every update, and
each decides when to act. `Trainer` holds the whole state of a training, so that with `save` and `load` a resumed run equals an
uninterrupted one bit for bit: windows and dropout depend only on the seed and the step.
"""

# Shapes: B windows, T bits.
from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from bit_transformer.checkpoint import load_weights
from bit_transformer.config import BUDGETS, STEERED, Config, ModelConfig, TrainConfig, changed_settings
from bit_transformer.data.prefetch import Prefetched
from bit_transformer.data.sources import Corpus, as_corpus
from bit_transformer.data.windows import Batch, BitWindows, CorpusWindows, Windows
from bit_transformer.distributed.data_parallel import DataParallel
from bit_transformer.distributed.shards import whole
from bit_transformer.errors import CheckpointError, ConfigError, NonFiniteLoss, OutOfMemory
from bit_transformer.evaluation.metrics import window_bytes
from bit_transformer.growth import expand_to, stages
from bit_transformer.machine import keep_freed_memory
from bit_transformer.model import BitTransformerLM
from bit_transformer.objectives import Objective, check_teacher, objective_for
from bit_transformer.pieces import VALIDATION_ROWS
from bit_transformer.quantization import check_trainable, checked_rounding, prepare_qat, set_rounding
from bit_transformer.tensor_file import read_tensors, under, write_tensors
from bit_transformer.training.batches import build_windows
from bit_transformer.training.growing import Growth, expand_optimizers
from bit_transformer.training.optim import Optimizers, clip_gradients, schedule
from bit_transformer.training.out_of_memory import is_out_of_memory, memory_advice
from bit_transformer.training.precision import autocast, check_precision
from bit_transformer.training.run_lengths import RunLengths
from bit_transformer.training.state import Progress, Record, crossed
from bit_transformer.training.streamed import StreamedWindows
from bit_transformer.training.validation import AVERAGED, Validation

FIRST_REACH = 0.2  # of a curriculum: the first noise level
SETTLED = 100  # updates between checks for a loss that is not finite, for which an accelerator must finish its work


class StopTraining(Exception):
    """Raised by an observer to end the training normally. The text is recorded as the reason."""


Observer = Callable[["Trainer", Record], None]
_Config = TypeVar("_Config", bound=Config)


@dataclass
class Trainer:
    """A training in progress.

    Args:
        model: trained in place; with `config.qat` its weights are rounded from some update on. If it grows, it must be the first stage on the way to the target, and is replaced at every growth.
        windows: the training data.
        config: budget, batch, optimizer.
        validation: held-out bytes that are scored during training, if any.
        teacher: for distillation; must have the same patches, noise and experts.
        target: with `config.progressive`: the config to grow to.
        may_grow: whether a config fits into memory.
        observers: called after every update with the trainer and the update's record; may raise `StopTraining`.
        parallel: the ranks that train together. Default: this process alone. Every rank makes its own trainer, with the same arguments.
        clock: a clock in seconds; replaced in tests.

    Attributes:
        objective: the training objective.
        optim: learning rates and related settings, as last changed.
        kept: validation and the weights kept by it, if there is validation data.
        growth: the growth plan.
        latest: the batch of the latest update, for observers.
    """

    model: BitTransformerLM
    windows: Windows
    config: TrainConfig
    validation: Corpus | None = None
    observers: Iterable[Observer] = ()
    teacher: BitTransformerLM | None = None
    target: ModelConfig | None = None
    may_grow: Callable[[ModelConfig], bool] = lambda _: True
    parallel: DataParallel = field(default_factory=DataParallel)
    clock: Callable[[], float] = time.monotonic
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        keep_freed_memory()
        check_training(self.model.config, self.config)
        check_ranks(self.config, self.parallel)
        check_precision(self.device, self.config.amp, self.parallel.world.name)
        check_trainable(self.model)
        if self.config.qat:
            checked_rounding(self.model, self.config.qat)
            set_rounding(self.model, None)  # until it is time
        if self.teacher is not None:
            check_teacher(self.teacher.config, self.model.config)
        shapes = [self.model.config]
        if self.config.progressive:
            shapes = stages(self.target or self.model.config, context=grows_context(self.windows, self.config))
            if self.model.config != shapes[0]:
                raise ConfigError(
                    "got progressive=true and a model of another shape than it begins with",
                    field="train.progressive",
                    tries=("growth.stages(target)[0]",),
                )
        self.growth = Growth(self.config.progressive, shapes, self.may_grow, self.parallel.world.agree)
        self._steered: dict[str, float] = {}  # what is in force
        self.optim = self.config.optim
        self.objective = self._objective_of(self.model.config)
        self.parallel.take(self.model, self.objective)
        self.optimizers = Optimizers(self.model, self.optim, ranks=self.parallel.size)
        self.kept = None
        if self.validation is not None:
            self.kept = Validation(self.validation, self.config, self.parallel.world.agree)
        if self.parallel.size > 1 and isinstance(self.windows, CorpusWindows | BitWindows):
            self.windows.share(self.parallel.world.rank, self.parallel.size)
        self.latest: Batch | None = None
        # What an update takes of the budget, as far as known.
        self._step_share = 1 / self.config.steps if self.config.steps else 0.0
        self._unsettled: list[Record] = []
        self._on_processor = self.device.type == "cpu"  # where nothing is asynchronous, and waiting costs nothing
        if self.device.type == "cuda" and isinstance(self.windows, CorpusWindows | BitWindows):
            self.windows = Prefetched(self.windows, pin=True)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.head.weight.device

    @property
    def best(self) -> dict[str, Tensor] | None:
        """Weights by name at the best validation, if they are kept."""
        return self.kept.best if self.kept else None

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches per update."""
        return self.progress.micro_batches or self.config.accum_steps

    def run(self) -> None:
        """Train until the budget is spent or an observer stops it. The model grows between loops.

        Raises:
            NonFiniteLoss: the loss or a gradient is not a finite number; the update is not made. On an accelerator this is noticed up to
            100 updates later; those in between had no gradient and moved the weights by momentum alone. No checkpoint holds them.
            OutOfMemory: there is no memory, and smaller micro-batches are not allowed or not enough. The update under way
                may be half made: go on from a checkpoint.
        """
        began = self.clock() - self.progress.seconds
        try:
            with self.parallel.world.watched():
                self._share_steering()
                while not self._run_stage(began):
                    self._grow()
            self.progress.stopped = "budget spent"
        except StopTraining as stop:
            self.progress.stopped = str(stop)
        except (RuntimeError, MemoryError) as failed:
            if not is_out_of_memory(failed):
                raise
            raise OutOfMemory(f"ran out of memory at step {self.progress.step + 1}: {self.memory_advice()}") from None
        finally:
            self.progress.seconds = self.clock() - began
            if isinstance(self.windows, Prefetched):
                self.windows.close()
            self.take_bank()
            self.model.eval()
        self.settle()

    def _run_stage(self, began: float) -> bool:
        """The loop for a model of one shape. Returns True if the budget is spent, False if it is time to grow."""
        p = self.progress
        self.model.train()
        compiled = self.model.trunk.compiled() if self.config.compile_model else contextlib.nullcontext()
        with compiled:
            # Each shape gets an update, even if growing took the rest of the budget.
            while self._advance(self._seconds(began)) < 1 or (p.stage and p.step == p.grown_at):
                self._check_patience()
                if self.growth.next(p) is not None:
                    return False
                self._round_if_due()
                before = p.share
                record = self.update()
                p.seconds = self._seconds(began)
                fraction = self._advance(p.seconds)
                self._step_share = fraction - before
                if p.step % SETTLED == 0:
                    self.settle()
                if self.kept is not None:
                    self._validate_if_due(self.kept, fraction, record)
                self._observe(record)
        return True

    def _seconds(self, began: float) -> float:
        """Seconds of training so far, by the clock of rank 0: rates and the end of the training depend on it."""
        return self.parallel.world.from_main(self.clock() - began)[0]

    def _observe(self, record: Record) -> None:
        """Call the observers. Where one of rank 0 stops the training, it stops on all ranks."""
        stopped = ""
        try:
            for observe in self.observers:
                observe(self, record)
        except StopTraining as stop:
            stopped = str(stop)
            if self.parallel.size == 1:
                raise
        if self._share_steering(bool(stopped)):
            raise StopTraining(stopped or "stopped by rank 0")

    def _share_steering(self, stopped: bool = False) -> bool:
        """Bring changed settings of rank 0 into force, on all ranks; whether rank 0 stops."""
        if self.parallel.size > 1:
            wanted = [self.progress.steered.get(name, math.nan) for name in STEERED]
            ends, *wanted = self.parallel.world.from_main(float(stopped), *wanted)
            pairs = zip(STEERED, wanted, strict=True)
            self.progress.steered = {name: value for name, value in pairs if not math.isnan(value)}
            stopped = bool(ends)
        if not stopped:
            self._steer()
        return stopped

    def change(self, settings: Mapping[str, float]) -> None:
        """Change settings from the next update on: `lr`, `matrix_lr`, `table_lr` (peaks), `lambda_K`, `lambda_C`, `lambda_S`. For observers; of
        several ranks, rank 0's. Checkpoints keep the change.

        Raises:
            ConfigError: another name, or a value that is not allowed; then nothing is changed.
        """
        wanted = {**self.progress.steered, **settings}
        changed_settings(self.model.config, self.config.optim, wanted)
        self.progress.steered = wanted

    def _steer(self) -> None:
        """Bring changed settings into force, on all ranks together."""
        wanted = self.progress.steered
        if wanted == self._steered:
            return
        self._steered = dict(wanted)
        model, self.optim = changed_settings(self.model.config, self.config.optim, wanted)
        self.optimizers.set_peaks(self.optim)
        objective = self._objective_of(model)
        if objective != self.objective:
            self.objective = objective
            self.parallel.take(self.model, self.objective)

    def _objective_of(self, model: ModelConfig) -> Objective:
        objective = objective_for(model, teacher=self.teacher, trust=self.config.distillation)
        return RunLengths(objective, self.config.compress_prob) if self.config.compress_prob else objective

    def update(self) -> Record:
        """One optimizer update."""
        config, progress = self.config, self.progress
        rate = schedule(progress.share, config.optim) * self.growth.rate(progress)
        self.optimizers.set_rate(rate)
        batch = self.latest = self.parallel.mine(self.windows.draw(config.batch_size), config.batch_size)
        self.parallel.world.beat(progress.step)
        nats, coded = self._accumulated(batch)
        norm = clip_gradients(self.model, config.clip_norm, wait=self._on_processor)
        if self._on_processor:
            self._check_finite(nats, norm, progress.step + 1)
        self.optimizers.step()
        self.optimizers.zero_grad()
        progress.step += 1
        progress.bytes_seen += config.batch_size * self.windows.window_bytes
        progress.flops += config.batch_size * self.windows.window_bytes * self.model.flops_per_byte()
        train_bpb = nats / math.log(2) * batch.bits_BT.shape[1] / self.windows.window_bytes
        record = Record(
            step=progress.step,
            bytes=progress.bytes_seen,
            seconds=progress.seconds,
            train_bpb=cast(float, train_bpb),
            grad_norm=cast(float, norm),
            rate=rate,
            lr=rate * self.optim.lr,
        )
        if coded is not None:
            record["coded_bpb"] = float(coded) / math.log(2) * self.model.config.byte_bits
        self._unsettled.append(record)
        if self._on_processor:
            self.settle()
        if len(self.growth.stages) > 1 and progress.step == progress.grown_at + 1:
            shape = self.model.config
            record |= Record(num_layers=shape.num_layers, d_model=shape.d_model, max_seq_len=shape.max_seq_len)
        return record

    def settle(self) -> None:
        """Bring the smoothed loss and the records up to date: waits for the device.

        Raises:
            NonFiniteLoss: since the last time a loss or a gradient was not finite.
        """
        p, waiting = self.progress, self._unsettled
        self._unsettled = []
        for record, (bpb, norm) in zip(waiting, _fetched(waiting), strict=True):
            record["train_bpb"], record["grad_norm"] = bpb, norm
            self._check_finite(bpb, norm, record["step"])
            p.train_bpb = bpb if record["step"] == 1 else 0.98 * p.train_bpb + 0.02 * bpb

    def _check_finite(self, nats: Tensor | float, norm: Tensor | float, step: int) -> None:
        if not (math.isfinite(nats) and math.isfinite(norm)):
            hidden = self.model.config.reversible and not self._on_processor  # a value out of range, which is NaN there
            lost = ", or use_checkpoint in place of reversible" if hidden else ""
            raise NonFiniteLoss(
                f"got loss {float(nats)} and gradient norm {float(norm)} at step {step}; both must be finite. The last "
                f"checkpoint, if there was one, is kept. Try a lower train.optim.lr and matrix_lr, or train.amp=false{lost}",
                step,
            )

    def _accumulated(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Compute the gradients of a batch; returns its nats per bit, and those of windows that were run-length coded. With `auto_batch`, retries with more micro-batches if out of memory."""
        while True:
            self.optimizers.zero_grad()  # an interrupted update may have left some
            try:
                return self._backward(batch)
            except (RuntimeError, MemoryError) as failed:
                more_would_help = self.config.auto_batch and self.micro_batches < self.config.batch_size
                if not (more_would_help and is_out_of_memory(failed)):
                    raise
            # Here the exception is gone, and with it the frames that held tensors.
            gc.collect()
            self.progress.micro_batches = min(2 * self.micro_batches, self.config.batch_size)

    def _backward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        bits_BT = batch.bits_BT.to(self.device, non_blocking=True)
        features_BTF = None if batch.features_BTF is None else batch.features_BTF.to(self.device, non_blocking=True)
        parts = self.micro_batches
        nats = torch.zeros((), dtype=torch.float64 if self._on_processor else torch.float32, device=self.device)
        coded, coded_fraction = torch.zeros_like(nats), torch.zeros_like(nats)
        chunks = bits_BT.chunk(parts)
        for at, micro_BT in enumerate(chunks):
            said_BTF = None if features_BTF is None else features_BTF.chunk(parts)[at]
            self._seed(self.parallel.world.rank * parts + at)
            fraction = len(micro_BT) / len(bits_BT)
            with self.parallel.averaging(at == len(chunks) - 1):
                with autocast(self.device, self.config.amp):
                    made = self.parallel.predict(self.objective, self.model, micro_BT, said_BTF, self.reach)
                (made.loss * fraction).backward()
            nats += made.nats.detach().to(nats.dtype) * fraction
            if made.coded is not None:
                coded += made.coded[0].to(nats.dtype) * made.coded[1] * fraction
                coded_fraction += made.coded[1] * fraction
        self.parallel.finish(self.model)
        nats, coded, coded_fraction = self.parallel.mean(torch.stack((nats, coded, coded_fraction))).unbind()
        any_coded = self.config.compress_prob and float(coded_fraction)
        return nats, coded / coded_fraction if any_coded else None

    def _seed(self, part: int) -> None:
        """Dropout and noise depend only on seed, step and which micro-batch of all ranks it is. So a resumed run needs no generator state,
        and several ranks compute what one would."""
        torch.manual_seed((self.config.seed << 32) + self.progress.step + (part % 2048 << 52))

    @property
    def reach(self) -> float:
        """The largest noise level of a diffusion at this point of the curriculum."""
        widened = self.progress.share / self.config.curriculum if self.config.curriculum else 1.0
        return min(1.0, FIRST_REACH + (1 - FIRST_REACH) * widened)

    def memory_advice(self) -> str:
        """Memory of an update, and settings that need less."""
        return memory_advice(self.model.config, self.config, self.device, self.micro_batches)

    def _advance(self, seconds: float) -> float:
        """Update and return the fraction of the budget spent."""
        name, amount = self.config.budget
        p = self.progress
        epoch_bytes = len(self.windows) * self.windows.window_bytes
        spent = {"steps": p.step, "epochs": p.bytes_seen / epoch_bytes, "bytes": p.bytes_seen, "seconds": seconds}
        spent["flops"] = p.flops
        p.share = min(1.0, spent[name] / amount)
        return p.share

    def _validate_if_due(self, kept: Validation, fraction: float, record: Record) -> None:
        p = self.progress
        if crossed(p.averaged, fraction, 1 / AVERAGED):
            kept.enter_average(self.model, p)
        if crossed(p.validated, fraction, self.config.eval_every):
            p.validated = fraction
            self.settle()
            self.take_bank()
            rows = min(VALIDATION_ROWS, math.ceil(self.config.batch_size / self.micro_batches))
            # Sharded weights may be gathered in bfloat16, which only goes with autocast.
            gathered = self.parallel.shards and self.parallel.bfloat16
            with autocast(self.device, self.config.amp) if gathered else contextlib.nullcontext():
                latest, record["val_bpb"] = kept.measure(self.model, p, rows)
            self.growth.validated(p, latest)

    def _check_patience(self) -> None:
        if self.config.patience and self.progress.stale >= self.config.patience:
            raise StopTraining(f"no better validation in the last {self.progress.stale}")

    def _round_if_due(self) -> None:
        """Let forward passes see rounded weights from now on, if it is time, or before the last update. What was best before was of another
        function."""
        config, p = self.config, self.progress
        last = p.share + self._step_share >= 1 - 1e-9
        if not config.qat or p.rounded or not (p.share >= config.qat_after or last):
            return
        prepare_qat(self.model, bits=config.qat)
        p.rounded = True
        if self.kept is not None:
            self.kept.forget()
        p.best_bpb, p.stale, p.worse = math.inf, 0, 0

    # ---- growing ----

    def _grow(self) -> None:
        larger = expand_to(self.model, self.growth.stages[self.progress.stage + 1])
        self.optimizers = expand_optimizers(self.optimizers, self.model, larger, self.optim, self.parallel.size)
        self._replace_model(larger)
        self.growth.grown(self.progress)
        if self.kept is not None:
            self.kept.forget()

    def _replace_model(self, model: BitTransformerLM) -> None:
        if model.config.max_seq_len != self.model.config.max_seq_len:
            self.windows = _resized(self.windows, window_bytes(model))
        if self.model.has_bank and not model.has_bank:
            model.bank = self.model.bank
        self.model = model
        self.parallel.take(model, self.objective)

    def take_best(self) -> None:
        """Load the weights of the best validation into the model, if they were kept."""
        if self.best is not None:
            load_weights(self.model, self.best, Path("the best weights"))

    def take_bank(self) -> None:
        """Give the model the bank that computes its windows' features, in its current state."""
        if isinstance(self.windows, StreamedWindows):
            self.model.bank = self.windows.bank

    # ---- saving and resuming ----

    def save(self, path: Path) -> None:
        """Write everything that `load` needs to one file: weights, optimizer state by parameter, data position, progress. All ranks call it together.

        Raises:
            CheckpointError: writing failed; an earlier file is not changed.
        """
        tensors, document = self.state()
        tensors = {name: whole(tensor) for name, tensor in tensors.items()}
        if self.parallel.world.is_main:
            write_tensors(path, tensors, document)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint holds: tensors, of which this rank may hold parts, and a JSON document."""
        self.settle()
        tensors = {f"model.{name}": tensor for name, tensor in self.model.weights().items()}
        if self.kept is not None:
            tensors |= self.kept.tensors()
        tensors |= {f"windows.{name}": tensor for name, tensor in self.windows.tensors().items()}
        for name, moments in self.optimizers.state_dict().items():
            tensors |= {f"optim.{name}.{key}": torch.as_tensor(value) for key, value in moments.items()}
        document = {
            "model": self.model.config.model_dump(mode="json"),
            "train": self.config.model_dump(mode="json"),
            "progress": asdict(self.progress),
            "windows": self.windows.state_dict(),
        }
        return tensors, document

    def load(self, path: Path) -> None:
        """Resume from a file that `save` wrote, or from a folder that `distributed.checkpoints` wrote. The number of ranks may be another.

        Raises:
            CheckpointError: a damaged file, or another training's.
        """
        if path.is_dir():
            from bit_transformer.distributed.checkpoints import read_parts

            tensors, document = read_parts(path, dict(self.model.named_parameters()), self.parallel.world)
        else:
            tensors, document = read_tensors(path, device=self.device)
        train = _config_of(TrainConfig, document.get("train"))
        try:
            progress, windows = Progress(**{**document["progress"], "stopped": ""}), document["windows"]
        except (KeyError, TypeError):
            raise CheckpointError(f"{path}: holds no training to resume. Try the run's training.safetensors") from None
        stage = progress.stage
        if stage != self.progress.stage and stage < len(self.growth.stages):
            self._replace_model(BitTransformerLM(self.growth.stages[stage]).to(self.device))
            self.optimizers = Optimizers(self.model, self.config.optim, ranks=self.parallel.size)
        same = {
            "model": _config_of(ModelConfig, document.get("model")) == self.model.config,
            "train": train is not None
            and _but_for(train, self.config, ("auto_batch", "accum_steps", *BUDGETS)) == self.config,
        }
        for key, agrees in same.items():
            if not agrees:
                name = self.parallel.world.name
                raise CheckpointError(
                    f"{name}{path}: is of a training with another {key} config. Try its own config.json"
                )
        tensors = self.parallel.laid_out(tensors, self.model)
        load_weights(self.model, under("model.", tensors), path)
        self._take_moments(tensors)
        self.windows.load_state_dict(windows, under("windows.", tensors))
        if self.kept is not None:
            self.kept.take(tensors)
        self.progress = p = progress
        self._steer()
        if self.config.qat and p.rounded:
            prepare_qat(self.model, bits=self.config.qat)
        if train is not None and train.budget != self.config.budget:
            self._advance(p.seconds)
            p.validated = p.averaged = p.share
            p.stale = p.worse = 0

    def take_optimizers(self, path: Path) -> None:
        """Start with the optimizer state of another training of the same shape.

        Raises:
            CheckpointError: a damaged file, or a training of another shape or with other optimizers.
        """
        tensors, document = read_tensors(path, device=self.device)
        theirs = _config_of(TrainConfig, document.get("train"))
        alike = theirs is not None and theirs.optim.muon == self.config.optim.muon
        if not alike or _config_of(ModelConfig, document.get("model")) != self.model.config:
            raise CheckpointError(f"{path}: is of a training of another shape or with other optimizers. Try without it")
        self._take_moments(tensors)

    def _take_moments(self, tensors: Mapping[str, Tensor]) -> None:
        called = self.optimizers.old_names()
        state: dict[str, dict[str, Tensor]] = {}
        for place, tensor in under("optim.", tensors).items():
            name, key = place.rsplit(".", 1)
            state.setdefault(called.get(name, name), {})[key] = tensor
        self.optimizers.load_state_dict(state)


def _fetched(waiting: list[Record]) -> list[tuple[float, float]]:
    """Loss and gradient norm of some updates from a device, in one transfer."""
    if not waiting:
        return []
    pairs = [(cast(Tensor, record["train_bpb"]), cast(Tensor, record["grad_norm"])) for record in waiting]
    dtype = torch.float64 if pairs[0][0].device.type == "cpu" else torch.float32
    numbers = torch.stack([number.to(dtype) for pair in pairs for number in pair]).tolist()
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _resized(windows: Windows, size: int) -> Windows:
    """The same corpus in windows of another size, starting with the next epoch."""
    if isinstance(windows, Prefetched):
        windows.close()
        return Prefetched(_resized(windows.windows, size), pin=windows.pin)
    assert isinstance(windows, CorpusWindows)
    return windows.resized(size)


def grows_context(windows: Windows, config: TrainConfig) -> bool:
    """Whether a training's windows can become longer: not if their size is set, or if they are streamed."""
    return isinstance(windows, CorpusWindows) and config.window is None


def check_ranks(config: TrainConfig, parallel: DataParallel) -> None:
    """Refuse a batch that the ranks cannot share, and what several ranks cannot do.

    Raises:
        ConfigError: the reason, with the rank.
    """
    size, name = parallel.size, parallel.world.name
    if size > 1 and config.batch_size % (size * config.accum_steps):
        least = size * config.accum_steps
        raise ConfigError(
            f"{name}got batch_size={config.batch_size} for {size} ranks with accum_steps={config.accum_steps}; it must be a multiple of "
            f"{least}. Try batch_size={-(-config.batch_size // least) * least}",
            field="train.batch_size",
        )
    if config.compress_prob and config.batch_size // config.accum_steps // size < 2:
        raise ConfigError(
            f"{name}got train.compress_prob={config.compress_prob:g} and micro-batches of one window; one of them must stay as it is. Try "
            f"batch_size={2 * size * config.accum_steps}",
            field="train.batch_size",
        )
    if size > 1 and config.auto_batch:
        raise ConfigError(
            f"{name}got auto_batch and {size} ranks, which cannot change micro-batches alone. Try accum_steps={2 * config.accum_steps}"
        )
    if parallel.shards and config.progressive:
        raise ConfigError(
            f"{name}got progressive and sharded weights; a growing model must be whole on each rank. Try DDP, with shard=false"
        )


def check_training(model: ModelConfig, config: TrainConfig) -> None:
    """Refuse a training config that does not fit the model.

    Raises:
        ConfigError: a noise curriculum for a model without noise; or run-length coded windows where they cannot be.
    """
    if config.curriculum and model.causal:
        raise ConfigError(
            f"got train.curriculum={config.curriculum} and causal=True; a curriculum needs a diffusion model. Try model.causal=false"
        )
    if config.compress_prob and not model.causal:
        raise ConfigError(
            f"got train.compress_prob={config.compress_prob:g}, which needs an autoregressive model. Try train.compress_prob=0"
        )


def _config_of(kind: type[_Config], stored: Any) -> _Config | None:
    """A stored config, with newer fields at their defaults; None if it is invalid."""
    try:
        return kind.of(stored)
    except (ConfigError, TypeError, ValueError):
        return None


def _but_for(config: TrainConfig, other: TrainConfig, names: Iterable[str]) -> TrainConfig:
    """A config with some fields taken from another."""
    return config.model_copy(update={name: getattr(other, name) for name in names})


def train_loop(
    model: BitTransformerLM,
    data: Corpus | bytes | Tensor | Windows,
    config: TrainConfig | None = None,
    *,
    validation: Corpus | bytes | None = None,
    observers: Iterable[Observer] = (),
    **fields: Any,
) -> list[Record]:
    """Train a model in place.

    Args:
        data: a corpus, bytes, a tensor of bit windows (N, T), or any `Windows`.
        config: the training config. Its fields can also be given as keywords: `train_loop(model, data, epochs=3, batch_size=16)`.
        validation: held-out bytes that are scored during training. The model ends with the weights of the best score.
        observers: see `Trainer`.

    Returns:
        one record per update.

    Raises:
        ConfigError: invalid settings.
        BitStreamError: less data than one window.
        NonFiniteLoss: the loss or a gradient is not finite.
    """
    chosen = TrainConfig.of({**(config.model_dump() if config else {}), **fields})
    if chosen.progressive:
        raise ConfigError("got progressive; train_loop trains in place, and growth makes a new model. Try Trainer")
    history: list[Record] = []

    def keep(_: Trainer, record: Record) -> None:
        history.append(record)

    held = None if validation is None else as_corpus(validation)
    began = time.monotonic()
    windows = build_windows(model, data, chosen)
    read = Progress(seconds=time.monotonic() - began)  # the experts' pass over the data is part of the budget
    trainer = Trainer(model, windows, chosen, held, (keep, *observers), progress=read)
    trainer.run()
    trainer.take_best()
    return history
