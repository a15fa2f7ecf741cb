"""Estimates the memory of a model before it is made: in training and in use, with every setting that saves memory.

Computed from shapes, for each tensor that the code stores; `btlm bench estimator` compares it with measurements. Sizes are bytes
on one device. Libraries take more (a process with torch some 0.4 GB).
"""

# Letters: M positions of a micro-batch, N of a window, D model width, F feed-forward width, V = 2^P symbols, P bits of a patch.
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bit_transformer.config import FLIP_LEVELS, ModelConfig, TrainConfig
from bit_transformer.errors import ConfigError
from bit_transformer.pieces import BOUND_SAMPLES, MUON_PIECE, VALIDATION_ROWS

FLOAT, HALF, INDEX = 4, 2, 8


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device.

    Attributes:
        parameters: weights; with FSDP this device's part of them, and the blocks that are gathered at the time.
        gradients: of all parameters, and of the used rows of sparse tables.
        optimizer: moments and momenta.
        kept: weights of the best validation so far, with `train.keep_best`, and their average, with `train.average`.
        activations: stored for the backward pass of one micro-batch.
        logits: of all nodes of the head, and their gradients.
        working: results and gradients of the current branch.
        update: temporary memory of the optimizer.
        cache: keys and values of cached generation.
        experts: the bank, and the features of a batch.
        attention_maps: of one batch, with full_attn_logging.
        peak: the most at one time. This is less than the sum, because not everything exists at the same time.
        when: the moment of the peak.
    """

    parameters: int
    peak: int
    when: str
    gradients: int = 0
    optimizer: int = 0
    kept: int = 0
    activations: int = 0
    logits: int = 0
    working: int = 0
    update: int = 0
    cache: int = 0
    experts: int = 0
    attention_maps: int = 0


def estimate_memory(
    model: ModelConfig | None = None,
    train: TrainConfig | None = None,
    *,
    training: bool = True,
    batch: int = 1,
    world_size: int = 1,
    **fields: Any,
) -> MemoryEstimate:
    """Memory of a training, or of a model in use.

    Args:
        model: the shape; or give its fields as keywords: `estimate_memory(d_model=512, num_layers=24)`.
        train: batch, window, accumulation, precision (`amp` not given: float32) and optimizer. Default: the default settings.
        training: False: the model is in use, in float32. It scores `batch` whole windows, or generates as many streams, at once.
        batch: windows at once, for a model in use; a training's batch is in `train`.
        world_size: devices that share one model (FSDP) and the batch.

    Raises:
        ConfigError: an invalid shape, no devices, or a batch that cannot be divided evenly.
    """
    if model is not None and not isinstance(model, ModelConfig):
        raise ConfigError(f"got a {type(model).__name__}; a ModelConfig, or its fields, is needed. Try model.config")
    config = ModelConfig.of({**(model.model_dump() if model else {}), **fields})
    how = train or TrainConfig(steps=1)
    if world_size < 1:
        raise ConfigError(f"got world_size={world_size}; at least 1 is needed. Try 1")
    windows = how.batch_size if training else batch
    pieces = world_size * (how.accum_steps if training else 1)
    if windows < 1 or windows % pieces:
        raise ConfigError(
            f"got a batch of {windows}, which is not shared evenly by world_size={world_size} devices"
            f"{f' and accum_steps={how.accum_steps}' if training else ''}. Try a batch of {-(-max(1, windows) // pieces) * pieces}"
        )
    if not training:
        return _in_use(config, batch // world_size, world_size)
    return _in_training(config, how, windows // pieces, world_size)


def largest_batch(
    model: ModelConfig, train: TrainConfig, budget: int, *, training: bool = True, world_size: int = 1
) -> int:
    """The largest batch of an update, or of scoring, within a memory budget in bytes; 0 if not one window fits."""

    def fits(rows: int) -> bool:
        how = train.model_copy(update={"batch_size": rows * world_size, "accum_steps": 1})
        return (
            estimate_memory(model, how, training=training, batch=rows * world_size, world_size=world_size).peak
            <= budget
        )

    if not fits(1):
        return 0
    below, above = 1, 2
    while fits(above) and above < 1 << 24:
        below, above = above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if fits(middle) else (below, middle)
    return below * world_size


@dataclass(frozen=True)
class Saving:
    """A setting that saves memory.

    Attributes:
        settings: what to set, as on the command line.
        peak: bytes with it.
        price: what it costs.
    """

    settings: str
    peak: int
    price: str


def savings(model: ModelConfig, train: TrainConfig, *, world_size: int = 1) -> list[Saving]:
    """Settings that would lower the peak of a training, the best first."""
    now = estimate_memory(model, train, world_size=world_size).peak
    found = []
    for model_fields, train_fields, price in _switches(model, train, world_size):
        how = TrainConfig.of(train.model_dump() | train_fields)
        peak = estimate_memory(model, how, world_size=world_size, **model_fields).peak
        if peak < 0.98 * now:
            settings = [f"model.{key}={value}".lower() for key, value in model_fields.items()]
            settings += [f"train.{key}={value}".lower() for key, value in train_fields.items()]
            found.append(Saving(" ".join(settings), peak, price))
    return sorted(found, key=lambda saving: saving.peak)


def _switches(
    model: ModelConfig, train: TrainConfig, world_size: int
) -> list[tuple[dict[str, Any], dict[str, Any], str]]:
    """Fields of the model and of the training to set, and their cost."""
    choices: list[tuple[dict[str, Any], dict[str, Any], str]] = []
    if not model.reversible:
        off = {"use_checkpoint": False, "checkpoint_every": 1} if model.use_checkpoint else {}
        choices.append(
            ({"reversible": True, **off}, {}, "about a third more time; the model computes another function")
        )
        if not model.use_checkpoint:
            choices.append(({"use_checkpoint": True}, {}, "about a fifth more time"))
        elif model.checkpoint_every > 1:
            choices.append(({"checkpoint_every": 1}, {}, "up to a fifth more time"))
    if model.chunk_size is None and model.causal:
        chunk = max(1, model.max_patches // 8) * model.patch_bits
        choices.append(({"chunk_size": chunk}, {}, "attention over a shorter distance"))
    if train.batch_size % (2 * train.accum_steps * world_size) == 0:
        choices.append(({}, {"accum_steps": 2 * train.accum_steps}, "smaller matrix products"))
    if train.keep_best:
        choices.append(({}, {"keep_best": False}, "keeps the last weights, even if the training over-fits"))
    if not train.amp:
        choices.append(({}, {"amp": True}, "fast only with bfloat16 arithmetic"))
    return choices


# ---- computing ----


def elements(c: ModelConfig) -> tuple[int, int, int, int]:
    """Number of parameters: matrices of one block; n-gram tables; the experts' mixer; all others."""
    V, D = 1 << c.patch_bits, c.d_model
    block = 4 * D * D + 2 * D * c.feedforward_width
    tables = c.ngram_contexts * c.ngram_rows * D
    mixer = _features(c) * (V + c.patch_bits * D)
    rows = V + 1 + (c.phases if c.phases > 1 else 0) + (FLIP_LEVELS if c.noise == "flips" else 0)  # of embeddings
    return block, tables, mixer, rows * D + V * (D + 1)


