"""The whole model again, in float64 with explicit loops, from the formulas alone.

Slow and obvious on purpose: no batching, no caches, no fused kernels. It takes its numbers from a model's weights and
nothing else.
"""

from __future__ import annotations

import math

import numpy as np

from bit_transformer.model import BitTransformerLM

MASK64 = (1 << 64) - 1


def weights_of(model: BitTransformerLM) -> dict[str, np.ndarray]:
    return {name: value.detach().double().numpy() for name, value in model.state_dict().items()}


def patch_value(bits: list[int]) -> int:
    """Most significant bit first."""
    value = 0
    for bit in bits:
        value = 2 * value + bit
    return value


def rms_norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    mean_square = sum(float(v) ** 2 for v in x) / len(x)
    return np.array([v / math.sqrt(mean_square + 1e-6) * g for v, g in zip(x, gain, strict=True)])


def rotate(x: np.ndarray, position: int) -> np.ndarray:
    """Pair (2i, 2i + 1) turns by position * 10000^(-2i / K)."""
    out = np.empty_like(x)
    for i in range(0, len(x), 2):
        angle = position * 10_000.0 ** (-i / len(x))
        out[i] = x[i] * math.cos(angle) - x[i + 1] * math.sin(angle)
        out[i + 1] = x[i] * math.sin(angle) + x[i + 1] * math.cos(angle)
    return out


def causal_attention(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """One head: query, key, value (N, K)."""
    out = np.zeros_like(value)
    for n in range(len(query)):
        scores = [float(query[n] @ key[m]) / math.sqrt(query.shape[1]) for m in range(n + 1)]
        top = max(scores)
        weights = [math.exp(s - top) for s in scores]
        for m, weight in enumerate(weights):
            out[n] += weight / sum(weights) * value[m]
    return out


def hash_row(context: list[int], order: int, table: int, rows: int) -> int:
    """The row of the `table`-th order for a context given oldest first, in unsigned 64-bit arithmetic."""
    step, finish = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9
    state = 0
    for age in range(order):
        state = (state * finish) & MASK64
        state ^= ((context[-1 - age] + 1) * step) & MASK64
        state ^= state >> 29
    return (((state * step) & MASK64) >> 20 & (rows - 1)) + table * rows


def embed(model: BitTransformerLM, symbols: list[int]) -> list[np.ndarray]:
    w, c = weights_of(model), model.config
    start = 1 << c.patch_bits
    out = []
    for n, symbol in enumerate(symbols):
        x = w["embed.weight"][symbol].copy()
        if c.ngram_orders:
            context = [start] * c.ngram_orders[-1] + symbols[: n + 1]
            for table, order in enumerate(c.ngram_orders):
                x += w["ngrams.table.weight"][hash_row(context, order, table, c.ngram_rows)]
        if c.phases > 1:
            x += w["phase.weight"][n % c.phases]
        out.append(x)
    return out


def trunk(model: BitTransformerLM, symbols: list[int]) -> list[np.ndarray]:
    w, c = weights_of(model), model.config
    xs = embed(model, symbols)
    K = c.d_model // c.nhead
    for layer in range(c.num_layers):
        def weight(name: str, layer: int = layer) -> np.ndarray:
            return w[f"blocks.{layer}.{name}"]

        normed = [rms_norm(x, weight("attend_norm.gain")) for x in xs]
        qkv = np.stack([weight("attend.query_key_value.weight") @ x for x in normed])
        heads = []
        for head in range(c.nhead):
            q, k, v = (qkv[:, part * c.d_model + head * K : part * c.d_model + (head + 1) * K] for part in range(3))
            q = np.stack([rotate(row, n) for n, row in enumerate(q)])
            k = np.stack([rotate(row, n) for n, row in enumerate(k)])
            heads.append(causal_attention(q, k, v))
        joined = np.concatenate(heads, axis=1)
        xs = [x + weight("attend.out.weight") @ y for x, y in zip(xs, joined, strict=True)]
        for n, x in enumerate(xs):
            hidden = weight("feed_forward.expand.weight") @ rms_norm(x, weight("feed_norm.gain"))
            xs[n] = x + weight("feed_forward.out.weight") @ np.array([max(v, 0.0) ** 2 for v in hidden])
    return [rms_norm(x, w["final_norm.gain"]) for x in xs]


def bit_logit(model: BitTransformerLM, h: np.ndarray, prefix: list[int]) -> float:
    w = weights_of(model)
    node = (1 << len(prefix)) | patch_value(prefix)
    return float(w["head.weight"][node] @ h + w["head.bias"][node])


def all_bit_logits(model: BitTransformerLM, bits: list[int]) -> list[float]:
    """Logits of bits 0 .. T, the first and the one after the last included."""
    P = model.config.patch_bits
    whole = len(bits) // P
    symbols = [1 << P] + [patch_value(bits[n * P : (n + 1) * P]) for n in range(whole)]
    states = trunk(model, symbols)
    return [bit_logit(model, states[t // P], bits[t // P * P : t]) for t in range(len(bits) + 1)]


def nll(model: BitTransformerLM, bits: list[int]) -> list[float]:
    """Nats of every bit."""
    return [math.log1p(math.exp(-z if bit else z)) for z, bit in zip(all_bit_logits(model, bits), bits, strict=False)]
