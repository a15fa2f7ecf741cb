"""The training loop: draw windows, forward, backward, update, observe, until the budget is spent.

The loop holds the algorithm and nothing else. Progress bars, run records, checkpoints and stops are observers, called
after every update; each decides for itself when it is due. `Trainer` is the whole state of a training, so that
`state_dict` and `load_state_dict` make a resumed run bit-equal to one that was never interrupted: windows and dropout
are functions of the seed and the step, not of what happened before.
"""

# Shapes: B windows, T bits.
from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import torch
from torch import Tensor

from bit_transformer.checkpoint import load_weights
from bit_transformer.config import BUDGETS, Config, ModelConfig, TrainConfig
from bit_transformer.data.features import (
    PASS_RATE,
    Passed,
    Say,
    StreamedWindows,
    corpus_features,
    corpus_sketch,
    feature_bytes,
    window_features,
    window_sketch,
)
from bit_transformer.data.sources import Corpus, bytes_corpus
from bit_transformer.data.windows import Batch, BitWindows, CorpusWindows, Windows
from bit_transformer.errors import BitStreamError, CheckpointError, ConfigError, NonFiniteLoss, OutOfMemory
from bit_transformer.evaluation.metrics import bits_per_byte, default_protocol, window_bytes
from bit_transformer.growth import expand_optimizers, expand_to, stages
from bit_transformer.memory import VALIDATION_ROWS, estimate_memory, savings
from bit_transformer.model import BitTransformerLM
from bit_transformer.optim import Optimizers, clip_gradients, schedule
from bit_transformer.tensor_file import read_tensors, under, write_tensors

if TYPE_CHECKING:
    from bit_transformer.experts.bank import ExpertBank
    from bit_transformer.experts.sketch import Sketch

FIRST_REACH = 0.2  # of a curriculum: where noise begins
OVERFIT_RISE = 0.002  # a validation above the best by this fraction, while training gets better ...
OVERFIT_CHECKS = 2  # ... and so many in a row, are over-fitting
AVERAGED = 50  # times in a budget that the weights enter their average


class StopTraining(Exception):
    """Raised by an observer: end here, in good order. The text is the reason, and is recorded."""


@dataclass
class Progress:
    """Where a training stands.

    Attributes:
        step: optimizer updates made.
        bytes_seen: data bytes trained on.
        seconds: wall-clock of training, over all sessions, validation included.
        share: of the budget, in [0, 1].
        best_bpb: lowest validation so far, of this shape; `best_step`: after which update.
        stale: validations since then; `worse`: those in a row that were clearly above it while training got better.
        train_bpb: of training, smoothed over about 50 updates; `best_train_bpb`: at the best validation.
        overfit_since: the update of the best validation, once over-fitting was noticed; else 0.
        validated: share of the budget at the last validation; `averaged`: when the weights last entered their average.
        stopped: why it ended, if it has.
        micro_batches: of an update, where memory did not suffice for the config's `accum_steps`; else 0.
        threads: of the processor, where they were chosen by measuring; else 0.
        flops: operations of training so far, as `flops_per_byte` counts them.
        stage: of a training that grows: how often it did; `grown_at`: the step after which it last did; `mark_bpb`: validation that
            the next one is compared with; `weak`: validations in a row that gained too little; `ceiling`: whether there was no
            memory to grow further.
    """

    step: int = 0
    bytes_seen: float = 0.0
    seconds: float = 0.0
    share: float = 0.0
    best_bpb: float = math.inf
    best_step: int = 0
    stale: int = 0
    worse: int = 0
    train_bpb: float = math.inf
    best_train_bpb: float = math.inf
    overfit_since: int = 0
    validated: float = 0.0
    averaged: float = 0.0
    stopped: str = ""
    micro_batches: int = 0
    threads: int = 0
    flops: float = 0.0
    stage: int = 0
    grown_at: int = 0
    mark_bpb: float = math.inf
    weak: int = 0
    ceiling: bool = False


class Record(TypedDict, total=False):
    """What one update left behind; `train_loop` returns a list of them."""

    step: int
    bytes: float
    seconds: float
    train_bpb: float
    grad_norm: float
    rate: float
    val_bpb: float
    K: float
    C: float
    S: float
    num_layers: int
    d_model: int
    max_seq_len: int


Observer = Callable[["Trainer", Record], None]
_Config = TypeVar("_Config", bound=Config)