def _features(c: ModelConfig) -> int:
    if c.experts is None:
        return 0
    from bit_transformer.experts.bank import feature_count  # loads numba only if needed

    return feature_count(c)


def _bank(c: ModelConfig) -> int:
    if c.experts is None:
        return 0
    from bit_transformer.experts.bank import memory_bytes

    return memory_bytes(c)


def _kept_by_branches(c: ModelConfig, rows: int, N: int, amp: bool) -> tuple[int, int]:
    """Bytes that attention and feed-forward of one block store for the backward pass of `rows` windows of N positions."""
    M, D, H, W = rows * N, c.d_model, c.nhead, c.attention_window
    size = HALF if amp else FLOAT
    around = M * (D + 1) * FLOAT  # norm
    around += M * D * HALF if amp else 0  # its copy for the matrix product
    around += M * D * size if c.dropout else 0
    if W is None or W >= N:
        attention = M * (4 * D * size + H * FLOAT)  # rotated queries and keys, values, output; log-sums
    else:
        R = math.ceil((N - W) / W) * W  # positions in chunks after the first; keys and values of those twice
        attention = rows * ((6 * R + 4 * W + N) * D * size + (R + W) * H * FLOAT) + 2 * W * W * size
    casts = (4 * D * D * HALF, 2 * D * c.feedforward_width * HALF) if amp else (0, 0)
    return around + attention + casts[0], around + M * c.feedforward_width * size + casts[1]


