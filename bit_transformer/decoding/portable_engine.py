"""The engine for float32 on processors: exact and fast. It computes the same bits on every machine, for any number of streams.

The arithmetic is in `portable_kernels.py`. Here a model's parameters are laid out for it, and the state of a session is kept.
"""

# Shapes: B streams, N positions, D model width, V = 2^P nodes, K head width.
from __future__ import annotations

from decimal import Context, Decimal
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bit_transformer.decoding import portable_kernels as kernels
from bit_transformer.decoding.integer_kernels import ALL_LEVELS, INPUT_LEVELS, TILE_INPUTS, Tiles, no_tiles, tiles_of
from bit_transformer.decoding.portable_kernels import LENGTH, Plan, State, Weights
from bit_transformer.model import BitTransformerLM
from bit_transformer.nn.quantized import Embedding, Linear, QuantizedTensor, Rounding, plain
from bit_transformer.nn.reversible import overflow

_THETA = 10_000  # of `nn.position.rotary_table`


def can_run(model: BitTransformerLM) -> bool:
    """Whether this engine can run a model: float32 on a processor, or quantized. In training mode dropout is active, which it does not have;
    and it rounds the inputs of quantized matrices only."""
    weight, rounding = model.head.weight, model.rounding
    if rounding is not None and rounding.activations and not isinstance(weight, QuantizedTensor):
        return False
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and not model.training


class PortableEngine:
    """Steps of B streams in one fixed order of operations."""

    def __init__(self, model: BitTransformerLM, batch: int) -> None:
        self.model = model
        self.plan, self.weights = laid_out(model)
        self.state = new_state(model, batch)
        self.capacity = model.config.max_patches + 1
        self._adapts = False

    @property
    def length(self) -> int:
        """Positions since the window began."""
        return int(self.state.place[LENGTH])

    @property
    def state_BD(self) -> Tensor:
        """The trunk's state that predicts the next patch, as a copy."""
        return torch.from_numpy(self.state.hidden.copy())

    def extend(self, input_BN: Tensor) -> Tensor:
        """Continue every stream by N symbols. Returns the states that predict what follows each, h_BND.

        Raises:
            StreamOverflow: a stream of a reversible trunk left the range of its integers.
        """
        symbol_NB = np.ascontiguousarray(input_BN.numpy().T)
        states_NBD = np.empty((*symbol_NB.shape, self.model.config.d_model), dtype=np.float32)
        self.state.reach[0] = 0
        kernels.prefill(self.plan, self.weights, self.state, symbol_NB, states_NBD)
        self.check_reach()
        return torch.from_numpy(states_NBD).transpose(0, 1)

    def check_reach(self) -> None:
        """Raise an error if a reversible trunk's values left the range of its integers; with infinite ones the state becomes NaN."""
        reach = float(self.state.reach[0])
        if np.isinf(reach):
            self.state.hidden[...] = np.nan
        elif reach >= kernels.STREAM_LIMIT:
            raise overflow(reach, kernels.STREAM_LIMIT)

    def node_logits(self, features_BVF: NDArray[np.int8] | None) -> NDArray[np.float32]:
        """Logits at every node of the next patch: (B, V). With experts, their features at every node are given."""
        logit_BV = np.empty((len(self.state.hidden), len(self.weights.bias)), dtype=np.float32)
        features = np.zeros((1, 1, 1), dtype=np.int8) if features_BVF is None else features_BVF
        kernels.node_logits(self.plan, self.weights, self.state, features, logit_BV)
        return logit_BV

    def adapt(self) -> None:
        """Give this engine its own copy of the weights of head and mixer, so that they can learn while it decodes."""
        if not self._adapts:
            w = self.weights
            learners = {name: getattr(w, name).copy() for name in ("head", "bias", "gate", "by_node")}
            self.weights, self._adapts = w._replace(**learners), True

    def forget(self, count: int) -> None:
        """Drop the `count` oldest patches of the window; the rest of the cache is kept."""
        kernels.forget(self.plan, self.weights, self.state, count)

    def select(self, row_B: NDArray[np.int64]) -> None:
        """Replace each stream's state by that of stream `row_B[b]`."""
        moved = np.flatnonzero(row_B != np.arange(len(row_B)))
        source = row_B[moved]
        used = min(self.state.keys.shape[-1], int(self.state.place[kernels.SLOT_END]))
        used = used if self.plan.window else self.length
        for held in (
            self.state.keys[..., :used],
            self.state.values[..., :used, :],
            self.state.recent,
            self.state.hidden,
            self.state.gates,
        ):
            held[moved] = held[source]


# ---- a model, laid out ----


