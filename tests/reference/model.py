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
    return {name.removeprefix("trunk."): value.detach().double().numpy() for name, value in model.state_dict().items()}


def patch_value(bits: list[int]) -> int:
    """Most significant bit first."""
    value = 0
    for bit in bits:
        value = 2 * value + bit
    return value


def rms_norm(x: np.ndarray) -> np.ndarray:
    squares = sum(float(v) ** 2 for v in x)
    return np.array([v * math.sqrt(len(x)) / math.sqrt(squares + 1e-4) for v in x])


def rotate(x: np.ndarray, position: int) -> np.ndarray:
    """Pair (2i, 2i + 1) turns by position * 10000^(-2i / K)."""
    out = np.empty_like(x)
    for i in range(0, len(x), 2):
        angle = position * 10_000.0 ** (-i / len(x))
        out[i] = x[i] * math.cos(angle) - x[i + 1] * math.sin(angle)
        out[i + 1] = x[i] * math.sin(angle) + x[i + 1] * math.cos(angle)
    return out


def attention_weights(query: np.ndarray, key: np.ndarray, window: int | None = None) -> np.ndarray:
    """One head: query, key (N, K). Row n over the keys up to n, the last `window` of them; weights of the rest are 0."""
    out = np.zeros((len(query), len(key)))
    for n in range(len(query)):
        seen = range(0 if window is None else max(0, n - window + 1), n + 1)
        scores = [float(query[n] @ key[m]) / math.sqrt(query.shape[1]) for m in seen]
        weights = [math.exp(s - max(scores)) for s in scores]
        for m, weight in zip(seen, weights, strict=True):
            out[n, m] = weight / sum(weights)
    return out


def causal_attention(query: np.ndarray, key: np.ndarray, value: np.ndarray, window: int | None = None) -> np.ndarray:
    """One head: query, key, value (N, K)."""
    out = np.zeros_like(value)
    for n, row in enumerate(attention_weights(query, key, window)):
        for m, weight in enumerate(row):
            out[n] += weight * value[m]
    return out


STEP, FINISH = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9


def mixed(x: int) -> int:
    return x ^ (x >> 29)


def hash_context(context: list[int], order: int) -> int:
    """The last `order` patches, newest first, in unsigned 64-bit arithmetic."""
    state = 0
    for age in range(order):
        state = mixed((state * FINISH & MASK64) ^ ((context[-1 - age] + 1) * STEP & MASK64))
    return state


def is_letter(byte: int) -> bool:
    return (chr(byte).isascii() and chr(byte).isalpha()) or 128 <= byte < 256


def word_ending_at(data: list[int], place: int) -> int:
    """The hash of the word so far: of the last 16 letters at most, or of a byte that is none."""
    if not is_letter(data[place]):
        return (data[place] + 1) * FINISH & MASK64
    state, power = 0, 1
    for back in range(16):
        if place < back or not is_letter(data[place - back]):
            break
        byte = data[place - back]
        state += ((byte + 32 if ord("A") <= byte <= ord("Z") else byte) + 1) * power
        power *= STEP
    return state & MASK64


def word_hashes(data: list[int]) -> tuple[int, int]:
    """Of the word so far, and of it with the word before, at the end of some bytes."""
    end = len(data) - 1
    word = word_ending_at(data, end)
    gap = end
    while gap >= 0 and is_letter(data[gap]):
        gap -= 1
    before = gap
    while before >= 0 and not is_letter(data[before]):
        before -= 1
    previous = word_ending_at(data, before) if gap >= 0 and before >= 0 and before >= end - 16 else 0
    return mixed(word), mixed(mixed(previous * FINISH & MASK64) ^ word)


def ngram_rows(model: BitTransformerLM, symbols: list[int]) -> list[int]:
    """The table rows of all contexts that end at the last symbol."""
    c = model.config
    context = [1 << c.patch_bits] * 64 + symbols
    hashes = [hash_context(context, order) for order in c.ngram_orders]
    if c.ngram_words:
        hashes += word_hashes([symbol >> (c.patch_bits - 8) for symbol in context])
    return [((h * STEP & MASK64) >> 20 & (c.ngram_rows - 1)) + table * c.ngram_rows for table, h in enumerate(hashes)]


def embed(model: BitTransformerLM, symbols: list[int]) -> list[np.ndarray]:
    w, c = weights_of(model), model.config
    out = []
    for n, symbol in enumerate(symbols):
        x = w["embed.weight"][symbol].copy()
        if c.ngram_orders or c.ngram_words:
            for row in ngram_rows(model, symbols[: n + 1]):
                x += w["ngrams.table.weight"][row]
        if c.phases > 1:
            x += w["phase.weight"][n % c.phases]
        out.append(x)
    return out


def on_grid(x: np.ndarray) -> np.ndarray:
    """The streams of a reversible trunk in float64: multiples of 2^-40."""
    return np.array([round(float(v) * 2.0**40) / 2.0**40 for v in x])


def trunk(model: BitTransformerLM, symbols: list[int]) -> list[np.ndarray]:
    w, c = weights_of(model), model.config
    K = c.d_model // c.nhead

    def attended(xs: list[np.ndarray], layer: int) -> list[np.ndarray]:
        qkv = np.stack([w[f"blocks.{layer}.attend.query_key_value.weight"] @ rms_norm(x) for x in xs])
        heads = []
        for head in range(c.nhead):
            q, k, v = (qkv[:, part * c.d_model + head * K : part * c.d_model + (head + 1) * K] for part in range(3))
            q = np.stack([rotate(row, n) for n, row in enumerate(q)])
            k = np.stack([rotate(row, n) for n, row in enumerate(k)])
            heads.append(causal_attention(q, k, v, c.chunk_size and c.chunk_size // c.patch_bits))
        return [w[f"blocks.{layer}.attend.out.weight"] @ y for y in np.concatenate(heads, axis=1)]

    def fed_forward(x: np.ndarray, layer: int) -> np.ndarray:
        hidden = w[f"blocks.{layer}.feed_forward.expand.weight"] @ rms_norm(x)
        return w[f"blocks.{layer}.feed_forward.out.weight"] @ np.array([max(v, 0.0) ** 2 for v in hidden])

    xs = embed(model, symbols)
    if c.reversible:
        ones = twos = [on_grid(x) for x in xs]
        for layer in range(c.num_layers):
            ones = [x + on_grid(u) for x, u in zip(ones, attended(twos, layer), strict=True)]
            twos = [x + on_grid(fed_forward(y, layer)) for x, y in zip(twos, ones, strict=True)]
        return [rms_norm(x + y) for x, y in zip(ones, twos, strict=True)]
    for layer in range(c.num_layers):
        xs = [x + u for x, u in zip(xs, attended(xs, layer), strict=True)]
        xs = [x + fed_forward(x, layer) for x in xs]
    return [rms_norm(x) for x in xs]


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
