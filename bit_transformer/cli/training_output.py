"""Progress and result of a training in the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from bit_transformer.cli.output import bpb, console, progress_console, show_comparison
from bit_transformer.service.jobs import Job, Message, Notice, Reading, Report, Update

if TYPE_CHECKING:
    from bit_transformer.service.training import TrainResult


@contextmanager
def live_progress() -> Iterator[Job]:
    """A job that shows a progress bar on a terminal, else a line every ten seconds."""
    if not progress_console.is_terminal:
        yield Job(_plain_lines())
        return
    bar = Progress(
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.description}"),
        console=progress_console,
        transient=False,
    )
    with bar:
        task, left = bar.add_task("starting", total=1.0), _TimeLeft()

        def report(update: Message) -> None:
            if isinstance(update, Update):
                bar.update(task, completed=update.share, description=_line(update))
            elif isinstance(update, Reading):
                fraction = update.done / update.total if update.total else 0.0
                bar.update(task, completed=fraction, description=_reading(update, left(update)))
            else:
                progress_console.print(f"note: {update.text}", soft_wrap=True)

        yield Job(report)


def _plain_lines(every: float = 10.0) -> Report:
    last, left = [time.monotonic() - every], _TimeLeft()

    def report(update: Message) -> None:
        if isinstance(update, Reading):
            seconds = left(update)
            if update.done == update.total or time.monotonic() - max(last[0], left.began) >= every:
                last[0] = time.monotonic()
                progress_console.print(_reading(update, seconds), soft_wrap=True)
        elif isinstance(update, Notice):
            progress_console.print(f"note: {update.text}", soft_wrap=True)
        elif time.monotonic() - last[0] >= every or update.share >= 1:
            last[0] = time.monotonic()
            progress_console.print(f"{update.share:4.0%}  {_line(update)}", soft_wrap=True)

    return report


class _TimeLeft:
    """Estimates the remaining seconds from the pace so far; None before there is a pace."""

    def __init__(self) -> None:
        self.doing, self.first, self.done, self.began = "", 0, 0, time.monotonic()

    def __call__(self, update: Reading) -> float | None:
        if update.doing != self.doing or update.done < self.done:
            self.doing, self.first, self.began = update.doing, update.done, time.monotonic()
        self.done = update.done
        gone, elapsed = update.done - self.first, time.monotonic() - self.began
        known = update.total and gone and elapsed >= 1
        return elapsed * (update.total - update.done) / gone if known else None


def _reading(update: Reading, seconds: float | None) -> str:
    eta = f" · eta {_clock(seconds)}" if seconds is not None and update.done < update.total else ""
    if update.unit == "bytes":
        size, unit = (1e6, "MB") if max(update.done, update.total) >= 1e6 else (1e3, "kB")
        if not update.total:
            return f"{update.doing} {update.done / size:.1f} {unit}"
        return f"{update.doing} {update.done / size:.1f} of {update.total / size:.1f} {unit}{eta}"
    return f"{update.doing} {update.done:,} of {update.total:,} {update.unit}{eta}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _line(update: Update) -> str:
    validation = f" · val {bpb(update.val_bpb)}" if update.val_bpb is not None else ""
    return (
        f"step {update.step:,} · {update.bytes_per_s / 1000:,.1f} kB/s · train {bpb(update.bpb)} bpb{validation} · "
        f"eta {_clock(update.eta)}"
    )


def show_training(result: TrainResult) -> None:
    """Print how a training ended, and its evaluation."""
    pace = result.bytes_seen / max(result.seconds, 1e-9) / 1000
    console.print(
        f"\n{result.status} ({result.note}): {result.steps:,} updates, {result.bytes_seen / 1e6:.2f} MB "
        f"({result.bytes_seen / result.train_bytes:.2f} epochs) in {result.seconds:.0f} s, {pace:.1f} kB/s; "
        f"{result.parameters / 1e6:.2f} M parameters, {result.active_parameters / 1e6:.2f} M of them active",
        soft_wrap=True,
    )
    if result.best_step < result.steps:
        console.print(f"Kept the weights of the best validation, at update {result.best_step:,}", soft_wrap=True)
    if result.steps < 20:
        console.print(
            f"Only {result.steps} updates were made. Try a larger budget, or a smaller --batch-size",
            soft_wrap=True,
        )
    if result.comparison:
        show_comparison(result.comparison, "held-out bytes")
        if result.val_bpb is not None:
            console.print(
                f"val during training ({bpb(result.val_bpb)} at the end) is of other bytes: a small sample of the training part, in windows without overlap",
                style="dim",
                soft_wrap=True,
            )
    if result.status == "stopped":
        console.print(f"Go on with: btlm train --out {result.folder} --resume", soft_wrap=True)
    else:
        console.print(
            f"Run folder: {result.folder}  (config.json, model.safetensors, training.safetensors, metrics.csv, metrics.jsonl, loss.png)",
            soft_wrap=True,
        )
