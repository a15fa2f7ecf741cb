"""Generation: cached, batched, streamed a byte at a time.

The next patch is drawn from its exact distribution over all 2^P values, so temperature, top-p and repetition controls
mean what they mean for tokens; draws are made in float64. What is already known of a patch (the end of a prompt that stops
inside one, a longer prompt beside a shorter one) and even parity are masks over the same distribution.
"""

# Shapes: B streams, T bits, N patches, P bits of a patch, V = 2^P symbols.
from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bit_transformer.bit_io import Bits, ParityPolicy, as_bits, bits_to_bytes, bytes_to_bits, find_parity_errors
from bit_transformer.config import Sampling
from bit_transformer.errors import BitStreamError, ConfigError, ParityError
from bit_transformer.model import BitTransformerLM
from bit_transformer.nn.cache import DecodeCache
from bit_transformer.nn.patching import draw_patches, leaf_log_probs, pack_patches


@torch.inference_mode()
def generate(
    model: BitTransformerLM,
    prompt_BT: Tensor,
    max_new_bits: int,
    sampling: Sampling | None = None,
    *,
    long: bool = False,
) -> Tensor:
    """Continue B prompts of one length.

    Args:
        prompt_BT: zeros and ones; T may be 0 or end inside a patch.
        long: slide the window when it is full; otherwise prompt and continuation must fit `max_seq_len`.

    Returns:
        (B, max_new_bits) of dtype uint8: the continuation alone.

    Raises:
        BitStreamError: bits that are no bits, or more of them than the window holds.
    """
    prompts = [as_bits(row) for row in prompt_BT]
    T, P = prompt_BT.shape[1], model.config.patch_bits
    wanted = -(-(T + max_new_bits) // P)
    pieces = list(islice(_patches(model, prompts, sampling, long), wanted - T // P))
    bits_BT = np.concatenate(pieces, axis=1) if pieces else np.empty((len(prompts), 0), dtype=np.uint8)
    return torch.from_numpy(bits_BT[:, T % P :][:, :max_new_bits])


def infer_long(
    model: BitTransformerLM, prompt_BT: Tensor, max_new_bits: int, sampling: Sampling | None = None
) -> Tensor:
    """`generate` past `max_seq_len`: a full window forgets its older half and keeps the rest of the cache as it is."""
    return generate(model, prompt_BT, max_new_bits, sampling, long=True)


def generate_bytes(
    model: BitTransformerLM,
    prompts: Sequence[bytes],
    max_bytes: int,
    sampling: Sampling | None = None,
    *,
    stop: Sequence[bytes] = (),
) -> list[bytes]:
    """Continue several prompts, of any lengths, as one batch; the window slides when it is full.

    Args:
        stop: a stream ends before the first of these.

    Returns:
        the continuations, at most `max_bytes` each.
    """
    outputs = [bytearray() for _ in prompts]
    running = set(range(len(prompts))) if max_bytes else set()
    for row in stream_rows(model, prompts, sampling) if running else ():
        for index in running.copy():
            outputs[index] += row[index]
            end = _end(outputs[index], 0, stop)
            if end is not None:
                del outputs[index][end:]
            if end is not None or len(outputs[index]) >= max_bytes:
                running.discard(index)
        if not running:
            break
    return [bytes(output[:max_bytes]) for output in outputs]


def stream_bytes(
    model: BitTransformerLM,
    prompt: bytes,
    max_bytes: int,
    sampling: Sampling | None = None,
    *,
    stop: Sequence[bytes] = (),
) -> Iterator[bytes]:
    """Continue one prompt, giving each byte as soon as it is complete and cannot be part of a stop string."""
    longest = max(map(len, stop), default=1)
    text, given = b"", 0
    for (piece,) in stream_rows(model, [prompt], sampling) if max_bytes else ():
        text += piece
        end = _end(text, given, stop)
        done = end is not None or len(text) >= max_bytes
        safe = min(max_bytes, len(text) if end is None else end) if done else len(text) - (longest - 1)
        if safe > given:
            yield text[given:safe]
            given = safe
        if done:
            return


def _end(text: bytes | bytearray, begin: int, stop: Sequence[bytes]) -> int | None:
    """Where the first stop string at or after `begin` starts."""
    return min((at for s in stop if (at := text.find(s, begin)) >= 0), default=None)


def stream_rows(
    model: BitTransformerLM, prompts: Sequence[bytes], sampling: Sampling | None = None
) -> Iterator[list[bytes]]:
    """Continue several prompts without end: the complete new bytes of every stream, after each patch."""
    c = model.config
    bits = [bytes_to_bits(prompt, parity=c.parity) for prompt in prompts]
    shortest = min(len(b) for b in bits)
    pending = [np.empty(0, dtype=np.uint8) for _ in prompts]
    # A stream's first bits belong to its prompt: those after the last whole patch of the shortest prompt.
    skip = [len(b) - shortest // c.patch_bits * c.patch_bits for b in bits]
    policy: ParityPolicy = "raise" if sampling is None or sampling.force_parity else "keep"
    for bit_BP in _patches(model, bits, sampling, long=True):
        row: list[bytes] = []
        for index, fresh in enumerate(bit_BP):
            used = min(skip[index], len(fresh))
            skip[index] -= used
            have = np.concatenate((pending[index], fresh[used:]))
            whole = len(have) // c.byte_bits * c.byte_bits
            row.append(bits_to_bytes(have[:whole], parity=c.parity, on_error=policy) if whole else b"")
            pending[index] = have[whole:]
        yield row


def check_learning(model: BitTransformerLM, how: Sampling) -> None:
    """Refuse to learn where nothing can.

    Raises:
        ConfigError: the model has no experts.
    """
    if how.learn != "nothing" and model.config.experts is None:
        raise ConfigError(f"learn={how.learn!r} needs experts; the model has none. Try learn='nothing'")


# ---- one patch after the other ----


def _patches(model: BitTransformerLM, prompts: Sequence[Bits], sampling: Sampling | None, long: bool) -> Iterator[Bits]:
    """Draw without end: bit_BP of each patch, from the first on that is not wholly known for all streams."""
    was_training = model.training
    model.eval()
    try:
        yield from _drawn(model, prompts, sampling or Sampling(), long)
    finally:
        model.train(was_training)


@torch.inference_mode()
def _drawn(model: BitTransformerLM, prompts: Sequence[Bits], how: Sampling, long: bool) -> Iterator[Bits]:
    c = model.config
    with np.errstate(over="ignore", invalid="ignore"):
        cache = model.new_cache(len(prompts))
        node_logits(model, cache)  # weights that are no numbers may show here alone: integers forget it
    known = min(len(bits) for bits in prompts) // c.patch_bits
    head = torch.from_numpy(np.stack([bits[: known * c.patch_bits] for bits in prompts])).to(cache.recent_BN.device)
    history_BN = pack_patches(head, c.patch_bits) if known else head.long()
    check_learning(model, how)
    if cache.experts is not None and how.learn != "nothing":
        cache.experts.learn()
    feed(model, cache, history_BN, long)
    pick = _Picker(model, prompts, how, history_BN.tolist())
    shift_P = np.arange(c.patch_bits - 1, -1, -1)
    while True:
        patch_B1 = pick(node_logits(model, cache), known)[:, None]
        yield (patch_B1 >> shift_P & 1).astype(np.uint8)
        known += 1
        if cache.experts is not None and how.learn == "prompt":  # a longer prompt than the shortest goes on
            cache.experts.learning = [known * c.patch_bits <= len(bits) for bits in prompts]
        feed(model, cache, torch.from_numpy(patch_B1).to(head.device), long)


def node_logits(model: BitTransformerLM, cache: DecodeCache) -> NDArray[np.float32]:
    """`BitTransformerLM.node_logits`, looked at: (B, V).

    Raises:
        BitStreamError: one is NaN or infinite.
    """
    logit_BV = model.node_logits(cache)
    if not np.isfinite(logit_BV).all():
        raise BitStreamError(
            "got NaN or infinity among the model's logits; nothing can be drawn. Try an earlier checkpoint"
        )
    return logit_BV


@np.errstate(over="ignore", invalid="ignore")  # weights that are no numbers are refused by their logits
def feed(model: BitTransformerLM, cache: DecodeCache, patch_BN: Tensor, long: bool) -> None:
    """Advance a cache by any number of patches, sliding the window when it is full and `long` allows it."""
    while patch_BN.shape[1]:
        room = cache.capacity - cache.length
        if not room and long:
            room = max(1, model.config.max_patches // 2)
            model.slide(cache, room)
        if patch_BN.shape[1] <= room or not long:
            model.advance(patch_BN, cache)
            return
        model.advance(patch_BN[:, :room], cache)
        patch_BN = patch_BN[:, room:]


class _Picker:
    """Draws the next patch of every stream from the head's logits; in NumPy, for these are small arrays."""

    def __init__(
        self, model: BitTransformerLM, prompts: Sequence[Bits], how: Sampling, history: list[list[int]]
    ) -> None:
        self.config, self.how, self.prompts, self.history = model.config, how, prompts, history
        self.longest = max(len(bits) for bits in prompts)
        self.parity = model.config.parity and how.force_parity
        if self.parity:
            for bits in prompts:
                _check_parity(bits)
        known = len(history[0]) * model.config.patch_bits
        self.odd = [int(bits[known // 9 * 9 : known].sum()) & 1 for bits in prompts]
        self.random = np.random.default_rng(how.seed)
        self.followers: list[dict[tuple[int, ...], set[int]]] = [defaultdict(set) for _ in prompts]
        if how.no_repeat_ngram:
            for index, past in enumerate(history):
                for end in range(how.no_repeat_ngram, len(past) + 1):
                    self._note(index, past[:end])
        self.plain = how.top_p == 1 and how.repetition_penalty == 1 and not how.no_repeat_ngram

    def __call__(self, node_logit_BV: NDArray[np.float32], place: int) -> NDArray[np.int64]:
        """The patches at index `place` of every stream."""
        masked = self.parity or place * self.config.patch_bits < self.longest
        if self.plain and self.how.temperature == 1 and not masked:
            return self._walk(node_logit_BV)
        score_BV = leaf_log_probs(node_logit_BV)
        if masked:
            self._mask(score_BV, place)
        if not self.plain:
            self._discourage(score_BV)
        patch_B = draw_patches(score_BV, self.how.temperature, self.random)
        self._remember(patch_B.tolist(), place)
        return patch_B

    def _walk(self, node_logit_BV: NDArray[np.float32]) -> NDArray[np.int64]:
        """Down the tree, bit by bit: P draws do for an untouched distribution, where all V leaves are not needed.

        A logistic variate is below z with probability sigmoid(z).
        """
        V = node_logit_BV.shape[1]
        nodes = [1] * len(node_logit_BV)
        for index, draws in enumerate(self.random.logistic(size=(len(nodes), self.config.patch_bits)).tolist()):
            logit_V = node_logit_BV[index]
            for draw in draws:
                nodes[index] = 2 * nodes[index] + int(draw < logit_V[nodes[index]])
        return np.array(nodes) - V

    def _mask(self, score_BV: NDArray[np.float64], place: int) -> None:
        """Rule out what contradicts the prompt or breaks parity."""
        P = self.config.patch_bits
        begin = place * P
        for index, bits in enumerate(self.prompts):
            if begin < len(bits):
                score_BV[index, ~_begins_with(P, tuple(bits[begin : begin + P].tolist()))] = -np.inf
            if self.parity:
                score_BV[index, ~_even_bytes(P, begin % 9, self.odd[index])[0]] = -np.inf

    def _discourage(self, score_BV: NDArray[np.float64]) -> None:
        """Lower what was seen recently, rule out repeated n-grams, cut the tail off."""
        for row_V, past, followers in zip(score_BV, self.history, self.followers, strict=True):
            if self.how.repetition_penalty > 1 and past:
                row_V[list(set(past[-self.how.repetition_window :]))] -= math.log(self.how.repetition_penalty)
            n = self.how.no_repeat_ngram
            banned = list(followers.get(tuple(past[len(past) - n + 1 :]), ())) if 0 < n <= len(past) + 1 else []
            if banned and np.isfinite(row_V).sum() > np.isfinite(row_V[banned]).sum():
                row_V[banned] = -np.inf
        if self.how.top_p < 1:
            scaled_BV = score_BV / (self.how.temperature or 1)
            weight_BV = np.exp(scaled_BV - scaled_BV.max(1, keepdims=True))
            weight_BV /= weight_BV.sum(1, keepdims=True)
            order_BV = np.argsort(-weight_BV, axis=1, kind="stable")
            ordered_BV = np.take_along_axis(weight_BV, order_BV, axis=1)
            tail_BV = ordered_BV.cumsum(1) - ordered_BV >= self.how.top_p
            kept_BV = np.where(tail_BV, -np.inf, np.take_along_axis(score_BV, order_BV, axis=1))
            np.put_along_axis(score_BV, order_BV, kept_BV, axis=1)

    def _remember(self, patches: list[int], place: int) -> None:
        P = self.config.patch_bits
        for index, patch in enumerate(patches):
            if self.parity:
                self.odd[index] = int(_even_bytes(P, place * P % 9, self.odd[index])[1][patch])
            if not self.plain:
                self.history[index].append(patch)
                if self.how.no_repeat_ngram and len(self.history[index]) >= self.how.no_repeat_ngram:
                    self._note(index, self.history[index])

    def _note(self, index: int, past: list[int]) -> None:
        n = self.how.no_repeat_ngram
        self.followers[index][tuple(past[len(past) - n : -1])].add(past[-1])


def _check_parity(bits: Bits) -> None:
    wrong = find_parity_errors(bits[: len(bits) // 9 * 9])
    if len(wrong):
        raise ParityError(
            f"got a prompt with odd parity at byte offset {wrong[0]}; a prompt must have even parity where it is enforced. "
            f"Try repair_parity, or force_parity=False",
            wrong.tolist(),
        )


@lru_cache(maxsize=1 << 12)
def _begins_with(patch_bits: int, prefix: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which of the V patches begin with some bits."""
    value = int("".join(map(str, prefix)), 2)
    return np.arange(1 << patch_bits) >> (patch_bits - len(prefix)) == value


@lru_cache(maxsize=64)
def _even_bytes(patch_bits: int, phase: int, odd: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which of the V patches keep every byte's parity even, and whether the byte left open after them is odd so far.

    Args:
        phase: bits of the open byte that came before the patch.
        odd: whether these hold an odd number of ones.
    """
    patch_V = np.arange(1 << patch_bits)
    allowed_V = np.ones(len(patch_V), dtype=bool)
    odd_V = np.full(len(patch_V), odd)
    for j in range(patch_bits):
        odd_V = odd_V ^ (patch_V >> (patch_bits - 1 - j) & 1)
        if (phase + j) % 9 == 8:
            allowed_V &= odd_V == 0
            odd_V = np.zeros_like(odd_V)
    return allowed_V, odd_V
