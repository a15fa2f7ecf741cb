"""A training's progress, and the record of an update. In its own file because the loop and its parts import it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypedDict


@dataclass
class Progress:
    """The progress of a training.

    Attributes:
        step: optimizer updates made.
        bytes_seen: data bytes trained on.
        seconds: wall-clock time of training, over all sessions, including validation.
        share: fraction of the budget spent, in [0, 1].
        best_bpb: lowest validation so far, for this shape; `best_step`: the update before it.
        stale: validations since then; `worse`: consecutive validations that were clearly above it while training improved.
        train_bpb: of training, smoothed over about 50 updates; `best_train_bpb`: at the best validation.
        overfit_since: the update of the best validation, once over-fitting was detected; else 0.
        validated: fraction of the budget at the last validation; `averaged`: at the last update of the weight average.
        stopped: why the training ended, if it has.
        micro_batches: per update, if memory was too small for the config's `accum_steps`; else 0.
        threads: CPU threads, if chosen by measurement; else 0.
        flops: operations of training so far, as counted by `flops_per_byte`.
        stage: of a training with growth: number of growths; `grown_at`: the step of the last one; `mark_bpb`: validation that the next
            one is compared with; `weak`: consecutive validations that improved too little; `ceiling`: whether memory was too small to
            grow further.
        rounded: whether forward passes see rounded weights (`qat`).
        steered: settings that were changed while it ran, as `Trainer.change` does; `commands`: id of the last command that did so.
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
    rounded: bool = False
    steered: dict[str, float] = field(default_factory=dict)
    commands: int = 0


class Record(TypedDict, total=False):
    """The record of one update; `train_loop` returns a list of them.

    `rate` is the fraction of the peak learning rates, `lr` AdamW's own. `coded_bpb` is of windows that were replaced by their run-length codes, per byte of code. `bit_0` .. `bit_8` are the cost of a bit, in bits,
    by its position in a byte; `parity_errors` the fraction of parity bits that a sample would get wrong.

    `bytes_per_s`, `cpu_percent` (100 is one core) and `memory` (bytes) are of the process, twice a second, where runs are recorded.

    On an accelerator `train_bpb` and `grad_norm` are zero-dimensional tensors. `float()` of one waits for the device; nothing else in an
    update does.
    """

    step: int
    bytes: float
    seconds: float
    train_bpb: float
    grad_norm: float
    rate: float
    lr: float
    val_bpb: float
    coded_bpb: float
    K: float
    C: float
    S: float
    bit_0: float
    bit_1: float
    bit_2: float
    bit_3: float
    bit_4: float
    bit_5: float
    bit_6: float
    bit_7: float
    bit_8: float
    parity_errors: float
    bytes_per_s: float
    cpu_percent: float
    memory: float
    num_layers: int
    d_model: int
    max_seq_len: int


def crossed(before: float, now: float, every: float) -> bool:
    """Whether (before, now] contains a multiple of `every`, or the end; all are fractions of a budget."""
    return now >= 1 or math.floor(now / every + 1e-9) > math.floor(before / every + 1e-9)