@dataclass
class Trainer:
    """A training in progress.

    Args:
        model: trained in place; where it grows, the first of the `stages` to the target, replaced at every growth.
        windows: what it trains on.
        config: budget, batch, optimizer.
        validation: bytes that are scored along the way, if any.
        teacher: whose predictions are learned beside the data, if there is one; of the same patches, noise and experts.
        target: with `config.progressive`: the shape to grow to.
        may_grow: whether there is memory for a shape.
        observers: called after every update with the trainer and the update's record; may raise `StopTraining`.
        clock: seconds, rising; for tests.

    Attributes:
        best: weights by name as they were at the best validation, with `config.keep_best`; none before the first.
        average: of the weights over the latest part of the budget, with `config.average` and where there is a validation to choose by.
    """

    model: BitTransformerLM
    windows: Windows
    config: TrainConfig
    validation: Corpus | None = None
    observers: Iterable[Observer] = ()
    teacher: BitTransformerLM | None = None
    target: ModelConfig | None = None
    may_grow: Callable[[ModelConfig], bool] = lambda _: True
    clock: Callable[[], float] = time.monotonic
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        check_training(self.model.config, self.config)
        if self.teacher is not None:
            check_teacher(self.teacher.config, self.model.config)
        self.stages = [self.model.config]
        if self.config.progressive:
            self.stages = stages(self.target or self.model.config, context=grows_context(self.windows, self.config))
            if self.model.config != self.stages[0]:
                raise ConfigError(
                    "got progressive=true and a model of another shape than it begins with. Try growth.stages(target)[0], or "
                    "btlm train --progressive"
                )
        self.optimizers = Optimizers(self.model, self.config.optim)
        self.latest: Batch | None = None  # that of the latest update, for observers
        self.best: dict[str, Tensor] | None = None
        self.average: dict[str, Tensor] | None = None

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.model.head.weight.device

    @property
    def micro_batches(self) -> int:
        """Pieces that the batch of an update is split into."""
        return self.progress.micro_batches or self.config.accum_steps

    def run(self) -> None:
        """Train until the budget is spent or an observer stops it.

        Raises:
            NonFiniteLoss: the loss or a gradient is not a finite number; the update is not made.
            OutOfMemory: there is no memory, and smaller micro-batches are not allowed or not enough. The update under way
                may be half made: go on from a checkpoint.
        """
        compiled = self.model.compiled_trunk() if self.config.compile_model else contextlib.nullcontext()
        try:
            with compiled:
                self._run()
        except (RuntimeError, MemoryError) as failed:
            if not is_out_of_memory(failed):
                raise
            raise OutOfMemory(f"got no memory at step {self.progress.step + 1}: {self.memory_advice()}") from None

    def _run(self) -> None:
        began = self.clock() - self.progress.seconds
        self.model.train()
        try:
            while self._advance(self.clock() - began) < 1:
                self._check_patience()
                if self._growth_is_due():
                    self._grow()
                record = self.update()
                self.progress.seconds = self.clock() - began
                share = self._advance(self.progress.seconds)
                if _crossed(self.progress.averaged, share, 1 / AVERAGED):
                    self._enter_average()
                due = _crossed(self.progress.validated, share, self.config.eval_every)
                if self.validation is not None and due:
                    self.progress.validated = share
                    record["val_bpb"] = self._validate(self.validation)
                for observe in self.observers:
                    observe(self, record)
            self.progress.stopped = "budget spent"
        except StopTraining as stop:
            self.progress.stopped = str(stop)
        finally:
            self.progress.seconds = self.clock() - began
            self.take_bank()
            self.model.eval()

    def update(self) -> Record:
        """One optimizer update."""
        config, progress = self.config, self.progress
        rate = schedule(progress.share, config.optim) * self._rate_after_growth()
        self.optimizers.set_rate(rate)
        batch = self.latest = self.windows.draw(config.batch_size)
        nats = self._accumulated(batch)
        norm = clip_gradients(self.model, config.clip_norm)
        if not (math.isfinite(nats) and math.isfinite(norm)):
            raise NonFiniteLoss(
                f"got loss {nats} and gradient norm {norm} at step {progress.step + 1}; both must be finite. The last "
                f"checkpoint, if there was one, is kept. Try a lower train.optim.lr and matrix_lr, or train.amp=false",
                progress.step + 1,
            )
        self.optimizers.step()
        self.optimizers.zero_grad()
        progress.step += 1
        progress.bytes_seen += config.batch_size * self.windows.window_bytes
        progress.flops += config.batch_size * self.windows.window_bytes * self.model.flops_per_byte()
        train_bpb = nats / math.log(2) * batch.bits_BT.shape[1] / self.windows.window_bytes
        progress.train_bpb = train_bpb if progress.step == 1 else 0.98 * progress.train_bpb + 0.02 * train_bpb
        record = Record(
            step=progress.step,
            bytes=progress.bytes_seen,
            seconds=progress.seconds,
            train_bpb=train_bpb,
            grad_norm=norm,
            rate=rate,
        )
        if len(self.stages) > 1 and progress.step == progress.grown_at + 1:
            shape = self.model.config
            record |= Record(num_layers=shape.num_layers, d_model=shape.d_model, max_seq_len=shape.max_seq_len)
        return record

    def _accumulated(self, batch: Batch) -> float:
        """Gradients of a batch, and its nats a bit; with `auto_batch`, out of memory, again in more micro-batches."""
        while True:
            # Dropout follows from seed and step alone, so a resumed run needs no generator state.
            torch.manual_seed((self.config.seed << 32) + self.progress.step)
            self.optimizers.zero_grad()  # an update that was interrupted may have left some
            try:
                return self._backward(batch)
            except (RuntimeError, MemoryError) as failed:
                more_would_help = self.config.auto_batch and self.micro_batches < self.config.batch_size
                if not (more_would_help and is_out_of_memory(failed)):
                    raise
            # Here the error is gone, and with it the frames that held tensors.
            gc.collect()
            self.progress.micro_batches = min(2 * self.micro_batches, self.config.batch_size)

    def _backward(self, batch: Batch) -> float:
        bits_BT = batch.bits_BT.to(self.device, non_blocking=True)
        features_BTF = None if batch.features_BTF is None else batch.features_BTF.to(self.device, non_blocking=True)
        parts = self.micro_batches
        nats = 0.0
        for at, micro_BT in enumerate(bits_BT.chunk(parts)):
            said_BTF = None if features_BTF is None else features_BTF.chunk(parts)[at]
            with autocast(self.device, self.config.amp):
                loss, mean_nats = self.model.losses(
                    micro_BT, said_BTF, reach=self.reach, teacher=self.teacher, trust=self.config.distillation
                )
            share = len(micro_BT) / len(bits_BT)
            (loss * share).backward()  # type: ignore[no-untyped-call]
            nats += mean_nats.item() * share
        return nats

    @property
    def reach(self) -> float:
        """How far up the noise of a diffusion goes by now."""
        widened = self.progress.share / self.config.curriculum if self.config.curriculum else 1.0
        return min(1.0, FIRST_REACH + (1 - FIRST_REACH) * widened)

    def memory_advice(self) -> str:
        """What an update takes, and what would take less."""
        config, parts = self.config, self.micro_batches
        now = as_estimated(config, self.device, parts)
        peak = estimate_memory(self.model.config, now).peak
        ways = [f"{saving.settings} ({saving.peak / 1e9:.2g} GB)" for saving in savings(self.model.config, now)]
        ways += [] if config.auto_batch or parts >= config.batch_size else ["train.auto_batch=true"]
        batch = f"{config.batch_size} windows in {parts} micro-batch{'es' if parts > 1 else ''}"
        return f"{batch} take about {peak / 1e9:.2g} GB. Try {', or '.join(ways) or 'a smaller model or window'}"

    def _advance(self, seconds: float) -> float:
        """Bring the share of the budget up to date."""
        name, amount = self.config.budget
        p = self.progress
        epoch_bytes = len(self.windows) * self.windows.window_bytes
        spent = {"steps": p.step, "epochs": p.bytes_seen / epoch_bytes, "bytes": p.bytes_seen, "seconds": seconds}
        spent["flops"] = p.flops
        p.share = min(1.0, spent[name] / amount)
        return p.share

    def _enter_average(self) -> None:
        """Let the weights enter their average, which forgets exponentially.

        An average over the latest tenth of a training is what rates that fell to zero would have left (Hägele et al. 2024, arXiv:2405.18392).
        So where validation is best early, in a budget that is too long for the data, little is lost.
        """
        p, config = self.progress, self.config
        if not (config.average and config.keep_best and self.validation is not None):
            return
        if self.average is None:
            self.average = self._copied_weights()
        with torch.no_grad():
            for name, tensor in self.model.weights().items():
                self.average[name].lerp_(tensor, min(1.0, (p.share - p.averaged) / config.average))
        p.averaged = p.share

    def _copied_weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.model.weights().items()}

    def _validate(self, corpus: Corpus) -> float:
        """Bits per byte of the weights, or of their average where that is better; it is kept if it is the best so far."""
        p = self.progress
        latest = bpb = self._scored(corpus)
        now = best = self._copied_weights() if self.config.keep_best else None
        if now is not None and self.average is not None:
            load_weights(self.model, self.average, Path("the average of weights"))
            try:
                averaged = self._scored(corpus)
            finally:
                load_weights(self.model, now, Path("the latest weights"))
            if averaged < latest:
                bpb = averaged
                for name, tensor in self.average.items():
                    now[name].copy_(tensor)
        self._notice_overfitting(bpb)
        p.stale = 0 if bpb < p.best_bpb else p.stale + 1
        if bpb < p.best_bpb:
            p.best_bpb, p.best_step, p.best_train_bpb, self.best = bpb, p.step, p.train_bpb, best
        if self.config.progressive:
            enough = latest < p.mark_bpb * (1 - self.config.progressive.threshold)
            p.weak = 0 if enough else p.weak + 1
            p.mark_bpb = min(latest, p.mark_bpb)
        return bpb

    def _scored(self, corpus: Corpus) -> float:
        self.take_bank()
        rows = min(VALIDATION_ROWS, math.ceil(self.config.batch_size / self.micro_batches))
        how = default_protocol(self.model, overlap=0.0)
        if how.samples:  # of a diffusion: a quick look
            how = replace(how, samples=2)
        bpb = bits_per_byte(self.model, corpus, how, batch=rows).bpb
        if not math.isfinite(bpb):
            raise NonFiniteLoss(
                f"got a validation of {bpb} bits per byte after step {self.progress.step}; it must be finite. Try a lower "
                f"train.optim.lr and matrix_lr",
                self.progress.step,
            )
        return bpb

    def _notice_overfitting(self, bpb: float) -> None:
        """Whether validation rises for good while training goes on getting better."""
        p = self.progress
        rises = bpb > p.best_bpb * (1 + OVERFIT_RISE) and p.train_bpb < p.best_train_bpb
        p.worse = p.worse + 1 if rises else 0
        if p.worse >= OVERFIT_CHECKS and not p.overfit_since:
            p.overfit_since = p.best_step

    def _check_patience(self) -> None:
        if self.config.patience and self.progress.stale >= self.config.patience:
            raise StopTraining(f"no better validation in {self.progress.stale}")

    # ---- growing ----

    def _growth_is_due(self) -> bool:
        """On a plateau, or where otherwise there would be no time left for the stages to come."""
        p, how = self.progress, self.config.progressive
        trained = p.step > p.grown_at  # every stage, the first too, gets an update
        if how is None or p.ceiling or not trained or p.stage + 1 >= len(self.stages):
            return False
        late = p.share >= how.latest * (p.stage + 1) / len(self.stages)
        return late or p.weak >= how.patience

    def _grow(self) -> None:
        p, grown = self.progress, self.stages[self.progress.stage + 1]
        if not self.may_grow(grown):
            p.ceiling = True
            return
        larger = expand_to(self.model, grown)
        self.optimizers = expand_optimizers(self.optimizers, self.model, larger, self.config.optim)
        self._replace_model(larger)
        p.stage, p.grown_at, p.weak, p.stale, p.mark_bpb = p.stage + 1, p.step, 0, 0, math.inf
        self.best, self.average, p.best_bpb = None, None, math.inf  # of another shape

    def _replace_model(self, model: BitTransformerLM) -> None:
        if model.config.max_seq_len != self.model.config.max_seq_len:
            assert isinstance(self.windows, CorpusWindows)
            self.windows = self.windows.resized(window_bytes(model))
        if self.model.has_bank and not model.has_bank:
            model.bank = self.model.bank
        self.model = model

    def _rate_after_growth(self) -> float:
        p, how = self.progress, self.config.progressive
        if how is None or not p.stage:
            return 1.0
        risen = (p.step - p.grown_at + 1) / how.warmup_steps if how.warmup_steps else 1.0
        return how.rate**p.stage * min(1.0, risen)

    def take_best(self) -> None:
        """Give the model the weights of the best validation, where they were kept."""
        if self.best is not None:
            load_weights(self.model, self.best, Path("the best weights"))

    def take_bank(self) -> None:
        """Give the model the bank of experts that its windows' features come from, as it stands."""
        if isinstance(self.windows, StreamedWindows):
            self.model.bank = self.windows.bank

    # ---- stopping and going on ----

    def save(self, path: Path) -> None:
        """Write all that `load` needs to go on: weights, optimizer state, data position, progress.

        Raises:
            CheckpointError: the disk refused; the file that was there before is untouched.
        """
        tensors = {f"model.{name}": tensor for name, tensor in self.model.weights().items()}
        for kept, weights in (("best", self.best), ("average", self.average)):
            tensors |= {f"{kept}.{name}": tensor for name, tensor in (weights or {}).items()}
        tensors |= {f"windows.{name}": tensor for name, tensor in self.windows.tensors().items()}
        optimizers = self.optimizers.state_dict()
        for part, state in optimizers.items():
            for index, values in state["state"].items():
                tensors |= {f"optim.{part}.{index}.{key}": _as_tensor(value) for key, value in values.items()}
        document = {
            "model": self.model.config.model_dump(mode="json"),
            "train": self.config.model_dump(mode="json"),
            "progress": asdict(self.progress),
            "windows": self.windows.state_dict(),
        }
        write_tensors(path, tensors, document)

    def load(self, path: Path) -> None:
        """Go on where `save` was called.

        Raises:
            CheckpointError: a damaged file, or one of another training.
        """
        tensors, document = read_tensors(path, device=self.device)
        train = _config_of(TrainConfig, document.get("train"))
        try:
            progress, windows = Progress(**{**document["progress"], "stopped": ""}), document["windows"]
        except (KeyError, TypeError):
            raise CheckpointError(
                f"{path}: holds no training that can go on. Try the run's training.safetensors"
            ) from None
        stage = progress.stage
        if stage != self.progress.stage and stage < len(self.stages):
            self._replace_model(BitTransformerLM(self.stages[stage]).to(self.device))
            self.optimizers = Optimizers(self.model, self.config.optim)
        same = {
            "model": _config_of(ModelConfig, document.get("model")) == self.model.config,
            "train": train is not None and _but_for(train, self.config, ("auto_batch", *BUDGETS)) == self.config,
        }
        for key, agrees in same.items():
            if not agrees:
                raise CheckpointError(
                    f"{path}: was written by a training with another {key} config. Try its own config.json"
                )
        load_weights(self.model, under("model.", tensors), path)
        self._take_moments(tensors)
        self.windows.load_state_dict(windows, under("windows.", tensors))
        self.best, self.average = (under(kept, tensors) or None for kept in ("best.", "average."))
        self.progress = p = progress
        if train is not None and train.budget != self.config.budget:
            self._advance(p.seconds)
            p.validated = p.averaged = p.share
            p.stale = p.worse = 0

    def take_optimizers(self, path: Path) -> None:
        """Begin with the optimizers' state of another training of the same shape.

        Raises:
            CheckpointError: a damaged file, or a training of another shape or with other optimizers.
        """
        tensors, document = read_tensors(path, device=self.device)
        theirs = _config_of(TrainConfig, document.get("train"))
        alike = theirs is not None and theirs.optim.muon == self.config.optim.muon
        if not alike or _config_of(ModelConfig, document.get("model")) != self.model.config:
            raise CheckpointError(
                f"{path}: was written by a training of another shape or with other optimizers. Try without it"
            )
        self._take_moments(tensors)

    def _take_moments(self, tensors: Mapping[str, Tensor]) -> None:
        state = self.optimizers.state_dict()
        for part, values in state.items():
            values["state"] = _part_state(tensors, part)
        self.optimizers.load_state_dict(state)


