"""Paired comparisons: intervals, exact tests, and how many pairs a difference needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean, stdev

import numpy as np
from numpy.typing import NDArray

from bit_transformer.errors import ConfigError

EXACT = 20  # most pairs of which all 2^n flips are counted
FLIPS, DRAWN = 200_000, 5_000  # drawn for more pairs, so many at a time
LEAST_BOOTSTRAP = 10  # values
RESAMPLED = 1 << 22  # values of resampled means at a time
SIMULATED, DRAWS = 12, 4_000  # most pairs for which the power of flipped signs is simulated, and how often
MOST_SEEDS = 10_000
_GRID = 2001  # points of the integral over the deviation


@dataclass(frozen=True)
class PairedTest:
    """A paired comparison of two rows of results, a minus b.

    Attributes:
        n: pairs.
        difference: mean of a - b.
        low, high: its 95 % interval, by Student's t.
        p: two-sided, by flipping the signs of the differences: exact up to 20 pairs.
        p_corrected: times the number of comparisons (Bonferroni), at most 1.
        effect: difference / its standard deviation between pairs; None if they are all equal.
        smallest_p: that so many pairs can reach: 2 / 2^n.
    """

    n: int
    difference: float
    low: float
    high: float
    p: float
    p_corrected: float
    effect: float | None
    smallest_p: float


def paired_test(a: Sequence[float], b: Sequence[float], comparisons: int = 1) -> PairedTest:
    """Compare paired results.

    Raises:
        ConfigError: different lengths, fewer than two pairs, or numbers that are not finite.

    Source: Fisher 1935, "The design of experiments" (the test by flipped signs).
    """
    differences = [x - y for x, y in zip(a, b, strict=False)]
    if len(a) != len(b) or len(a) < 2 or not all(abs(value) < 1e100 for value in differences):
        raise ConfigError(
            f"got {len(a)} and {len(b)} results; two rows of at least two finite numbers are needed, paired in order. Try one per seed",
            field="a",
        )
    n, middle, spread = len(differences), mean(differences), stdev(differences)
    half = student_quantile(0.975, n - 1) * spread / math.sqrt(n)
    p = _flipped(np.array(differences))
    return PairedTest(
        n=n,
        difference=middle,
        low=middle - half,
        high=middle + half,
        p=p,
        p_corrected=min(1.0, p * comparisons),
        effect=middle / spread if spread > 1e-12 * max(map(abs, (*a, *b))) else None,
        smallest_p=2.0 ** (1 - n),
    )


def _flipped(differences_N: NDArray[np.float64]) -> float:
    """Fraction of sign flips with a sum at least as large."""
    n, least = len(differences_N), abs(differences_N.sum()) * (1 - 1e-12)
    if n <= EXACT:
        sums = np.zeros(1)
        for difference in np.abs(differences_N):
            sums = np.concatenate((sums + difference, sums - difference))
        return float((np.abs(sums) >= least).mean())
    draw, as_large = np.random.default_rng(0), 1  # the differences as they are
    for _ in range(FLIPS // DRAWN):
        signs = 2.0 * draw.integers(0, 2, (DRAWN, n)) - 1
        as_large += int((np.abs(signs @ differences_N) >= least).sum())
    return as_large / (FLIPS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values, corrected for how many tests there are: claiming those of at most alpha makes one or more false claims with probability at most alpha.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    corrected, most = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        most = max(most, min(1.0, p_values[i] * (len(p_values) - rank)))
        corrected[i] = most
    return corrected


def bootstrap_interval(
    values: Sequence[float] | NDArray[np.float64], level: float = 0.95, *, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Interval of a mean by the bootstrap, corrected for bias and skewness (BCa). For many values, such as costs of windows; few, such as
    seeds, need Student's t, because their spread is hardly known.

    Args:
        values: independent of each other, such as differences of paired windows.
        level: coverage.
        draws: resampled means.

    Raises:
        ConfigError: fewer than ten values, or a level outside (0, 1).

    Source: Efron 1987, "Better bootstrap confidence intervals".
    """
    x_N = np.asarray(values, dtype=np.float64)
    if len(x_N) < LEAST_BOOTSTRAP or not 0 < level < 1 or not np.isfinite(x_N).all():
        raise ConfigError(
            f"got {len(x_N)} values and level={level}; at least {LEAST_BOOTSTRAP} finite values and a level in (0, 1) are needed. Try paired_test"
        )
    n, middle = len(x_N), float(x_N.mean())
    if x_N.min() == x_N.max():
        return middle, middle
    draw = np.random.default_rng(seed)
    pieces = max(1, min(draws, RESAMPLED // n))
    means = np.concatenate(
        [x_N[draw.integers(0, n, (min(pieces, draws - at), n))].mean(1) for at in range(0, draws, pieces)]
    )
    means.sort()
    normal = NormalDist()
    below = (np.searchsorted(means, middle, "left") + np.searchsorted(means, middle, "right")) / 2
    bias = normal.inv_cdf(min(max(float(below) / draws, 1 / draws), 1 - 1 / draws))
    left_out_N = (n * middle - x_N) / (n - 1)
    away_N = left_out_N.mean() - left_out_N
    skew = float((away_N**3).sum()) / (6 * float((away_N**2).sum()) ** 1.5)
    ends = []
    for z in (normal.inv_cdf((1 - level) / 2), normal.inv_cdf((1 + level) / 2)):
        moved = bias + z
        at = normal.cdf(bias + moved / (1 - skew * moved))
        ends.append(float(np.quantile(means, at)))
    return ends[0], ends[1]


def student_quantile(p: float, dof: int) -> float:
    """The quantile of Student's t: the value that a fraction p of the distribution is below."""
    if p < 0.5:
        return -student_quantile(1 - p, dof)
    low, high = 0.0, 1.0
    while student_cdf(high, dof) < p:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, dof) < p else (low, middle)
    return (low + high) / 2


def student_cdf(t: float, dof: int) -> float:
    """The cumulative distribution of Student's t, for whole degrees of freedom.

    Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(dof))
    cos, sin = math.cos(angle), math.sin(angle)
    term, total = (cos, cos) if dof % 2 else (1.0, 1.0)
    for k in range(3 if dof % 2 else 2, dof - 1, 2):
        term *= cos * cos * (k - 1) / k
        total += term
    odd = 2 / math.pi * (angle + (sin * total if dof > 1 else 0.0))
    return (1 + (odd if dof % 2 else sin * total)) / 2


def power(difference: float, deviation: float, n: int, alpha: float = 0.05) -> float:
    """Probability that `paired_test` of n pairs gives p <= alpha for a difference, if differences are normal.

    Up to 12 pairs it is simulated, because few flips of signs are coarse; beyond that the flips are nearly as strong as a t-test, whose power it is.

    Args:
        difference: true mean of the paired differences; `deviation`: their standard deviation.
        alpha: two-sided.
    """
    return (
        _flips_power(difference / deviation, n, alpha) if n <= SIMULATED else t_power(difference / deviation, n, alpha)
    )


def _flips_power(effect: float, n: int, alpha: float) -> float:
    if 2.0 ** (1 - n) > alpha:
        return 0.0
    x_RN = effect + np.random.default_rng(n).standard_normal((DRAWS, n))
    sums_RF = np.zeros((DRAWS, 1))
    for value_R in x_RN.T[1:, :, None]:  # of the two halves of all flips, which differ in sign, one
        sums_RF = np.concatenate((sums_RF + value_R, sums_RF - value_R), axis=1)
    sums_RF += x_RN[:, :1]
    p_R = (np.abs(sums_RF) >= np.abs(x_RN.sum(1))[:, None] * (1 - 1e-12)).mean(1)
    return float((p_R <= alpha).mean())


def t_power(effect: float, n: int, alpha: float = 0.05) -> float:
    """Probability that a paired t-test of n pairs shows an effect: a mean difference, in units of its standard deviation."""
    dof = n - 1
    critical, shift = student_quantile(1 - alpha / 2, dof), effect * math.sqrt(n)
    # Given the estimated deviation s (in units of the true one), the test statistic is normal; average over s.
    width = 12 / math.sqrt(2 * dof)
    s_N = np.linspace(max(1e-9, 1 - width), 1 + width, _GRID)
    log_N = (dof - 1) * np.log(s_N) - dof * s_N**2 / 2
    weight_N = np.exp(log_N - log_N.max())
    cdf = np.vectorize(NormalDist().cdf)
    shown_N = cdf(shift - critical * s_N) + cdf(-shift - critical * s_N)
    return float((weight_N * shown_N).sum() / weight_N.sum())


def pairs_needed(difference: float, deviation: float, alpha: float = 0.05, wanted: float = 0.8) -> int:
    """Fewest pairs with which `paired_test` shows a difference with probability `wanted`.

    Raises:
        ConfigError: more than 10,000.
    """
    low, high = 1, max(2, math.ceil(1 - math.log2(alpha)))  # with fewer no flip of signs gives p <= alpha
    while power(difference, deviation, high, alpha) < wanted:
        if high == MOST_SEEDS:
            raise ConfigError(
                f"got difference={difference:g} with a deviation of {deviation:g}; more than {MOST_SEEDS:,} pairs are needed. Try a larger one",
                field="difference",
            )
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power(difference, deviation, middle, alpha) < wanted else (low, middle)
    return high


def smallest_difference(deviation: float, n: int, alpha: float = 0.05, wanted: float = 0.8) -> float:
    """The smallest difference that n pairs show with probability `wanted`; infinite where they can show none."""
    if n <= SIMULATED and 2.0 ** (1 - n) > alpha:
        return math.inf
    low, high = 0.0, deviation
    while power(high, deviation, n, alpha) < wanted:
        high *= 2
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, deviation, n, alpha) < wanted else (low, middle)
    return high