def _in_training(c: ModelConfig, how: TrainConfig, rows: int, world_size: int) -> MemoryEstimate:
    N = math.ceil(min(how.window or c.max_seq_len, c.max_seq_len) / c.patch_bits)
    M, D, F, P, L = rows * N, c.d_model, c.feedforward_width, c.patch_bits, c.num_layers
    V, contexts, E = 1 << P, c.ngram_contexts, _features(c)
    amp = bool(how.amp)
    size = HALF if amp else FLOAT
    block, tables, mixer, others = elements(c)
    attention, feed_forward = _kept_by_branches(c, rows, N, amp)
    kept = attention + feed_forward

    ends = M * (D + 1) * FLOAT + M * (INDEX + P * (INDEX + 2 * FLOAT))  # final norm, symbols, bits of the loss
    ends += (M * D + V * D) * HALF if amp else 0
    ends += M * P * (E * FLOAT + INDEX) + ((M + P * E) * D * HALF if amp else 0) if E else 0
    ends += M * contexts * (INDEX + (FLOAT if any(c.ngram_dropout) else 0))
    results = M * D * (size + 2 * FLOAT)  # of a branch, and its gradients
    if c.reversible:
        trunk, last = 2 * M * D * FLOAT, 0
        first = trunk
        streams = 5 * M * D * FLOAT  # being recomputed, and their gradients
        working = results + streams + max(attention + 8 * M * D * size, feed_forward + 2 * M * F * size)
    else:
        again = math.ceil(L / c.checkpoint_every) if c.use_checkpoint else 0
        trunk = again * M * D * FLOAT + (L - again) * kept
        working = results + 2 * M * F * size
        first = M * D * FLOAT + kept if again else kept
        # A recomputed block takes the place of the plain one after it, unless it is the last.
        last = kept if again and (L - 1) % c.checkpoint_every == 0 else 0
    activations, logits = trunk + ends, 2 * M * V * size

    dense = (L * block + mixer + others) * FLOAT
    rows_of_tables = how.batch_size // world_size * N * contexts * (D * FLOAT + INDEX)
    parameters = dense // world_size + tables * FLOAT  # tables are whole on each device
    gradients = dense // world_size + rows_of_tables
    if world_size > 1:  # two blocks, and everything outside the blocks, are gathered at a time
        parameters += (2 * block + mixer + others) * FLOAT
        gradients += block * FLOAT
    moments = ((1 if how.optim.muon else 2) * L * block + 2 * (mixer + others)) // world_size + 2 * tables
    largest = D * max(3 * D, F)  # matrix
    piece = min(L * largest, max(MUON_PIECE, largest)) if how.optim.muon else 0
    update = 5 * piece * FLOAT + 3 * rows_of_tables
    experts = _bank(c) + how.batch_size // world_size * N * P * E

    copies = how.keep_best + (how.keep_best and how.average > 0)
    at_rest = copies * (dense // world_size + tables * FLOAT)
    base = parameters + moments * FLOAT + at_rest + experts
    before = gradients if how.accum_steps > 1 else 0  # of earlier micro-batches
    moments_of = {
        "the loss": base + before + activations + logits,
        "the last block's backward pass": base + before + activations + working + last,
        "the first block's backward pass": base + gradients + first + working,
        "the optimizer's update": base + gradients + update,
        "validation": base + at_rest // 2 + _scoring(c, min(VALIDATION_ROWS, rows) if c.causal else BOUND_SAMPLES),
    }
    when, peak = max(moments_of.items(), key=lambda item: item[1])
    return MemoryEstimate(
        parameters=parameters,
        gradients=gradients,
        optimizer=moments * FLOAT,
        kept=at_rest,
        activations=activations,
        logits=logits,
        working=working + last,
        update=update,
        experts=experts,
        peak=peak,
        when=when,
    )


def _block_in_use(c: ModelConfig, rows: int) -> tuple[int, int]:
    """Bytes without gradients, for whole windows: the streams between blocks, and the results of a branch."""
    M, D, F = rows * (c.max_patches + 1), c.d_model, c.feedforward_width
    return M * D * FLOAT * (4 if c.reversible else 1), M * max(8 * D, D + 2 * F) * FLOAT


def _scoring(c: ModelConfig, rows: int) -> int:
    """Bytes without gradients, for whole windows: the peak in a block or in the head."""
    streams, results = _block_in_use(c, rows)
    M, P = rows * (c.max_patches + 1), c.patch_bits
    head = M * (c.d_model + (1 << P)) * FLOAT + M * P * (INDEX + (3 + 2 * _features(c)) * FLOAT)
    return streams + max(results, head)


def _in_use(c: ModelConfig, batch: int, world_size: int) -> MemoryEstimate:
    N, D, L = c.max_patches + 1, c.d_model, c.num_layers
    block, tables, mixer, others = elements(c)
    parameters = (L * block + mixer + others) * FLOAT // world_size + tables * FLOAT
    parameters += (2 * block + mixer + others) * FLOAT if world_size > 1 else 0
    working = sum(_block_in_use(c, batch))
    cache = batch * L * 2 * min(c.attention_window or N, N) * D * FLOAT if c.causal else 0
    maps = L * batch * c.nhead * N * N * FLOAT if c.full_attn_logging else 0
    experts = _bank(c)
    moments_of = {
        "scoring": parameters + experts + _scoring(c, batch),
        "filling in" if not c.causal else "generation, with a prompt as long as the window": parameters
        + experts
        + cache
        + working,
        "attention maps, joined": parameters + experts + 2 * maps,
    }
    when, peak = max(moments_of.items(), key=lambda item: item[1])
    return MemoryEstimate(
        parameters=parameters,
        logits=batch * N * (1 << c.patch_bits) * FLOAT,
        working=working,
        cache=cache,
        experts=experts,
        attention_maps=maps,
        peak=peak,
        when=when,
    )
