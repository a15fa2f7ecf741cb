"""Observers of the training loop: run records, telemetry, checkpoints, stops, progress."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

import torch

from bit_transformer.checkpoint import MODEL_FILE, save_checkpoint
from bit_transformer.diffusion.denoiser import half_lost_logits
from bit_transformer.errors import BitStreamError
from bit_transformer.model import as_pair
from bit_transformer.runs.store import RunStore
from bit_transformer.service.jobs import Job, Notice, Update
from bit_transformer.telemetry import METRICS, Alert, DriftMonitor, lz_complexity, negentropy, symbiosis
from bit_transformer.training import Record, StopTraining, Trainer, autocast

TRAINING_FILE = "training.safetensors"
PROBED = 2  # windows
LOOKS = 0.25  # seconds between reports of training on an accelerator
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
    """Writes metrics to the run store, every few seconds."""

    def __init__(self, store: RunStore, run: str, every_seconds: float = 2.0) -> None:
        self.store, self.run, self.every = store, run, every_seconds
        self.rows: list[tuple[int, str, float]] = []
        self.written = 0.0

    def __call__(self, trainer: Trainer, record: Record) -> None:
        """Keep the record; write if it is time."""
        step = record["step"]
        self.rows += [(step, key, value) for key, value in record.items() if key != "step"]  # type: ignore[misc]
        if trainer.progress.seconds - self.written >= self.every or "val_bpb" in record:
            self.flush()
            self.written = trainer.progress.seconds

    def flush(self) -> None:
        """Write the remaining rows."""
        if self.rows:
            self.store.add_metrics(self.run, [(step, key, float(value)) for step, key, value in self.rows])
            self.rows = []


class Probe:
    """Measures K, C and S of the model's predictions, now and then, on windows of the latest batch. Alerts if they or the loss get worse
    permanently.

    K is of the predictions, S of the predictions against the experts' own mixture (with experts), and C of bits sampled from the predictions.
    For a diffusion model they are of every second patch, given the others.
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
        """Measure K, C and S.

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
        return found


class Checkpoints:
    """Saves the training, to resume it, and the model, to use it.

    It saves every `checkpoint_seconds`. The model is saved with the best weights by validation so far, if they are kept
    (`train.keep_best`).
    """

    def __init__(self, folder: Path, recorder: Recorder) -> None:
        self.folder, self.recorder = folder, recorder
        self.saved_at: float | None = None

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
        self.recorder.flush()
        trainer.save(self.folder / TRAINING_FILE)
        self._save_model(trainer)

    def _save_model(self, trainer: Trainer) -> None:
        trainer.take_bank()
        p = trainer.progress
        step = p.step if trainer.best is None else p.best_step
        about = {"step": step, "bytes_seen": p.bytes_seen, "val_bpb": None if trainer.best is None else p.best_bpb}
        save_checkpoint(self.folder / MODEL_FILE, trainer.model, weights=trainer.best, about=about)


def stop_when(asked: Callable[[], bool]) -> Callable[[Trainer, Record], None]:
    """An observer that stops the training normally when `asked()` is true."""

    def observe(trainer: Trainer, record: Record) -> None:
        if asked():
            raise StopTraining("interrupted")

    return observe
