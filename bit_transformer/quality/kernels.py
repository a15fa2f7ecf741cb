"""The loops of measuring documents, compiled by numba: what a text costs, and how regular its bits are.

They let go of Python's lock, so documents are measured on all cores. The results are those of `surprisal.reading`, `telemetry.measures.symbiosis`
and `telemetry.measures.bit_negentropy`, which make arrays and tensors for every document; a test compares them.
"""

from __future__ import annotations

import math

import numpy as np

from bit_transformer.compiled import compiled


@compiled
def add_up(data_N, one_NU, costs, divergences, at_L, bits_L, apart_L):
    """What the first `at_L[i]` bytes cost, in bits, and how far they are from what was said of them: sums over bits.

    Args:
        one_NU: P(bit = 1) in 1/65536. `costs`, `divergences`: by the probability of a bit's value.
        at_L: ascending; the last is N.
    """
    cost, apart, place = 0.0, 0.0, 0
    for i in range(len(data_N)):
        byte = np.int64(data_N[i])
        for j in range(8):
            one = np.int64(one_NU[i, j])
            said = one if byte >> (7 - j) & 1 else 65536 - one
            cost += costs[said]
            apart += divergences[said]
        while place < len(at_L) and at_L[place] == i + 1:
            bits_L[place] = cost
            apart_L[place] = apart
            place += 1


@compiled
def negentropy(bits_T, word_bits, count_V):
    """K of bits: 1 - their block-entropy rate, as `bit_negentropy`. `count_V`: room for 2^word_bits counts."""
    words = len(bits_T) - word_bits + 1
    count_V[:] = 0
    mask = (1 << word_bits) - 1
    word = 0
    for i in range(len(bits_T)):
        word = (word << 1 | np.int64(bits_T[i])) & mask
        if i >= word_bits - 1:
            count_V[word] += 1
    entropy, there = 0.0, 0
    for value in range(mask + 1):
        if count_V[value]:
            there += 1
            share = count_V[value] / words
            entropy -= share * math.log2(share)
    rate = (entropy + (there - 1) / (2.0 * words * math.log(2.0))) / word_bits
    return min(1.0, max(0.0, 1.0 - rate))
