"""Observers of the training loop: run records, telemetry, samples, checkpoints, stops, progress."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bit_transformer.checkpoint import MODEL_FILE, save_checkpoint
from bit_transformer.config import ModelConfig, Sampling
from bit_transformer.decoding.generation import generate_bytes
from bit_transformer.diffusion.denoiser import half_lost_logits
from bit_transformer.distributed.data_parallel import DataParallel
from bit_transformer.distributed.shards import whole
from bit_transformer.errors import BitStreamError, ConfigError, StoreError, StreamOverflow
from bit_transformer.machine import own_memory
from bit_transformer.model import as_pair, nats_of
from bit_transformer.runs.store import Live, RunStore
from bit_transformer.service.checkpoints import KEPT as KEPT
from bit_transformer.service.jobs import Job, Notice, Update
from bit_transformer.service.steering import INTERRUPTED
from bit_transformer.telemetry import METRICS, Alert, DriftMonitor, lz_complexity, negentropy, symbiosis
from bit_transformer.training import Record, StopTraining, Trainer, autocast

if TYPE_CHECKING:
    from bit_transformer.distributed.checkpoints import PartWriter

TRAINING_FILE = "training.safetensors"
PARTS = "training"  # prefix of the folders of a training with sharded weights
PROBED = 2  # windows
LOOKS = 0.25  # seconds between reports of training on an accelerator
SAMPLES_SHARE = 0.02  # fraction of the time that samples may take
WATCHED = (*METRICS, "train_bpb")


class Reporter:
    """Turns records into `Update`s. On an accelerator only several times per second, because it waits for the device.

    Args:
        job: gets the updates and notices.
    """

    def __init__(self, job: Job) -> None:
        self.report = job.tell
        self.smooth: float | None = None
        self.looked = 0.0
        self.val_bpb: float | None = None
        self.began: tuple[float, float, float] | None = None
        self.micro_batches: int | None = None
        self.ceiling = False
        self.overfit: bool | None = None  # whether it was reported; for a resumed training, whether that was before

    def __call__(self, trainer: Trainer, record: Record) -> None:
        """Report every update, and a change of the number of micro-batches."""
        if trainer.micro_batches != (self.micro_batches or trainer.config.accum_steps):
            self.report(Notice(f"to fit in memory, updates now use {trainer.micro_batches} micro-batches"))
        self.micro_batches = trainer.micro_batches
        p = trainer.progress
        if p.stage and p.step == p.grown_at + 1:
            c = trainer.model.config
            self.report(
                Notice(
                    f"grown at step {p.grown_at} to {c.num_layers} layers of width {c.d_model}, windows of {c.max_seq_len} bits"
                )
            )
            self.began = None  # the pace has changed
        if p.ceiling and not self.ceiling:
            self.ceiling = True
            self.report(Notice("the model stops growing: the next stage does not fit into memory"))
        if self.overfit is None:
            self.overfit = bool(p.overfit_since) and "val_bpb" not in record
        if p.overfit_since and not self.overfit:
            self.overfit = True
            self.report(
                Notice(
                    f"over-fitting since step {p.overfit_since}: training is at {p.train_bpb:.3f} and falls, validation rises from "
                    f"{p.best_bpb:.3f}{'. The weights of that step are kept' if trainer.best is not None else ''}. Try more data, or a smaller model"
                )
            )
        now = time.monotonic()
        if trainer.device.type != "cpu" and now - self.looked < LOOKS and p.share < 1 and "val_bpb" not in record:
            return
        self.looked = now
        loss = float(record["train_bpb"])
        self.smooth = loss if self.smooth is None else 0.95 * self.smooth + 0.05 * loss
        self.val_bpb = record.get("val_bpb", self.val_bpb)
        if self.began is None:  # the first update includes warm-up, so the pace is measured from its end
            self.began = (p.seconds, p.bytes_seen, p.share)
            return
        seconds, seen, spent = self.began
        elapsed = max(1e-9, p.seconds - seconds)
        eta = elapsed * (1 - p.share) / max(1e-9, p.share - spent)
        self.report(Update(p.step, p.share, p.seconds, (p.bytes_seen - seen) / elapsed, self.smooth, self.val_bpb, eta))


class Recorder:
    """Writes metrics to the run store, twice a second; with them bytes per second, and load and memory of the process."""

    def __init__(self, store: RunStore, run: str, every_seconds: float = 0.5) -> None:
        self.store, self.run, self.every = store, run, every_seconds
        self.rows: list[tuple[int, str, float]] = []
        self.measure = process_figures()
        self._began: tuple[float, float] | None = None  # seconds and share of the budget after the first update
        self._last = (0.0, 0.0)  # seconds and bytes seen when rows were last written
        self._speed: float | None = None

    def __call__(self, trainer: Trainer, record: Record) -> None:
        """Keep the record; write if it is time."""
        p, step = trainer.progress, record["step"]
        if self._began is None:
            self._began, self._last = (p.seconds, p.share), (p.seconds, p.bytes_seen)
        self.rows += [(step, key, value) for key, value in record.items() if key != "step"]  # type: ignore[misc]
        if p.stage and step == p.grown_at + 1:
            shape = {key: record[key] for key in ("num_layers", "d_model", "max_seq_len")}
            self.store.add_happening(self.run, step, "growth", shape)
        seconds, seen = self._last
        if p.seconds - seconds >= self.every or "val_bpb" in record:
            figures = self.measure(trainer.device)
            if p.seconds > seconds:
                self._speed = figures["bytes_per_s"] = (p.bytes_seen - seen) / (p.seconds - seconds)
            record.update(figures)  # type: ignore[typeddict-item]
            self.rows += [(step, key, value) for key, value in figures.items()]
            self._last = (p.seconds, p.bytes_seen)
            with suppress(StoreError):  # it is busy, or its disk is full: the rows stay until it is well
                self.flush(self.live(trainer))

    def live(self, trainer: Trainer) -> Live:
        """Where the training stands."""
        p = trainer.progress
        seconds, share = self._began or (p.seconds, p.share)
        eta = (p.seconds - seconds) * (1 - p.share) / (p.share - share) if p.share > share else None
        return Live(p.step, p.share, eta, self._speed)

    def flush(self, live: Live | None = None) -> None:
        """Write the remaining rows."""
        if self.rows:
            self.store.add_metrics(self.run, [(step, key, float(value)) for step, key, value in self.rows], live)
            self.rows = []


def process_figures() -> Callable[[torch.device], dict[str, float]]:
    """A function that gives this process's load of the processor since its last call (100 is one core), and its memory in bytes; on a GPU, that
    of its tensors."""
    times, now = os.times(), time.monotonic()
    before = [times.user + times.system, now]

    def figures(device: torch.device) -> dict[str, float]:
        times, now = os.times(), time.monotonic()
        spent = times.user + times.system
        load = 100 * (spent - before[0]) / max(1e-9, now - before[1])
        before[:] = spent, now
        found = {"cpu_percent": load}
        memory = torch.cuda.memory_allocated(device) if device.type == "cuda" else own_memory()
        return found if memory is None else {**found, "memory": float(memory)}

    return figures


class Probe:
    """Measures K, C and S of the model's predictions, now and then, on windows of the latest batch. Alerts if they or the loss get worse
    permanently.

    K is of the predictions, S of the predictions against the experts' own mixture (with experts), and C of bits sampled from the predictions.
    For a diffusion model they are of every second patch, given the others.
    Also what a bit costs at each position of a byte (autoregressive models), and how often a parity bit that is sampled after the true eight bits
    would be wrong (models with parity; exactly, not from one sample).
    After the first time it takes at most a fraction `train.telemetry` of the time. It does not change weights, windows or dropout.

    Args:
        tell: called with every alert.
        history: (step, value) of each metric so far, for a resumed training.

    Attributes:
        spent: seconds it has taken, without the first time.
    """

    def __init__(
        self,
        tell: Callable[[Alert], None] = lambda alert: None,
        history: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    ) -> None:
        self.tell = tell
        self.spent = 0.0
        self.began: float | None = None
        self.monitors = {name: DriftMonitor(name) for name in WATCHED}
        for name, rows in (history or {}).items():
            for step, value in rows:
                self.monitors[name].update(step, value)

    def __call__(self, trainer: Trainer, record: Record) -> None:
        """Measure if it is time, and check for drift."""
        if not trainer.config.telemetry:
            return
        if self.began is None:
            self.began = trainer.progress.seconds
            self._measure_into(record, trainer)  # slow the first time, because of loading and compiling: not counted
        elif self.spent <= trainer.config.telemetry * (trainer.progress.seconds - self.began):
            began = time.perf_counter()
            self._measure_into(record, trainer)
            self.spent += time.perf_counter() - began
        for name, monitor in self.monitors.items():
            widening = name == "train_bpb" and trainer.reach < 1  # the cost changes with every update
            there = name in record and (
                trainer.device.type == "cpu" or "K" in record
            )  # else this would wait for the device
            if there and not widening:
                for alert in monitor.update(record["step"], float(record[name])):  # type: ignore[literal-required]
                    self.tell(alert)

    def _measure_into(self, record: Record, trainer: Trainer) -> None:
        with suppress(BitStreamError):  # NaN: the loop itself raises an error for it
            record.update(self.measure(trainer))

    def measure(self, trainer: Trainer) -> Record:
        """Measure K, C, S, costs by position, and wrong parity.

        Raises:
            BitStreamError: the model predicts NaN.
        """
        assert trainer.latest is not None
        model, batch = trainer.model, trainer.latest
        rows = min(PROBED, math.ceil(len(batch.bits_BT) / trainer.micro_batches))
        bits_BT = batch.bits_BT[:rows].to(trainer.device)
        said_BTF = None if batch.features_BTF is None else batch.features_BTF[:rows].to(trainer.device)
        # Another number of windows than in the loop would compile a compiled trunk again.
        compiled = trainer.config.compile_model
        eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
        was_training = model.training
        model.eval()
        try:
            with torch.inference_mode(), autocast(trainer.device, trainer.config.amp), eager:
                if model.config.causal:
                    z_BNP, _, said_BTF = model.window_logits(bits_BT, said_BTF)
                else:
                    z_BNP = half_lost_logits(model, bits_BT)
        finally:
            model.train(was_training)
        z_BT = z_BNP.flatten(1).double().cpu()
        uniform_BT = torch.rand(z_BT.shape, generator=torch.Generator().manual_seed(trainer.progress.step))
        found = Record(
            K=negentropy(as_pair(z_BT)).mean().item(),
            C=lz_complexity((uniform_BT < torch.sigmoid(z_BT)).to(torch.uint8)).mean().item(),
        )
        if said_BTF is not None:
            found["S"] = symbiosis(torch.sigmoid(z_BT), model.experts_probability(said_BTF).cpu()).mean().item()
        found.update(_by_position(model.config, z_BT, bits_BT.cpu()))
        return found


def _by_position(c: ModelConfig, z_BT: Tensor, bits_BT: Tensor) -> Record:
    """Costs of bits by their position in a byte, and wrong parity.

    Args:
        z_BT: logits of all bits, or of those of every second patch.
    """
    place_T = torch.arange(bits_BT.shape[1])
    if z_BT.shape[1] < len(place_T):  # a diffusion model's: of the masked patches, as `half_lost_logits` chooses them
        place_T = place_T[place_T // c.patch_bits % 2 == 0]
    cost_BT = nats_of(z_BT, bits_BT[:, place_T])
    found, at_T = Record(), place_T % c.byte_bits
    if c.causal:
        for place in sorted(set(at_T.tolist())):
            found[f"bit_{place}"] = cost_BT[:, at_T == place].mean().item() / math.log(2)  # type: ignore[literal-required]
    if c.parity and (at_T == 8).any():
        # The true ninth bit is the parity of the eight before it, so every other is an error.
        found["parity_errors"] = -torch.expm1(-cost_BT[:, at_T == 8]).mean().item()
    return found


class Samples:
    """Draws some bytes with the current weights at every validation: `train.sample_bytes`, after nothing, always with the same seed.

    After the first time it takes at most a fraction `SAMPLES_SHARE` of the time; a validation at which it may not gets no sample. It does not
    change weights, experts, windows or dropout. Diffusion models are left out.

    Args:
        tell: called with the update and the bytes.

    Attributes:
        spent: seconds it has taken, without the first time.
    """

    def __init__(self, tell: Callable[[int, bytes], None]) -> None:
        self.tell = tell
        self.spent = 0.0
        self.began: float | None = None

    def __call__(self, trainer: Trainer, record: Record) -> None:
        """Draw if the model was just validated and there is time."""
        wanted, now = trainer.config.sample_bytes, trainer.progress.seconds
        if not wanted or "val_bpb" not in record or not trainer.model.config.causal:
            return
        if self.began is not None and self.spent > SAMPLES_SHARE * (now - self.began):
            return
        began = time.perf_counter()
        # PyTorch's modules, because the portable engine would first be laid out and compiled; and without compiling, as in `Probe`.
        eager = torch.compiler.set_stance("force_eager") if trainer.config.compile_model else nullcontext()
        # What cannot be sampled from is not finite, for which the loop itself raises an error.
        with suppress(BitStreamError, StreamOverflow), eager:
            (made,) = generate_bytes(trainer.model, [b""], wanted, Sampling(seed=0), engine="torch")
            self.tell(record["step"], made)
        if self.began is None:  # slow the first time, because of loading: not counted
            self.began = now
        else:
            self.spent += time.perf_counter() - began


class Checkpoints:
    """Saves the training, to resume it, and the model, to use it.

    It saves every `checkpoint_seconds`. The model is saved with the best weights by validation so far, if they are kept
    (`train.keep_best`). Of several ranks, rank 0 saves; if weights are sharded, each its parts, in the background, and the model at the end.

    Args:
        recorder: of rank 0; None: of another rank.
    """

    def __init__(self, folder: Path, parallel: DataParallel, recorder: Recorder | None = None) -> None:
        self.folder, self.recorder = folder, recorder
        self.saved_at: float | None = None
        self._parts: PartWriter | None = None
        if parallel.shards:
            from bit_transformer.distributed.checkpoints import PartWriter

            self._parts = PartWriter(folder, PARTS, parallel.world)

    def __call__(self, trainer: Trainer, record: Record) -> None:
        """Save if it is time."""
        now = trainer.progress.seconds
        if self.saved_at is None:
            self.saved_at = now
        elif now - self.saved_at >= trainer.config.checkpoint_seconds:
            self.save(trainer)
            self.saved_at = trainer.progress.seconds

    def save(self, trainer: Trainer) -> None:
        """Save now. Records are written first, because a resumed run keeps the records up to this step."""
        if self.recorder is not None:
            self.recorder.flush()
        if self._parts is not None:
            self._parts.write(trainer.progress.step, *trainer.state())
        elif self.recorder is not None:
            trainer.save(self.folder / TRAINING_FILE)
            self._save_model(trainer, trainer.best)

    def keep(self, trainer: Trainer) -> None:
        """Save now, and keep these files when later ones are written, in `checkpoints/STEP`.

        Raises:
            ConfigError: sharded weights, whose files are in parts.
        """
        if self._parts is not None:
            raise ConfigError("got sharded weights, whose checkpoints are not kept. Try shard=false")
        self.save(trainer)
        kept = self.folder / KEPT / str(trainer.progress.step)
        kept.mkdir(parents=True, exist_ok=True)
        for name in (TRAINING_FILE, MODEL_FILE):
            temporary = kept / f".{name}.tmp"
            temporary.unlink(missing_ok=True)
            try:
                os.link(self.folder / name, temporary)  # a second name; a later checkpoint is another file
            except OSError:  # not on every file system
                shutil.copyfile(self.folder / name, temporary)
            os.replace(temporary, kept / name)

    def save_last(self, trainer: Trainer) -> None:
        """Save at the end: the model too, and wait for what is written in the background."""
        self.save(trainer)
        if self._parts is not None:
            weights = {name: whole(tensor) for name, tensor in (trainer.best or trainer.model.weights()).items()}
            if self.recorder is not None:
                self._save_model(trainer, weights)
            self._parts.finish()

    def _save_model(self, trainer: Trainer, weights: Mapping[str, Tensor] | None) -> None:
        trainer.take_bank()
        p = trainer.progress
        step = p.step if trainer.best is None else p.best_step
        about = {"step": step, "bytes_seen": p.bytes_seen, "val_bpb": None if trainer.best is None else p.best_bpb}
        save_checkpoint(self.folder / MODEL_FILE, trainer.model, weights=weights, about=about)


def stop_when(asked: Callable[[], bool]) -> Callable[[Trainer, Record], None]:
    """An observer that stops the training normally when `asked()` is true."""

    def observe(trainer: Trainer, record: Record) -> None:
        if asked():
            raise StopTraining(INTERRUPTED)

    return observe
