"""K, C, S and the penalties again, with loops over single bits in Python's floats."""

from __future__ import annotations

import math
from collections import Counter


def entropy(p: float) -> float:
    return -sum(x * math.log2(x) for x in (p, 1 - p) if x > 0)


def negentropy(odds: list[float]) -> float:
    """Of log-odds of a one."""
    return sum(1 - entropy(1 / (1 + math.exp(-z))) for z in odds) / len(odds)


def bit_negentropy(bits: list[int], k: int) -> float:
    words = [tuple(bits[i : i + k]) for i in range(len(bits) - k + 1)]
    count = Counter(words)
    plain = -sum(c / len(words) * math.log2(c / len(words)) for c in count.values())
    corrected = plain + (len(count) - 1) / (2 * len(words) * math.log(2))
    return min(1.0, max(0.0, 1 - corrected / k))


def lz76_phrases(bits: list[int]) -> int:
    """Every phrase is the shortest stretch that does not occur before its own end."""
    text = "".join(map(str, bits))
    begin, phrases = 0, 0
    while begin < len(text):
        length = 1
        while begin + length <= len(text) and text[begin : begin + length] in text[: begin + length - 1]:
            length += 1
        phrases += 1
        begin += length
    return phrases


def divergence(p: float, q: float) -> float:
    """Jensen-Shannon divergence of two coins, from Kullback and Leibler's."""

    def against(a: float, b: float) -> float:
        return sum(x * math.log2(x / y) for x, y in ((a, b), (1 - a, 1 - b)) if x > 0)

    middle = (p + q) / 2
    return (against(p, middle) + against(q, middle)) / 2


def symbiosis(p: list[float], q: list[float]) -> float:
    return 1 - math.sqrt(sum(divergence(a, b) for a, b in zip(p, q, strict=True)) / len(p))


def followers(patches: list[int], context: int) -> list[int]:
    """For each place, what followed the latest earlier occurrence of the patches before it; -1 where there is none."""
    found = []
    for place in range(len(patches)):
        before = patches[place - context : place]
        match = -1
        for end in range(context, place):
            if len(before) == context and patches[end - context : end] == before:
                match = patches[end]
        found.append(match)
    return found


def repetition(chances: list[list[float]], patches: list[int], context: int) -> float:
    """Mean probability of repeating, over bits whose patch began as the repetition does. Chances are of a one, by patch and bit."""
    total, count = 0.0, 0
    for chance, patch, follower in zip(chances, patches, followers(patches, context), strict=True):
        for j in range(len(chance)):
            if follower < 0 or follower >> (len(chance) - j) != patch >> (len(chance) - j):
                break
            bit = follower >> (len(chance) - 1 - j) & 1
            total += chance[j] if bit else 1 - chance[j]
            count += 1
    return total / max(1, count)
