"""The whole model in one compiled loop, bit by bit: experts, head and mixer, what is done with each probability, and the trunk's step.

It stands between the bank's kernels and the trunk's. Generation, coding and scoring of streams run here; what they do with a bit is a mode.
Whole units of the experts are processed (of the patches, without experts), for several streams at once, which share the reading of weights.
"""

# Shapes: N units, B streams, U bits of a unit, P bits of a patch, D model width, F features.
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bit_transformer.coding.arithmetic import begin_code, decode_bit, encode_bit, end_code
from bit_transformer.compiled import compiled, inline, part
from bit_transformer.decoding.portable_kernels import LENGTH, exp, forget, node_logit, step
from bit_transformer.experts.kernels import begin_unit, end_unit, learn_bit, predict_bit
from bit_transformer.experts.layout import Stream, Tables

Array = NDArray[Any]

# What is done with each bit: it is given; drawn; written as code; read from code.
GIVEN, DRAWN, ENCODED, DECODED = range(4)

_ONE = np.float32(1)


class Loop(NamedTuple):
    """What a run works on.

    Attributes:
        units: (N, B), int64: read or written. `counts`: (B), how many units of each stream; the trunk goes on with zeros after them.
        learns: (B), whether each stream's experts learn.
        logits: (N, U, B) float32: logits of P(bit = 1), if wanted; else of length 0.
        draws: (N, U, B) float64: a bit is one if its draw is below its logit; of length 0 if nothing is drawn.
        coders: (B, STATE), `payloads`: (B, bytes): as in `coding.arithmetic`.
        payload_sizes: (B), of the payloads that are read.
        parity: (B, 2): bits of the current byte so far, and whether they hold an odd number of ones. The ninth is not coded, since it
            follows from the others. A negative count: bytes without parity.
        rate: step size by which head and mixer learn each bit; 0: they do not.
        opened: (B, STATE): the experts' open units. `features`: (B, 1, 1, F). `symbols`: (B).
        failed: (1): becomes 1 if a logit is not a number.
    """

    units: Array
    counts: Array
    learns: Array
    logits: Array
    draws: Array
    coders: Array
    payloads: Array
    payload_sizes: Array
    parity: Array
    rate: np.float32
    opened: Array
    features: Array
    symbols: Array
    failed: Array


@inline
def tables_of(tables, b):
    """The tables of one stream."""
    b = b % len(tables.learned)  # streams that do not learn share one bank
    return Tables(
        tables.slots[b],
        tables.chance[b],
        tables.first[b],
        tables.match[b],
        tables.weights[b],
        tables.last[b],
        tables.maps[b],
        tables.history[b],
        tables.heads[b],
        tables.learned[b],
        tables.runs[b],
        tables.run_logits[b],
        tables.direct[b],
        tables.mixing[b],
        tables.visits[b],
        tables.blend[b],
        tables.refined[b],
        tables.far_heads[b],
        tables.far[b],
        tables.followed[b],
        tables.seen[b],
        tables.next_words[b],
    )


@inline
def stream_of(streams, b):
    """The state of one stream."""
    return Stream(
        streams.place[b],
        streams.recent[b],
        streams.hashes[b],
        streams.buckets[b],
        streams.inputs[b],
        streams.known[b],
        streams.text[b],
        streams.terms[b],
        streams.entries[b],
        streams.run_rows[b],
        streams.lines[b],
        streams.x[b],
        streams.rows[b],
        streams.outputs[b],
        streams.made[b],
        streams.at[b],
        streams.moments[b],
        streams.weights[b],
        streams.spreads[b],
        streams.errors[b],
        streams.near[b],
        streams.guesses[b],
        streams.left[b],
        streams.wide[b],
        streams.factor[b],
    )


@inline
def probability(z):
    """P(bit = 1) from its logit, float32."""
    small = exp(-abs(z))
    return (_ONE if z >= 0 else small) / (_ONE + small)


@inline
def quantized(p):
    """A probability in 1/65536, never 0 or 1."""
    return min(max(np.int64(p * np.float32(65536)), 1), 65535)


