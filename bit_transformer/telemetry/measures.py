"""K, C and S: order, complexity, similarity to a reference. Pure functions on tensors, independent of models.

Each is in [0, 1], takes a batch, and is computed in float64.

- **K, negentropy**: 0 is noise, 1 is order. Of predictions (`negentropy`) or of bits (`bit_negentropy`).
- **C, Lempel-Ziv complexity**: 0 is a constant, 1 is fair coin flips, at every length (`lz_complexity`).
- **S, symbiosis**: 1 if predictions, or bits, agree with a reference (`symbiosis`).

`penalties.py` has differentiable versions for training; `drift.py` detects changes over time.
"""

# Shapes: B batch, T bits.
from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bit_transformer.errors import BitStreamError

METRICS = ("K", "C", "S")
LEAST_BITS = 8  # too few bits for order or complexity below this
LONGEST_WORD = 12

# Mean number of LZ76 phrases of T fair coin flips, times log2(T) / T, for T = 2^3 .. 2^22. The limit is 1 (Lempel and Ziv 1976); at
# 4,096 bits it is still 4 % above. Measured over at least 16 million bits per length; a test compares with its own coin flips.
# fmt: off
FAIR_COIN_RATIO = (
    1.4589, 1.3974, 1.3087, 1.2263, 1.1626, 1.1160, 1.0839, 1.0623, 1.0472, 1.0370,
    1.0298, 1.0249, 1.0213, 1.0186, 1.0163, 1.0147, 1.0133, 1.0121, 1.0112, 1.0103,
)
# fmt: on
FIRST_POWER = 3
CONSTANT_PHRASES = 2  # of any constant sequence: its first bit, and all other bits


def negentropy(logits: Tensor) -> Tensor:
    """K of predictions: how far they are from a fair coin flip.

    Args:
        logits: (B, T, 2) of the two values of each bit; may be infinite.

    Returns:
        (B,) in [0, 1], float64: 1 - the mean entropy in bits. 0: probability 1/2 everywhere; 1: certain everywhere.

    Raises:
        BitStreamError: another shape, no bits, or NaN.

    Source: Brillouin 1953, "The negentropy principle of information"; Shannon entropy.
    """
    if logits.ndim != 3 or logits.shape[-1] != 2 or not logits.shape[1]:
        raise BitStreamError(
            f"got logits of shape {tuple(logits.shape)}; (batch, bits, 2) is needed. Try model(bits)[0]"
        )
    p_BT = torch.sigmoid(_odds(logits))
    return (1 - binary_entropy(p_BT)).mean(-1)


def bit_negentropy(bits: Tensor | NDArray[np.generic], word_bits: int | None = None) -> Tensor:
    """K of bits: 1 - their block-entropy rate.

    The rate is the entropy of all overlapping words of k bits, divided by k. Entropy from counts is too low by about (words that
    occur - 1) / (2 N ln 2) (Miller and Madow); this is corrected. The fraction of ones is not enough: it is near 1/2 for any text.
    K measures order within k bits only, so short windows have lower values: 0101... has 0.5 at 16 bits and 0.9 at 65,536.

    Args:
        bits: (B, T) zeros and ones.
        word_bits: k. Default: the largest from 2 to 12 for which each word could occur eight times.

    Returns:
        (B,) in [0, 1], float64. 0: all words equally frequent; 1: always the same word.

    Raises:
        BitStreamError: not bits, or fewer than eight.

    Sources: Shannon 1951, "Prediction and entropy of printed English" (block entropies); Miller 1955, "Note on the bias of
    information estimates".
    """
    bits_BT = _checked(bits)
    B, T = bits_BT.shape
    k = min(LONGEST_WORD, max(2, T.bit_length() - 4)) if word_bits is None else word_bits
    if not 1 <= k <= LONGEST_WORD or k > T:
        raise BitStreamError(f"got word_bits={k}; 1 to {min(LONGEST_WORD, T)} is needed here. Try word_bits=4")
    N = T - k + 1
    word_BN = np.zeros((B, N), dtype=np.int64)
    for j in range(k):
        word_BN = 2 * word_BN + bits_BT[:, j : j + N]
    word_BN += (np.arange(B) << k)[:, None]
    count_BV = np.bincount(word_BN.ravel(), minlength=B << k).reshape(B, 1 << k)
    frequency_BV = count_BV / N
    logs_BV = np.log2(frequency_BV, out=np.zeros_like(frequency_BV), where=count_BV > 0)
    missing_B = ((count_BV > 0).sum(1) - 1) / (2 * N * math.log(2))
    rate_B = (missing_B - (frequency_BV * logs_BV).sum(1)) / k
    return torch.from_numpy(np.clip(1 - rate_B, 0.0, 1.0))


