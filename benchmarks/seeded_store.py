"""A run store with runs of which it is known how they went: better and worse, diverged, over-fitted, not a number, blocked, slow, killed, drifted."""

from __future__ import annotations

import math
import random
from typing import Any

from bit_transformer.config import DataConfig, ModelConfig, TrainConfig
from bit_transformer.runs.store import Live
from bit_transformer.service.home import Home

PROTOCOL = "static weights, windows of 256 bytes every 128, every byte scored once with at least 128 bytes of context"
MACHINE = {
    "cpu": "a processor",
    "cores": 2,
    "threads": 2,
    "gpu": "none",
    "python": "3.11",
    "torch": "2.13",
    "commit": "0" * 12,
}
SEEDS = 6


def seed(home: Home) -> None:
    """Enter the runs. The same in every store."""
    home.open_store()
    draw = random.Random(0)
    for number in range(SEEDS):
        shared = draw.gauss(0, 0.02)
        for name, width, bpb in (("plain", 64, 2.100), ("wide", 128, 2.045)):
            value = bpb + shared + draw.gauss(0, 0.006)
            _run(home, f"{name}-{number}", falling(200, value), width=width, seed=number, bpb=value)
    up = [*falling(100, 2.4, begin=7.9), *(2.4 + 0.04 * i for i in range(100))]
    _run(home, "diverged", up, rates={"lr": 0.1, "matrix_lr": 0.5}, status="stopped")
    _run(home, "overfitted", falling(1000, 1.2), validations=_overfitted(), bpb=2.9)
    note = (
        "got loss nan and gradient norm nan at step 137; both must be finite. Try a lower train.optim.lr and matrix_lr"
    )
    _run(home, "not-a-number", falling(136, 3.0), status="failed", note=note)
    _run(home, "gated", falling(200, 2.2), bpb=2.2)
    for i in range(7):
        home.store.add_happening(
            "gated", None, "gate", {"why": "C is below its floor: the window repeats itself", "margin": -0.1 * i}
        )
    _run(home, "slow", falling(200, 2.2), width=96, speed=20_000.0, load=60.0)
    _run(home, "fast", falling(200, 2.2), width=96, speed=90_000.0, load=195.0)
    _run(home, "killed", falling(50, 3.5), status=None)
    _run(home, "drifted", falling(200, 2.2), bpb=2.2)
    home.store.add_alert("drifted", 150, "C", "page-hinkley", -0.12)


def falling(count: int, end: float, begin: float = 8.0) -> list[float]:
    """A curve that falls to its end, with noise."""
    draw = random.Random(count)
    return [end + (begin - end) * math.exp(-6 * i / count) + draw.gauss(0, 0.02) for i in range(count)]


def _overfitted() -> list[tuple[int, float]]:
    return [(step, 2.3 + abs(step - 400) / 1000) for step in range(100, 1001, 100)]


def _run(
    home: Home,
    name: str,
    curve: list[float],
    *,
    width: int = 64,
    seed: int = 0,
    bpb: float | None = None,
    status: Any = "finished",
    note: str = "budget spent",
    rates: dict[str, float] | None = None,
    validations: list[tuple[int, float]] | None = None,
    speed: float = 100_000.0,
    load: float = 190.0,
) -> None:
    store, steps = home.store, len(curve)
    config = {
        "model": ModelConfig(d_model=width, nhead=2, num_layers=2).model_dump(mode="json"),
        "train": TrainConfig.of({"steps": steps, "seed": seed, "optim": rates or {}}).model_dump(mode="json"),
        "data": {**DataConfig().model_dump(mode="json"), "train_bytes": 1_000_000},
        "eval_bytes": 65_536,
        "provenance": MACHINE,
    }
    folder = home.runs / name
    store.begin(name, folder, config)
    rows = []
    for step, value in enumerate(curve, 1):
        rows += [(step, "train_bpb", value), (step, "grad_norm", 1.0 + 0.1 * math.sin(step)), (step, "lr", 0.003)]
        if step % 10 == 0:
            rows += [
                (step, "bytes_per_s", speed),
                (step, "cpu_percent", load),
                (step, "K", max(0.0, 1 - value / 8)),
                (step, "C", value / 8),
            ]
    checks = validations or [
        (step, curve[step - 1] + 0.05) for step in range(max(1, steps // 10), steps + 1, max(1, steps // 10))
    ]
    rows += [(step, "val_bpb", value) for step, value in checks]
    store.add_metrics(name, rows, Live(steps, 1.0 if status == "finished" else 0.5))
    if status is not None:
        result = (
            None
            if bpb is None
            else {"bpb": bpb, "bytes": 65_536, "protocol": PROTOCOL, "compressors": {"xz -9e": 2.3, "zlib -9": 2.6}}
        )
        store.end(name, status, note, result)
