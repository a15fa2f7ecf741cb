"""K, C and S: how ordered, how complex, how much like a reference. Pure functions on tensors; nothing here knows a model.

Each is in [0, 1], takes a batch, and is computed in float64.

- **K, negentropy**: 0 is noise, 1 is order. Of predictions (`negentropy`), or of bits (`bit_negentropy`).
- **C, Lempel-Ziv complexity**: 0 is a constant, 1 a fair coin, at every length (`lz_complexity`).
- **S, symbiosis**: 1 where predictions, or bits, agree with those of a reference (`symbiosis`).

`penalties.py` has what training can differentiate; `drift.py` watches their course.
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
LEAST_BITS = 8  # fewer say nothing about order or complexity
LONGEST_WORD = 12

# Mean number of LZ76 phrases of T fair coins, times log2(T) / T, for T = 2^3 .. 2^22: it falls to 1 (Lempel and Ziv 1976), but at
# 4,096 bits is still 4 % above. Measured over 16 million bits a length or more; a test draws coins of its own and compares.
# fmt: off
FAIR_COIN_RATIO = (
    1.4589, 1.3974, 1.3087, 1.2263, 1.1626, 1.1160, 1.0839, 1.0623, 1.0472, 1.0370,
    1.0298, 1.0249, 1.0213, 1.0186, 1.0163, 1.0147, 1.0133, 1.0121, 1.0112, 1.0103,
)
# fmt: on
FIRST_POWER = 3
CONSTANT_PHRASES = 2  # of any constant sequence: its first bit, and all the others


def negentropy(logits: Tensor) -> Tensor:
    """K of predictions: how far they are from a fair coin.

    Args:
        logits: (B, T, 2), log-odds of the two values of each bit; infinite ones are certain.

    Returns:
        (B,) in [0, 1], float64: 1 - the mean entropy in bits. 0: a fair coin everywhere; 1: certain everywhere.

    Raises:
        BitStreamError: another shape, no bit, or NaN.

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

    The entropy of all overlapping words of k bits, divided by k. Entropy from counts is too low by about (words that
    occur - 1) / (2 N ln 2) (Miller and Madow); that is added. The share of ones alone would not do: it is near 1/2 for any text.
    Only order within k bits is seen, so that of short windows looks lower: 0101... has 0.5 at 16 bits and 0.9 at 65,536.

    Args:
        bits: (B, T) zeros and ones.
        word_bits: k; not given: the longest, from 2 up to 12, of which every word could occur eight times.

    Returns:
        (B,) in [0, 1], float64. 0: all words equally often; 1: always the same.

    Raises:
        BitStreamError: not bits, or fewer than eight.

    Sources: Shannon 1951, "Prediction and entropy of printed English" (block entropies); Miller 1955, "Note on the bias of
    information estimates".
    """
    bits_BT = _checked(bits)
    B, T = bits_BT.shape
    k = min(LONGEST_WORD, max(2, T.bit_length() - 4)) if word_bits is None else word_bits
    if not 1 <= k <= LONGEST_WORD or k > T:
        raise BitStreamError(f"got words of {k} bits; 1 to {min(LONGEST_WORD, T)} are possible here. Try word_bits=4")
    N = T - k + 1
    word_BN = np.zeros((B, N), dtype=np.int64)
    for j in range(k):
        word_BN = 2 * word_BN + bits_BT[:, j : j + N]
    word_BN += (np.arange(B) << k)[:, None]
    count_BV = np.bincount(word_BN.ravel(), minlength=B << k).reshape(B, 1 << k)
    share_BV = count_BV / N
    logs_BV = np.log2(share_BV, out=np.zeros_like(share_BV), where=count_BV > 0)
    missing_B = ((count_BV > 0).sum(1) - 1) / (2 * N * math.log(2))
    rate_B = (missing_B - (share_BV * logs_BV).sum(1)) / k
    return torch.from_numpy(np.clip(1 - rate_B, 0.0, 1.0))


def lz_complexity(bits: Tensor | NDArray[np.generic]) -> Tensor:
    """C: Lempel-Ziv phrases, where a constant has 0 and fair coins have 1, at every length.

    (c - c0) / (c1 - c0) of c phrases, where c0 = 2 is what a constant has and c1 what fair coins of this length have on average,
    which was measured; cut at 1. With what is cut the mean of fair coins is 0.87 at 8 bits, 0.97 at 64, 0.996 at 2,048.

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

    1 - the Jensen-Shannon distance: the root of the mean divergence, in bits, of P(bit = 1) and the reference's. Bits are
    predictions that are certain: the divergence of a bit that the reference gave chance q is 1 + (q log2 q - (1 + q)
    log2 (1 + q)) / 2, between 0 (it was sure, and right) and 1 (sure, and wrong). Unlike a log-likelihood it is bounded, so that
    one impossible bit does not decide alone. The root makes it a metric, and puts English and noise on either side of 1/2.

    Args:
        p: (B, T) probabilities of a one, or bits.
        q: (B, T) the reference's probabilities.

    Returns:
        (B,) in [0, 1], float64.

    Raises:
        BitStreamError: shapes that differ, no bit, NaN, or values that are no probabilities.

    Sources: Lin 1991, "Divergence measures based on the Shannon entropy"; Endres and Schindelin 2003, "A new metric for
    probability distributions" (the root).
    """
    for name, x in (("p", p), ("q", q)):
        if x.shape != p.shape or x.ndim != 2 or not x.shape[1] or not bool(((x >= 0) & (x <= 1)).all()):
            raise BitStreamError(
                f"got {name} of shape {tuple(x.shape)}; probabilities in [0, 1] of shape (batch, bits), both alike, are "
                f"needed, without NaN. Try torch.sigmoid(logits)"
            )
    return 1 - divergence(p.double(), q.double()).mean(-1).clamp(0, 1).sqrt()


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of coins, in bits, element by element."""
    return binary_entropy((p + q) / 2) - (binary_entropy(p) + binary_entropy(q)) / 2


def binary_entropy(p: Tensor) -> Tensor:
    """Entropy of coins, in bits, element by element."""
    return (torch.special.entr(p) + torch.special.entr(1 - p)) / math.log(2)


def fair_coin_phrases(length: int) -> float:
    """Mean number of LZ76 phrases of so many fair coins: as measured, between powers of two and beyond by 1 / log2(T)."""
    powers = np.arange(FIRST_POWER, FIRST_POWER + len(FAIR_COIN_RATIO))
    ratio = np.interp(1 / math.log2(length), [0, *1 / powers[::-1]], [1, *FAIR_COIN_RATIO[::-1]])
    return float(ratio) * length / math.log2(length)


def _odds(logits: Tensor) -> Tensor:
    """Logit of a one, in float64; two infinite log-odds of one sign say nothing, like NaN."""
    odds_BT = logits[..., 1].double() - logits[..., 0].double()
    if bool(odds_BT.isnan().any()):
        raise BitStreamError(
            "got NaN among the logits; log-odds are needed. Try a lower learning rate, or a checkpoint before"
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