@inline
def _adapt(plan, weights, state, b, node, depth, features, error):
    """One step of gradient descent on the cost of a bit, for head and mixer. Steps are divided by the size of what they multiply (normalised
    least mean squares, Nagumo & Noda 1967), so that each of the four parts moves the logit by about `error`, (bit - probability) times the step size.
    """
    h, row = state.hidden[b], weights.head[node]
    part = error / np.float32(len(h))
    for d in range(len(h)):
        row[d] += part * h[d]
    weights.bias[node] += error
    begin, energy = depth * plan.features, _ONE
    for f in range(plan.features):
        x = np.float32(features[f]) * plan.scale
        energy += x * x
    for f in range(plan.features):
        weights.by_node[node, f] += (error / energy) * (np.float32(features[f]) * plan.scale)
    for d in range(len(h)):
        scaled = (part / energy) * h[d]
        for f in range(plan.features):
            weights.gate[d, begin + f] += scaled * (np.float32(features[f]) * plan.scale)


@part
def _patch(shape, tables, streams, curves, plan, weights, state, loop, mode, i, first, b):
    """One patch of one stream: its bits from the `first` of unit i. Returns the patch."""
    mine, stream = tables_of(tables, b), stream_of(streams, b)
    U, P = shape.unit_bits, plan.patch_bits
    features, opened, learn = loop.features[b], loop.opened[b], loop.learns[b]
    coder, payload = loop.coders[b], loop.payloads[b]
    if mode == DECODED:
        payload = payload[: loop.payload_sizes[b]]
    unit, node, parity = loop.units[i, b], np.int64(1), loop.parity[b]
    for depth in range(P):
        if plan.features:
            predict_bit(shape, mine, stream, curves, opened, learn, features)
        z = node_logit(plan, weights, state, b, node, depth, features[0, 0])
        if z != z:
            loop.failed[0] = 1
        if len(loop.logits):
            loop.logits[i, first + depth, b] = z
        if mode == DRAWN:
            y = np.int64(loop.draws[i, first + depth, b] < z)
        elif mode == DECODED:
            y = parity[1]
            if parity[0] != 8:
                y = decode_bit(coder, payload, quantized(probability(z)))
        else:
            y = (unit >> (U - 1 - first - depth)) & 1
            if mode == ENCODED and parity[0] != 8:
                encode_bit(coder, payload, quantized(probability(z)), y)
        if plan.features:
            learn_bit(shape, mine, stream, curves, opened, y, learn)
        if parity[0] >= 0:
            parity[0], parity[1] = (0, 0) if parity[0] == 8 else (parity[0] + 1, parity[1] ^ y)
        if loop.rate != 0:
            error = (np.float32(y) - probability(z)) * loop.rate
            _adapt(plan, weights, state, b, node, depth, features[0, 0], error)
        node = node << 1 | y
    patch = node - (1 << P)
    if mode in (DRAWN, DECODED):
        loop.units[i, b] = (unit & ~(((1 << P) - 1) << (U - first - P))) | patch << (U - first - P)
    return patch


@part
def _begin_unit(shape, tables, streams, loop, b):
    """Begin a unit of one stream's experts."""
    begin_unit(shape, tables_of(tables, b), stream_of(streams, b), loop.opened[b], loop.learns[b])


@part
def _end_unit(shape, tables, streams, loop, b):
    end_unit(shape, tables_of(tables, b), stream_of(streams, b), loop.opened[b], loop.learns[b])


@compiled
def run(shape, tables, streams, curves, plan, weights, state, capacity, loop, mode):
    """Advance B streams by N units each. A full window slides by half."""
    U, P = shape.unit_bits, plan.patch_bits
    N, B = loop.units.shape
    for b in range(B):
        if plan.features and loop.counts[b]:
            _begin_unit(shape, tables, streams, loop, b)
    for i in range(N):
        for first in range(0, U, P):
            for b in range(B):
                loop.symbols[b] = 0
                if i < loop.counts[b]:
                    loop.symbols[b] = _patch(
                        shape, tables, streams, curves, plan, weights, state, loop, mode, i, first, b
                    )
            if plan.features and first + P == U:
                # The next unit begins before the step, during which the experts' buckets come from memory.
                for b in range(B):
                    if i < loop.counts[b]:
                        _end_unit(shape, tables, streams, loop, b)
                        if i + 1 < loop.counts[b]:
                            _begin_unit(shape, tables, streams, loop, b)
            if state.place[LENGTH] == capacity:
                forget(plan, weights, state, max(1, (capacity - 1) // 2))
            step(plan, weights, state, loop.symbols)


@compiled
def begin_codes(coders, payloads, sizes):
    """Call before the first unit that is decoded."""
    for b in range(len(coders)):
        begin_code(coders[b], payloads[b, : sizes[b]])


@compiled
def end_codes(coders, payloads):
    """Call after the last unit that is encoded."""
    for b in range(len(coders)):
        end_code(coders[b], payloads[b])
