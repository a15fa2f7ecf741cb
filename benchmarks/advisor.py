"""How far are the advisor's predictions from what happens? Seconds and memory of ten trainings that nothing was fitted to.

Seconds: predicted from ten seconds of updates on random bytes, then the whole training on the standard library, through `train`. Memory: the
estimator against the peak of a process of its own, beyond its libraries (see `btlm bench estimator`).
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
from footprint import footprint

from bit_transformer.config import ModelConfig, TrainConfig
from bit_transformer.data.sources import split, stdlib_files
from bit_transformer.memory import estimate_memory
from bit_transformer.presets import preset
from bit_transformer.service.operations import call
from bit_transformer.service.settings import train_config
from bit_transformer.service.workspace import Workspace

NARROW: dict[str, Any] = {"d_model": 96, "nhead": 3, "num_layers": 3, "max_seq_len": 8 * 192, "experts": None}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "narrow": ("tiny", NARROW, {"batch_size": 12}),
    "narrow, flat bits": (
        "tiny",
        {**NARROW, "patch_bits": 1, "max_seq_len": 512, "ngram_orders": (), "ngram_words": False},
        {"batch_size": 6},
    ),
    "wider, no n-grams": (
        "tiny",
        {"d_model": 320, "nhead": 5, "num_layers": 5, "experts": None, "ngram_orders": (), "ngram_words": False},
        {"batch_size": 6},
    ),
    "reversible": ("tiny", {**NARROW, "num_layers": 6, "reversible": True}, {"batch_size": 10}),
    "checkpointed": ("small", {"experts": None, "use_checkpoint": True}, {"batch_size": 6}),
    "local attention": ("tiny", {**NARROW, "max_seq_len": 8 * 768, "chunk_size": 8 * 96}, {"batch_size": 4}),
    "micro-batches": ("small", {"experts": None, "ngram_orders": (2,)}, {"batch_size": 12, "accum_steps": 3}),
    "parity": ("tiny", {"parity": True, "experts": None}, {"batch_size": 10}),
    "diffusion": ("tiny", {"causal": False}, {"batch_size": 12}),
    "experts": ("tiny", {}, {"batch_size": 10}),
}


def main(quick: bool) -> int:
    """Measure."""
    cases = dict(list(CASES.items())[:2]) if quick else CASES
    seconds = 5.0 if quick else 10.0
    report = harness.Report(
        "advisor",
        f"{len(cases)} trainings, float32; predicted from {seconds:g} s of updates, then run for about {6 * seconds / 2:g} s",
        {"worst_time_error": "<= 0.2", "worst_memory_error": "<= 0.1"},
    )
    data, _ = split(stdlib_files(), "auto", 0.1)
    times, memories = [], []
    with tempfile.TemporaryDirectory(prefix="btlm-advisor-") as place:
        os.environ["BTLM_CACHE_DIR"] = str(Path(place) / "features")
        workspace = Workspace(Path(place) / "runs.sqlite", "cpu")
        for name, (size, fields, how) in cases.items():
            model = preset(size, **fields)
            base = {"amp": False, "eval_bytes": 4096, "feature_cache": 1 << 34, **how}
            first = call(
                "estimate_time",
                {"model": model, "train": train_config(model, {**base, "steps": 100}), "seconds": 2.0},
                workspace,
            )
            steps = max(20, round(3 * seconds / first.seconds_per_update))
            train = train_config(model, {**base, "steps": steps})
            guess = call(
                "estimate_time",
                {"model": model, "train": train, "data_bytes": len(data), "seconds": seconds},
                workspace,
            )
            request = {
                "out": Path(place) / name.replace(" ", "-").replace(",", ""),
                "model": model,
                "train": train,
                "data": {"corpora": ("stdlib",)},
                "eval_bytes": 1024,
            }
            took = call("train", request, workspace).seconds
            times.append(guess.seconds / took - 1)
            memories.append(_memory(model, train))
            print(f"{name}: {times[-1]:+.1%} {memories[-1]:+.1%}", file=sys.stderr, flush=True)
            report.row(
                name,
                f"{steps:5} updates {guess.seconds:6.1f} s predicted, {took:6.1f} s taken {times[-1]:+6.1%}   memory {memories[-1]:+6.1%}",
            )
    report.figures = {
        "worst_time_error": max(map(abs, times)),
        "median_time_error": statistics.median(map(abs, times)),
        "worst_memory_error": max(map(abs, memories)),
        "median_memory_error": statistics.median(map(abs, memories)),
    }
    return report.finish()


def _memory(model: ModelConfig, train: TrainConfig) -> float:
    """Estimate over measurement - 1."""
    plain = train.model_copy(
        update={"steps": 1, "keep_best": False, "average": 0.0}
    )  # the measured process validates nothing
    found = footprint(model.model_dump(mode="json"), plain.model_dump(mode="json", exclude_none=True))
    return estimate_memory(model, plain).peak / found["peak"] - 1


if __name__ == "__main__":
    harness.run(main, __doc__)