def lz_complexity(bits: Tensor | NDArray[np.generic]) -> Tensor:
    """C: the number of Lempel-Ziv phrases, scaled so that a constant has 0 and fair coin flips have 1, at every length.

    C is (c - c0) / (c1 - c0) for c phrases, cut at 1. A constant has c0 = 2 phrases; c1 is the measured mean for fair coin flips of
    this length. Because of the cut, the mean C of fair coin flips is 0.87 at 8 bits, 0.97 at 64, 0.996 at 2,048.

    Args:
        bits: (B, T) zeros and ones.

    Returns:
        (B,) in [0, 1], float64.

    Raises:
        BitStreamError: not bits, or fewer than eight.

    Source: Lempel and Ziv 1976, "On the complexity of finite sequences".
    """
    from bit_transformer.telemetry.lempel_ziv import count_phrases  # numba, where it is needed

    bits_BT = _checked(bits)
    above_B = count_phrases(bits_BT) - CONSTANT_PHRASES
    fair = fair_coin_phrases(bits_BT.shape[1]) - CONSTANT_PHRASES
    return torch.from_numpy(np.clip(above_B / fair, 0.0, 1.0))


def symbiosis(p: Tensor, q: Tensor) -> Tensor:
    """S: agreement of predictions, or of bits, with a reference.

    S is 1 - the Jensen-Shannon distance, which is the root of the mean divergence in bits between P(bit = 1) and the reference's. Bits
    count as certain predictions: the divergence of a bit to which the reference gave probability q is 1 + (q log2 q - (1 + q)
    log2 (1 + q)) / 2, from 0 (certain and right) to 1 (certain and wrong). Unlike a log-likelihood it is bounded, so one
    impossible bit cannot dominate. The root makes it a metric, and puts English and noise on different sides of 1/2.

    Args:
        p: (B, T) probabilities of a one, or bits.
        q: (B, T) the reference's probabilities.

    Returns:
        (B,) in [0, 1], float64.

    Raises:
        BitStreamError: different shapes, no bits, NaN, or values outside [0, 1].

    Sources: Lin 1991, "Divergence measures based on the Shannon entropy"; Endres and Schindelin 2003, "A new metric for
    probability distributions" (the root).
    """
    for name, x in (("p", p), ("q", q)):
        if x.shape != p.shape or x.ndim != 2 or not x.shape[1] or not bool(((x >= 0) & (x <= 1)).all()):
            raise BitStreamError(
                f"got {name} of shape {tuple(x.shape)}; probabilities in [0, 1] without NaN are needed, p and q of the same "
                f"shape (batch, bits). Try torch.sigmoid(logits)"
            )
    return 1 - divergence(p.double(), q.double()).mean(-1).clamp(0, 1).sqrt()


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of Bernoulli distributions, in bits, element by element."""
    return binary_entropy((p + q) / 2) - (binary_entropy(p) + binary_entropy(q)) / 2


def binary_entropy(p: Tensor) -> Tensor:
    """Entropy of Bernoulli distributions, in bits, element by element."""
    return (torch.special.entr(p) + torch.special.entr(1 - p)) / math.log(2)


def fair_coin_phrases(length: int) -> float:
    """Mean number of LZ76 phrases of `length` fair coin flips, as measured; interpolated and extrapolated by 1 / log2(T)."""
    powers = np.arange(FIRST_POWER, FIRST_POWER + len(FAIR_COIN_RATIO))
    ratio = np.interp(1 / math.log2(length), [0, *1 / powers[::-1]], [1, *FAIR_COIN_RATIO[::-1]])
    return float(ratio) * length / math.log2(length)


def _odds(logits: Tensor) -> Tensor:
    """Log-odds of a one, in float64. Two infinite logits of the same sign give NaN, which is refused."""
    odds_BT = logits[..., 1].double() - logits[..., 0].double()
    if bool(odds_BT.isnan().any()):
        raise BitStreamError(
            "got NaN among the logits; numbers are needed. Try a lower learning rate, or an earlier checkpoint"
        )
    return odds_BT


def _checked(bits: Tensor | NDArray[np.generic]) -> NDArray[np.uint8]:
    array = bits.detach().cpu().numpy() if isinstance(bits, Tensor) else np.asarray(bits)
    if array.ndim != 2 or array.shape[1] < LEAST_BITS:
        raise BitStreamError(
            f"got bits of shape {array.shape}; (batch, length) with a length of at least {LEAST_BITS} is needed. "
            f"Try bits[None]"
        )
    if array.size and (array.dtype.kind not in "bui" or array.min() < 0 or array.max() > 1):
        raise BitStreamError(
            f"got values from {array.min()} to {array.max()} of {array.dtype}; each must be 0 or 1, of an integer type. "
            f"Try bytes_to_bits for bytes"
        )
    return np.ascontiguousarray(array, dtype=np.uint8)