def grows_context(windows: Windows, config: TrainConfig) -> bool:
    """Whether the windows of a training can become longer: not where their size is given, or they are read as streams."""
    return isinstance(windows, CorpusWindows) and config.window is None


def check_teacher(teacher: ModelConfig, student: ModelConfig) -> None:
    """Refuse a teacher that does not see what the student sees.

    Raises:
        ConfigError: they differ in more than their size, or the student's windows are too long for the teacher.
    """
    for name in ("patch_bits", "parity", "causal", "noise", "experts"):
        if getattr(teacher, name) != getattr(student, name):
            raise ConfigError(
                f"{name}={getattr(student, name)!r} is not the teacher's {getattr(teacher, name)!r}; both must see the same. Try "
                f"{name}={getattr(teacher, name)!r}"
            )
    if student.max_seq_len > teacher.max_seq_len:
        raise ConfigError(
            f"max_seq_len={student.max_seq_len} is more than the teacher's {teacher.max_seq_len}. Try max_seq_len={teacher.max_seq_len}"
        )


def check_training(model: ModelConfig, config: TrainConfig) -> None:
    """Refuse a training that does not go with the model.

    Raises:
        ConfigError: one that widens noise for a model that has none.
    """
    if config.curriculum and model.causal:
        raise ConfigError(
            f"train.curriculum={config.curriculum} widens the noise of a diffusion; got causal=True. Try model.causal=false"
        )