def laid_out(model: BitTransformerLM) -> tuple[Plan, Weights]:
    """A model's parameters as the kernels read them. Matrices are copied, so later changes of the model have no effect."""
    c, trunk, mixer = model.config, model.trunk, model.mixer
    blocks = trunk.layers()
    nothing = np.zeros((1, 1), dtype=np.float32)
    plan = Plan(
        orders=np.array(c.ngram_orders, dtype=np.int64),
        rows=c.ngram_rows,
        word_shift=c.patch_bits - 8 if c.ngram_words else -1,
        heads=c.nhead,
        patch_bits=c.patch_bits,
        window=c.attention_window or 0,
        reversible=c.reversible,
        features=mixer.features if mixer else 0,
        scale=np.float32(mixer.scale if mixer else 0),
    )
    matrices = [
        [block.attend.query_key_value for block in blocks],
        [block.attend.out for block in blocks],
        [block.feed_forward.expand for block in blocks],
        [block.feed_forward.out for block in blocks],
    ]
    query_key_value, attend_out, expand, feed_out = map(_stacked, matrices)
    table, table_codes = (nothing, no_tiles()) if trunk.ngrams is None else _table(trunk.ngrams.table)
    weights = Weights(
        embed=_array(trunk.embed.weight, trunk.embed.rounding),
        phase=_array(trunk.phase.weight, trunk.phase.rounding) if trunk.phase is not None else nothing,
        table=table,
        query_key_value=query_key_value,
        attend_out=attend_out,
        expand=expand,
        feed_out=feed_out,
        rotary=exact_rotary(c.max_patches + 1, c.d_model // c.nhead),
        head=_array(model.head.weight, model.head.rounding),
        bias=_array(model.head.bias),
        gate=np.ascontiguousarray(_array(mixer.gate, mixer.rounding).T) if mixer else nothing,
        by_node=_array(mixer.by_node) if mixer else nothing,
        tiles=(_tiles(matrices[0]), _tiles(matrices[1]), _tiles(matrices[2]), _tiles(matrices[3])),
        table_codes=table_codes,
    )
    return plan, weights


def _array(tensor: Tensor, rounding: Rounding | None = None) -> NDArray[np.float32]:
    """Weights as the forward pass sees them."""
    return np.ascontiguousarray(plain(tensor, rounding).numpy())


def _stacked(maps: list[Linear]) -> NDArray[np.float32]:
    """Weights of all layers, input-major: (L, I, O); nothing if they are quantized."""
    if isinstance(maps[0].weight, QuantizedTensor):
        return np.zeros((1, 1, 1), dtype=np.float32)
    return _array(torch.stack([plain(linear.weight, linear.rounding).T for linear in maps]))


def _tiles(maps: list[Linear]) -> Tiles:
    """Quantized weights of all layers."""
    held = [linear.weight for linear in maps if isinstance(linear.weight, QuantizedTensor)]
    if not held:
        return no_tiles()
    codes_LOI = torch.stack([weight.codes() for weight in held]).numpy()
    scales_LOG = torch.stack([weight.scales for weight in held]).float().numpy()
    rounding = maps[0].rounding
    levels = INPUT_LEVELS if rounding is not None and rounding.activations else ALL_LEVELS
    return tiles_of(codes_LOI, scales_LOG, held[0].bits, levels)


def _table(embedding: Embedding) -> tuple[NDArray[np.float32], Tiles]:
    """An n-gram table, as floats or as integers."""
    weight = embedding.weight
    if not isinstance(weight, QuantizedTensor):
        return _array(weight, embedding.rounding), no_tiles()
    codes = weight.stored.view(torch.uint8).numpy()[None, None]
    scales = weight.scales.float().numpy()[None]
    return np.zeros((1, 1), dtype=np.float32), Tiles(weight.bits, codes, scales, np.float32(0))


def new_state(model: BitTransformerLM, batch: int) -> State:
    """The state of `batch` streams before their first symbol."""
    c, trunk = model.config, model.trunk
    D, H, L = c.d_model, c.nhead, c.num_layers
    K, F = D // H, c.feedforward_width
    slots = c.attention_window or c.max_patches + 1
    slots += -slots % kernels.LANES if not c.attention_window else 0
    recent = 1 + (trunk.ngrams.history if trunk.ngrams is not None else 0)
    widest = max(3 * D, F)

    def room(*shape: int, dtype: Any = np.float32) -> NDArray[Any]:
        return np.zeros(shape, dtype=dtype)

    return State(
        place=room(3, dtype=np.int64),
        recent=np.full((batch, recent), trunk.start, dtype=np.int64),
        rows=room(batch, max(1, c.ngram_contexts), dtype=np.int64),
        keys=room(batch, L, H, K, slots),
        values=room(batch, L, H, slots, K),
        hidden=room(batch, D),
        gates=room(batch, c.patch_bits * model.mixer.features if model.mixer else 1),
        x1=room(batch, D),
        grid=room(2, batch, D, dtype=np.int32),
        normed=room(batch, D),
        mixed=room(batch, 3 * D),
        read=room(batch, D),
        inner=room(batch, F),
        update=room(batch, D),
        scores=room(slots + kernels.LANES),
        every=np.arange(max(slots, K) + kernels.LANES),
        used=room(widest + 1, dtype=np.int64),
        sums=room(kernels.LANES),
        reach=room(1, dtype=np.float64),
        rounded=room(batch * widest, dtype=np.int16),
        corrections=room(batch * widest // TILE_INPUTS + 1, dtype=np.int32),
        scales=room(batch),
    )


@lru_cache(maxsize=8)
def exact_rotary(positions: int, head_width: int) -> NDArray[np.float32]:
    """`nn.position.rotary_table` in float32, computed with integers of 160 bits: cosines of the platform's library differ between machines.

    Returns:
        (positions, K / 2, 2).
    """
    bits = 160
    one, context = 1 << bits, Context(prec=60)
    table = np.empty((positions, head_width // 2, 2), dtype=np.float32)
    for k in range(head_width // 2):
        exponent = context.divide(context.multiply(Decimal(-2 * k), context.ln(Decimal(_THETA))), Decimal(head_width))
        angle = int(context.multiply(context.exp(exponent), Decimal(one)))
        cos, sin = _cos_sin(angle, bits)
        c, s = one, 0
        for n in range(positions):
            table[n, k] = c / one, s / one
            c, s = (c * cos - s * sin) >> bits, (c * sin + s * cos) >> bits
    return table


def _cos_sin(angle: int, bits: int) -> tuple[int, int]:
    """Cosine and sine of an angle up to 1, in units of 2^-bits, by their series."""
    sums, term = [0, 0, 0, 0], 1 << bits
    for n in range(1, 48):
        sums[(n - 1) % 4] += term
        term = (term * angle >> bits) // n
    return sums[0] - sums[2], sums[1] - sums[3]
