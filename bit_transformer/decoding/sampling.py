"""Sampling: draws the next patch of every stream from the head's logits.

A patch is drawn from its exact distribution over all 2^P values, so temperature, top-p and repetition penalties mean the same as for
tokens. Computed in float64. Bits of a patch that are known (a prompt that ends inside the patch, or a longer prompt than another) and
even parity are masks over the same distribution.
"""

# Shapes: B streams, P bits of a patch, V = 2^P symbols.
from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bit_transformer.bit_io import Bits, find_parity_errors
from bit_transformer.config import ModelConfig, Sampling
from bit_transformer.errors import ParityError
from bit_transformer.nn.patching import draw_patches, leaf_log_probs


class Sampler:
    """Draws the next patch of every stream; in NumPy, because the arrays are small.

    Args:
        prompts: the bits of each prompt; they are never changed.
        history: the patches of each stream so far.

    Raises:
        ParityError: a prompt with odd parity, if parity is enforced.
    """

    def __init__(self, config: ModelConfig, prompts: Sequence[Bits], how: Sampling, history: list[list[int]]) -> None:
        self.config, self.how, self.prompts, self.history = config, how, prompts, history
        self.longest = max(len(bits) for bits in prompts)
        self.parity = config.parity and how.force_parity
        if self.parity:
            for bits in prompts:
                _check_parity(bits)
        known = len(history[0]) * config.patch_bits
        self.odd = [int(bits[known // 9 * 9 : known].sum()) & 1 for bits in prompts]
        self.random = np.random.default_rng(how.seed)
        self.followers: list[dict[tuple[int, ...], set[int]]] = [defaultdict(set) for _ in prompts]
        if how.no_repeat_ngram:
            for index, past in enumerate(history):
                for end in range(how.no_repeat_ngram, len(past) + 1):
                    self._note(index, past[:end])
        self.plain = how.top_p == 1 and how.repetition_penalty == 1 and not how.no_repeat_ngram

    def __call__(self, node_logit_BV: NDArray[np.float32], place: int) -> NDArray[np.int64]:
        """Sample the patches at index `place` of every stream."""
        if self.is_free(place):
            return self._walk(node_logit_BV)
        masked = self.parity or place * self.config.patch_bits < self.longest
        score_BV = leaf_log_probs(node_logit_BV)
        if masked:
            self._mask(score_BV, place)
        if not self.plain:
            self._discourage(score_BV)
        patch_B = draw_patches(score_BV, self.how.temperature, self.random)
        self._remember(patch_B.tolist(), place)
        return patch_B

    def is_free(self, place: int) -> bool:
        """Whether bits from patch `place` on are drawn one by one: temperature 1, nothing given, masked or discouraged."""
        return (
            self.plain
            and self.how.temperature == 1
            and not self.parity
            and place * self.config.patch_bits >= self.longest
        )

    def draws(self, units: int, unit_bits: int) -> NDArray[np.float64]:
        """For so many units that are free: the draws that `__call__` would make, patch by patch: (units, unit bits, B)."""
        B, P = len(self.prompts), self.config.patch_bits
        return np.ascontiguousarray(
            self.random.logistic(size=(units * unit_bits // P, B, P)).transpose(0, 2, 1).reshape(units, unit_bits, B)
        )

    def _walk(self, node_logit_BV: NDArray[np.float32]) -> NDArray[np.int64]:
        """Sample down the tree, bit by bit. Without masks and penalties, P draws are enough, and the V leaves are not needed.

        A logistic random variable is below z with probability sigmoid(z).
        """
        V = node_logit_BV.shape[1]
        nodes = [1] * len(node_logit_BV)
        for index, draws in enumerate(self.random.logistic(size=(len(nodes), self.config.patch_bits)).tolist()):
            logit_V = node_logit_BV[index]
            for draw in draws:
                nodes[index] = 2 * nodes[index] + int(draw < float(logit_V[nodes[index]]))
        return np.array(nodes) - V

    def _mask(self, score_BV: NDArray[np.float64], place: int) -> None:
        """Exclude patches that contradict the prompt or break parity."""
        P = self.config.patch_bits
        begin = place * P
        for index, bits in enumerate(self.prompts):
            if begin < len(bits):
                score_BV[index, ~begins_with(P, tuple(bits[begin : begin + P].tolist()))] = -np.inf
            if self.parity:
                score_BV[index, ~even_bytes(P, begin % 9, self.odd[index])[0]] = -np.inf

    def _discourage(self, score_BV: NDArray[np.float64]) -> None:
        """Apply the repetition penalty, exclude repeated n-grams, and apply top-p."""
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
                self.odd[index] = int(even_bytes(P, place * P % 9, self.odd[index])[1][patch])
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
            f"got a prompt with odd parity at byte offset {wrong[0]}; a prompt must have even parity because it is enforced. "
            f"Try repair_parity, or force_parity=False",
            wrong.tolist(),
        )


@lru_cache(maxsize=1 << 12)
def begins_with(patch_bits: int, prefix: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which of the V patches begin with the given bits."""
    value = int("".join(map(str, prefix)), 2)
    return np.arange(1 << patch_bits) >> (patch_bits - len(prefix)) == value


@lru_cache(maxsize=64)
def even_bytes(patch_bits: int, phase: int, odd: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which of the V patches keep every byte's parity even, and whether the incomplete byte after each is odd so far.

    Args:
        phase: bits of the incomplete byte before the patch.
        odd: whether those bits hold an odd number of ones.
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
