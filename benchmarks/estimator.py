"""How far is `btlm estimate` from what is measured? Trainings and models in use, under every switch.

Measured: bytes saved for the backward pass, through hooks; peak resident memory of a process of its own, beyond its libraries,
with an allocator that gives back what is freed; `btlm bench memory` prints how much more the allocator as it comes keeps.
"""

from __future__ import annotations

import statistics
from typing import Any

import harness
from footprint import footprint

from bit_transformer.config import ModelConfig, TrainConfig
from bit_transformer.memory import estimate_memory

SHAPE: dict[str, Any] = {"d_model": 256, "nhead": 4, "num_layers": 8, "max_seq_len": 8 * 512}
TRAIN: dict[str, Any] = {"steps": 1, "batch_size": 8, "amp": False, "keep_best": False}  # nothing is validated
WIDE: dict[str, Any] = {"d_model": 512, "num_layers": 12}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "24 layers": ({"num_layers": 24}, {}),
    "dropout": ({"dropout": 0.1}, {}),
    "reversible": ({"reversible": True}, {}),
    "reversible, 24 layers, dropout": ({"reversible": True, "num_layers": 24, "dropout": 0.1}, {}),
    "reversible, wide": ({**WIDE, "reversible": True}, {"batch_size": 4}),
    "checkpoint": ({"use_checkpoint": True}, {}),
    "checkpoint, every second block": ({"use_checkpoint": True, "checkpoint_every": 2}, {}),
    "chunks of 64 patches": ({"chunk_size": 8 * 64}, {}),
    "chunks, reversible": ({"chunk_size": 8 * 64, "reversible": True}, {}),
    "4 micro-batches": ({}, {"accum_steps": 4}),
    "one window, wide": (WIDE, {"batch_size": 1}),
    "one window, wide, AdamW alone": (WIDE, {"batch_size": 1, "optim": {"muon": False}}),
    "flat bits": ({"patch_bits": 1, "max_seq_len": 1024}, {}),
    "patches of 12 bits": ({"patch_bits": 12, "max_seq_len": 12 * 512, "num_layers": 4}, {}),
    "n-grams": (
        {
            "ngram_orders": (2, 3, 4),
            "ngram_words": True,
            "ngram_rows": 1 << 14,
            "ngram_dropout": (0.1,) * 5,
            "num_layers": 4,
        },
        {"batch_size": 16},
    ),
    "experts": ({"experts": True, "num_layers": 4}, {}),
    "bfloat16 autocast": ({"num_layers": 4}, {"amp": True, "batch_size": 4}),
    "bfloat16, reversible, dropout": (
        {"num_layers": 4, "reversible": True, "dropout": 0.1},
        {"amp": True, "batch_size": 4},
    ),
}
IN_USE: dict[str, tuple[dict[str, Any], int]] = {
    "in use, 16 windows": ({}, 16),
    "in use, reversible, 16 windows": ({"reversible": True}, 16),
    "in use, patches of 12 bits": ({"patch_bits": 12, "max_seq_len": 12 * 512}, 8),
}


def main(quick: bool) -> int:
    """Measure."""
    cases = dict(list(CASES.items())[:4]) if quick else CASES
    report = harness.Report(
        "estimator",
        f"{len(cases)} trainings of two updates and {len(IN_USE)} scorings, each in a process of its own; base: width 256, 8 layers, "
        "8 windows of 512 patches, float32, Muon and AdamW; errors are estimate over measurement - 1",
        {"worst_error": "<= 0.1"},
    )
    errors: list[float] = []
    for name, (fields, how) in cases.items():
        model, train = {**SHAPE, **fields}, {**TRAIN, **how}
        found = footprint(model, train)
        guess = estimate_memory(ModelConfig.of(model), TrainConfig.of(train))
        saved = guess.activations + guess.logits // 2  # the other half are gradients
        both = saved / found["saved"] - 1, guess.peak / found["peak"] - 1
        errors += both
        report.row(
            name,
            f"saved {found['saved'] / 1e6:7.1f} MB {both[0]:+6.1%}   peak {found['peak'] / 1e6:7.1f} MB {both[1]:+6.1%}",
        )
    for name, (fields, batch) in IN_USE.items():
        model, train = {**SHAPE, **fields}, {**TRAIN, "batch_size": batch}
        found = footprint(model, train, training=False)
        guess = estimate_memory(ModelConfig.of(model), TrainConfig.of(train), training=False, batch=batch)
        errors.append(guess.peak / found["peak"] - 1)
        report.row(name, f"peak {found['peak'] / 1e6:7.1f} MB {errors[-1]:+6.1%}")
    report.figures = {
        "worst_error": max(map(abs, errors)),
        "median_error": statistics.median(map(abs, errors)),
        "configurations": float(len(cases) + len(IN_USE)),
    }
    return report.finish()


if __name__ == "__main__":
    harness.run(main, __doc__)
