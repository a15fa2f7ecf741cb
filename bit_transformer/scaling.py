"""Estimates what ranks send each other in an update of a training, and how long the update takes: a roofline.

The time of an update lies between two bounds. If sending hides behind computing, it is the larger of both; if nothing is hidden, their sum. `btlm bench
scaling` compares bytes and seconds with measurements.

Source: the volumes of ring collectives in Thakur et al. 2005, "Optimization of collective communication operations in MPICH".
"""

# Letters: N ranks, D model width, M positions of a micro-batch on one rank.
from __future__ import annotations

import math
from dataclasses import dataclass

from bit_transformer.config import ModelConfig, TrainConfig
from bit_transformer.errors import ConfigError
from bit_transformer.memory import FLOAT, HALF, INDEX, elements


@dataclass(frozen=True)
class StepEstimate:
    """An update on one of several ranks.

    Attributes:
        flops: floating-point operations of matrix products, with what reversible and checkpointed trunks compute again.
        sent: bytes that the rank sends, by purpose.
        compute_s: seconds of computing; `moving_s`: of sending.
    """

    flops: float
    sent: dict[str, int]
    compute_s: float
    moving_s: float

    @property
    def bytes(self) -> int:
        """All bytes that the rank sends."""
        return sum(self.sent.values())

    @property
    def low_s(self) -> float:
        """Seconds, if all sending hides behind computing."""
        return max(self.compute_s, self.moving_s)

    @property
    def high_s(self) -> float:
        """Seconds, if none does."""
        return self.compute_s + self.moving_s


def estimate_step(
    model: ModelConfig,
    train: TrainConfig,
    flops_per_byte: float,
    *,
    ranks: int,
    shard: bool = False,
    stages: int = 1,
    flops_per_s: float,
    bytes_per_s: float,
) -> StepEstimate:
    """Bytes and seconds of an update.

    Args:
        flops_per_byte: of the model in training, `BitTransformerLM.flops_per_byte()`.
        ranks: that share the batch, each with a replica, or with shards (`shard`), or each a pipeline of `stages` ranks.
        flops_per_s: what one rank reaches in matrix products.
        bytes_per_s: what one rank sends to another.

    Raises:
        ConfigError: a batch that does not divide, more stages than layers, or rates that are not positive.
    """
    pieces = ranks * train.accum_steps
    if ranks < 1 or train.batch_size % pieces:
        raise ConfigError(
            f"got batch_size={train.batch_size} for {ranks} ranks and accum_steps={train.accum_steps}; it must be a multiple of {pieces}. "
            f"Try batch_size={-(-train.batch_size // max(1, pieces)) * max(1, pieces)}"
        )
    if not 1 <= stages <= model.num_layers:
        raise ConfigError(
            f"got {stages} stages for {model.num_layers} layers; a stage needs a layer. Try {model.num_layers}"
        )
    if flops_per_s <= 0 or bytes_per_s <= 0:
        raise ConfigError("got a rate that is not positive. Try flops_per_s=1e14, bytes_per_s=1e10")
    window = min(train.window or model.max_seq_len, model.max_seq_len)
    data_bytes = train.batch_size // ranks * window / model.byte_bits
    again = 4 / 3 if model.reversible else 1.0
    if model.use_checkpoint and not model.reversible:
        again = 1 + math.ceil(model.num_layers / model.checkpoint_every) / model.num_layers / 3
    flops = data_bytes * flops_per_byte * again / stages
    sent = _sent(model, train, ranks, shard, stages, round(window / model.patch_bits))
    return StepEstimate(flops, sent, flops / flops_per_s, sum(sent.values()) / bytes_per_s)


def _sent(c: ModelConfig, how: TrainConfig, N: int, shard: bool, stages: int, positions: int) -> dict[str, int]:
    """Bytes that a rank sends, by purpose."""
    block, tables, mixer, others = elements(c)
    matrices = c.num_layers * block / stages
    dense = matrices + mixer + others  # of the first or last stage, the larger ones
    others_of = (N - 1) / N
    rows = how.batch_size // N * positions
    sent: dict[str, float] = {}
    if shard:
        width = HALF if how.amp else FLOAT
        sent["weights, gathered"] = 2 * how.accum_steps * others_of * dense * width
        sent["gradients, to their owners"] = others_of * dense * FLOAT
        if how.optim.muon:
            sent["Muon: whole matrices and back"] = 2 * others_of / N * matrices * FLOAT
    else:
        sent["gradients, averaged"] = 2 * others_of * dense * FLOAT
        if how.optim.muon:
            sent["Muon: updates"] = others_of * matrices * FLOAT
    if tables:
        # Different rows among random ones; text repeats itself and looks up fewer.
        looked_up = c.ngram_contexts * c.ngram_rows * -math.expm1(-rows / c.ngram_rows)
        sent["n-gram rows"] = (N - 1) * looked_up * (c.d_model * FLOAT + INDEX)
    if stages > 1:
        streams = 2 if c.reversible else 1  # of 32 bits each
        sent["activations and their gradients"] = 2 * rows * c.d_model * FLOAT * streams
    return {purpose: round(size) for purpose, size in sent.items() if size}
