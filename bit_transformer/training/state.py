"""Where a training stands, and what an update leaves behind. Below the loop, which saves itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict


@dataclass
class Progress:
    """Where a training stands.

    Attributes:
        step: optimizer updates made.
        bytes_seen: data bytes trained on.
        seconds: wall-clock of training, over all sessions, validation included.
        share: fraction of the budget spent, in [0, 1].
        best_bpb: lowest validation so far, of this shape; `best_step`: after which update.
        stale: validations since then; `worse`: those in a row that were clearly above it while training got better.
        train_bpb: of training, smoothed over about 50 updates; `best_train_bpb`: at the best validation.
        overfit_since: the update of the best validation, once over-fitting was noticed; else 0.
        validated: fraction of the budget at the last validation; `averaged`: when the weights last entered their average.
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
    """What one update left behind; `train_loop` returns a list of them.

    Of a model on an accelerator `train_bpb` and `grad_norm` are tensors of no dimensions until somebody asks: `float()` waits for the
    device, and nothing else in an update does.
    """

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


def crossed(before: float, now: float, every: float) -> bool:
    """Whether a multiple of `every`, or the end, lies in (before, now], fractions of a budget."""
    return now >= 1 or math.floor(now / every + 1e-9) > math.floor(before / every + 1e-9)