def _crossed(before: float, now: float, every: float) -> bool:
    """Whether a multiple of `every`, or the end, lies in (before, now]."""
    return now >= 1 or math.floor(now / every + 1e-9) > math.floor(before / every + 1e-9)


def _config_of(kind: type[_Config], stored: Any) -> _Config | None:
    """A config as it was stored, with what has been added since at its default; none where it cannot be."""
    try:
        return kind.of(stored)
    except (ConfigError, TypeError, ValueError):
        return None


def _but_for(config: TrainConfig, other: TrainConfig, names: Iterable[str]) -> TrainConfig:
    """A config with some fields of another."""
    return config.model_copy(update={name: getattr(other, name) for name in names})


def _as_tensor(value: Tensor | float) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value)


def _part_state(tensors: Mapping[str, Tensor], part: str) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        if name.startswith(f"optim.{part}."):
            _, _, index, key = name.split(".", 3)
            state.setdefault(int(index), {})[key] = tensor.item() if tensor.ndim == 0 and part == "table" else tensor
    return state


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
        config: the training; or give its fields as keywords: `train_loop(model, data, epochs=3, batch_size=16)`.
        validation: bytes that are scored along the way; the weights of the best of these are what the model has in the end.
        observers: see `Trainer`.

    Returns:
        the history: one record an update.

    Raises:
        ConfigError: settings that cannot be.
        BitStreamError: less data than one window.
        NonFiniteLoss: the loss or a gradient is not a finite number.
    """
    chosen = TrainConfig.of({**(config.model_dump() if config else {}), **fields})
    if chosen.progressive:
        raise ConfigError(
            "got progressive; train_loop trains a model in place, and a grown one is another. Try Trainer"
        )
    history: list[Record] = []

    def keep(_: Trainer, record: Record) -> None:
        history.append(record)

    held = bytes_corpus(validation) if isinstance(validation, bytes) else validation
    began = time.monotonic()
    windows = build_windows(model, data, chosen)
    read = Progress(seconds=time.monotonic() - began)  # the experts' pass over the data is part of the budget
    trainer = Trainer(model, windows, chosen, held, (keep, *observers), progress=read)
    trainer.run()
    trainer.take_best()
    return history


def build_windows(
    model: BitTransformerLM,
    data: Corpus | bytes | Tensor | Windows,
    config: TrainConfig,
    *,
    say: Say = lambda _: None,
    passed: Passed = lambda done, total: None,
) -> Windows:
    """What a model trains on, in windows that fit it. A model with experts gets the bank that has read the data.

    Args:
        say: told what should be known of the experts' cache.
        passed: told how many bytes of how many the experts have read.

    Raises:
        ConfigError: a window that is longer than the model's, or holds no whole byte.
        BitStreamError: less data than one window, or bits that are no bits.
    """
    shape = model.config
    if isinstance(data, Tensor):
        longest = min(config.window or shape.max_seq_len, shape.max_seq_len)
        if data.ndim == 2 and (data.shape[1] > longest or data.shape[1] % shape.patch_bits):
            raise BitStreamError(
                f"got windows of {data.shape[1]} bits; at most {longest} and a multiple of patch_bits={shape.patch_bits} "
                f"is needed. Try bits[:, :{min(longest, data.shape[1]) // shape.patch_bits * shape.patch_bits}]"
            )
        if int((data > 1).sum()) or int((data < 0).sum()):
            raise BitStreamError("got other values than 0 and 1 among the bits. Try bytes_to_bits for bytes")
        features_NTF = None
        if shape.experts and data.ndim == 2:
            start, keep = _known_before(model, partial(window_sketch, data), say)
            made_NTF, bank = window_features(data, shape, start)
            model.bank = keep or bank
            features_NTF = torch.from_numpy(made_NTF)
        return BitWindows(data, byte_bits=shape.byte_bits, seed=config.seed, features_NTF=features_NTF)
    if isinstance(data, bytes):
        data = bytes_corpus(data)
    if isinstance(data, Corpus):
        size = window_bytes(model, config.window)
        data = data.aligned(shape.align_bytes)
        features = None
        if shape.experts and len(data) >= size:
            start, keep = _known_before(model, partial(corpus_sketch, data), say)
            if feature_bytes(data, shape) > config.feature_cache or _pass_is_too_long(len(data), config):
                say(
                    "the experts read the data while training: their features are too large to keep, or reading first too long"
                )
                return StreamedWindows(
                    data, size, shape, streams=config.batch_size, seed=config.seed, start=start, keep=keep
                )
            features = corpus_features(data, shape, start=start, limit=config.feature_cache, say=say, passed=passed)
            model.bank = keep or features.bank
        return CorpusWindows(
            data, size, parity=shape.parity, align=shape.align_bytes, seed=config.seed, features=features
        )
    if not hasattr(data, "draw"):
        raise ConfigError(f"data is a {type(data).__name__}; a Corpus, bytes, bit windows or Windows is needed")
    return data


def _known_before(
    model: BitTransformerLM, sketch: Callable[[], Sketch], say: Say
) -> tuple[ExpertBank | None, ExpertBank | None]:
    """The bank that reads the data on from what it knows, and the bank that the model keeps in its place.

    Experts go on learning, but not from what they have learned already: of that they would promise too much, and the mixer would learn
    to trust them too far. Where they know most of the data, an empty bank reads it for the training, and the model keeps its own.
    """
    if not (model.has_bank and model.bank.count):
        return None, None
    from bit_transformer.experts.sketch import known_fraction  # numba, where it is needed

    known = known_fraction(model.bank.sketch, sketch())
    if known > 0.5:
        say(
            "the experts have learned from these bytes before: for this training new ones read them; the model keeps its own"
        )
        return None, model.bank
    if known > 0.01:  # some phrases are everywhere
        say(f"the experts have learned from {known:.0%} of these bytes before, and predict them better than new ones")
    return model.bank, None


def _pass_is_too_long(size: int, config: TrainConfig) -> bool:
    """Whether reading all data first would take more than half of a budget in seconds."""
    return config.seconds is not None and size / PASS_RATE > config.seconds / 2


def cpu_autocast(enabled: bool | None = None) -> contextlib.AbstractContextManager[object]:
    """bfloat16 autocast on the processor.

    Args:
        enabled: not given: where the processor computes in bfloat16 (AVX512-BF16 or AMX). Elsewhere it is emulated
            and about ten times slower than float32.
    """
    return autocast(torch.device("cpu"), enabled)


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies matrices in bfloat16."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def autocast(device: torch.device, enabled: bool | None) -> contextlib.AbstractContextManager[object]:
    """bfloat16 autocast where it is wanted, else nothing."""
    wanted = autocast_wanted(device, enabled)
    return torch.autocast(device.type, dtype=torch.bfloat16) if wanted else contextlib.nullcontext()


def autocast_wanted(device: torch.device, enabled: bool | None) -> bool:
    """What was said; where nothing was, whether the device computes in bfloat16."""
    if enabled is not None:
        return enabled
    if device.type == "cpu":
        return cpu_has_bfloat16()
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def as_estimated(config: TrainConfig, device: torch.device, micro_batches: int) -> TrainConfig:
    """A training for the estimate of its memory: the device's precision, the batch filled up to even micro-batches."""
    even = math.ceil(config.batch_size / micro_batches) * micro_batches
    amp = autocast_wanted(device, config.amp)
    return config.model_copy(update={"batch_size": even, "accum_steps": micro_batches, "amp": amp})


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory: Python's, or PyTorch's in one of the ways that it has."""
    said = isinstance(error, RuntimeError) and any(
        text in str(error) for text in ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")
    )
    return said or isinstance(error, MemoryError | torch.OutOfMemoryError)
