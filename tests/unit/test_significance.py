"""Paired tests against published values and slow references."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest

from bit_transformer.errors import ConfigError
from bit_transformer.evaluation.significance import (
    bootstrap_interval,
    holm,
    paired_test,
    pairs_needed,
    power,
    smallest_difference,
    student_cdf,
    student_quantile,
    t_power,
)

# Student's t, 97.5 %, as printed in tables (Fisher and Yates 1938).
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 10: 2.228, 30: 2.042, 120: 1.980}


@pytest.mark.parametrize(("dof", "value"), TABLE.items())
def test_student_quantiles_are_those_of_tables(dof: int, value: float) -> None:
    assert student_quantile(0.975, dof) == pytest.approx(value, abs=6e-4)
    assert student_cdf(student_quantile(0.975, dof), dof) == pytest.approx(0.975, abs=1e-12)
    assert student_quantile(0.025, dof) == -student_quantile(0.975, dof)


@pytest.mark.parametrize("dof", [1, 2, 3, 6, 7])
def test_the_distribution_is_the_integral_of_its_density(dof: int) -> None:
    t = np.linspace(0, 1.7, 200_001)
    scale = math.gamma((dof + 1) / 2) / (math.sqrt(dof * math.pi) * math.gamma(dof / 2))
    density = scale * (1 + t**2 / dof) ** (-(dof + 1) / 2)
    assert student_cdf(1.7, dof) == pytest.approx(0.5 + float(np.trapezoid(density, t)), abs=1e-8)


def test_p_counts_all_flips_of_signs() -> None:
    a, b = [2.1, 2.2, 2.15, 2.0, 2.1, 2.3], [2.0, 2.25, 2.2, 2.05, 2.12, 2.2]
    d = [x - y for x, y in zip(a, b, strict=True)]
    flips = [abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in itertools.product((1, -1), repeat=6)]
    found = paired_test(a, b, comparisons=3)
    assert found.p == sum(flip >= abs(sum(d)) - 1e-12 for flip in flips) / 64
    assert found.p_corrected == min(1, 3 * found.p) and found.smallest_p == 1 / 32
    half = 2.5706 * np.std(d, ddof=1) / math.sqrt(6)
    assert (found.low, found.high) == pytest.approx((np.mean(d) - half, np.mean(d) + half), abs=1e-4)
    assert found.effect == pytest.approx(np.mean(d) / np.std(d, ddof=1))
    assert paired_test([1, 2, 3], [0, 1, 2]).p == 0.25 and paired_test([1.0, 2.0], [1.0, 2.0]).p == 1


def test_many_pairs_are_flipped_at_random() -> None:
    rng = np.random.default_rng(3)
    d = rng.normal(0.8, 1, 25)
    exact = paired_test(d[:20], np.zeros(20)).p  # type: ignore[arg-type]
    assert 0 < exact < 0.2
    assert 0 < paired_test(d, np.zeros(25)).p < 0.1  # type: ignore[arg-type]
    few = rng.normal(0.4, 1, 20)  # both ways agree
    many = [paired_test([*few, 0.0], np.zeros(21)).p, paired_test(few, np.zeros(20)).p]  # type: ignore[arg-type]
    assert many[0] == pytest.approx(many[1], abs=0.01)
    assert paired_test([2.0, 2.1, 2.2], [1.9, 2.0, 2.1]).effect is None


@pytest.mark.parametrize(("n", "d"), [(6, 0.8), (12, 0.5), (30, 0.5)])
def test_power_is_how_often_a_simulated_difference_is_shown(n: int, d: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(d, 1, (40_000, n))
    t = x.mean(1) / (x.std(1, ddof=1) / math.sqrt(n))
    shown = float((np.abs(t) > student_quantile(0.975, n - 1)).mean())
    assert t_power(d, n) == pytest.approx(shown, abs=0.008)


@pytest.mark.parametrize(("n", "d"), [(6, 1.5), (8, 1.2), (12, 0.9), (16, 0.8)])
def test_power_is_how_often_flipped_signs_show_a_difference(n: int, d: float) -> None:
    rng = np.random.default_rng(1)
    shown = np.mean([paired_test(rng.normal(d, 1, n), np.zeros(n)).p <= 0.05 for _ in range(600)])
    assert power(d, 1, n) == pytest.approx(shown, abs=0.06)


def test_pairs_needed_and_the_smallest_difference_agree() -> None:
    assert pairs_needed(0.5, 1) == 34  # as in Cohen 1988 and every calculator
    assert power(0.5, 1, 34) >= 0.8 > power(0.5, 1, 33)
    assert power(smallest_difference(0.02, 7), 0.02, 7) == pytest.approx(0.8, abs=2e-3)
    assert power(smallest_difference(0.02, 20), 0.02, 20) == pytest.approx(0.8, abs=1e-3)
    assert smallest_difference(0.02, 5) == math.inf and power(9, 1, 5) == 0
    assert pairs_needed(0.031, 1) in range(8100, 8250)
    assert pairs_needed(100, 1) == 6  # fewer cannot give p <= 0.05 by flipping signs
    assert pairs_needed(100, 1, alpha=0.01) == 8


@pytest.mark.parametrize(("a", "b"), [([1.0], [2.0]), ([1.0, 2.0], [1.0]), ([1.0, math.nan], [1.0, 2.0]), ([], [])])
def test_rows_that_cannot_be_paired_are_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ConfigError, match="Try one per seed"):
        paired_test(a, b)
    with pytest.raises(ConfigError, match="pairs are needed"):
        pairs_needed(1e-6, 1)


def test_holm_corrects_as_in_its_paper() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1] and holm([]) == []
    random = np.random.default_rng(0)
    for _ in range(20):
        p = random.random(7)
        found = holm(p)  # type: ignore[arg-type]
        for alpha in (0.05, 0.3):  # step down, in a loop, as the paper has it
            claimed = set()
            for rank, i in enumerate(np.argsort(p)):
                if p[i] > alpha / (7 - rank):
                    break
                claimed.add(int(i))
            assert claimed == {i for i in range(7) if found[i] <= alpha}


def test_the_bootstrap_interval_is_that_of_a_slow_one() -> None:
    """Efron's formulas, by loops, on the same resampled means."""
    x = np.random.default_rng(5).gamma(1.0, 1.0, 40)
    low, high = bootstrap_interval(x, draws=4000, seed=3)
    draw = np.random.default_rng(3)
    means = sorted(float(np.mean([x[i] for i in row])) for row in draw.integers(0, 40, (4000, 40)))
    normal = NormalDist()
    z0 = normal.inv_cdf(sum(m < x.mean() for m in means) / 4000)
    jack = [float(np.mean([v for j, v in enumerate(x) if j != i])) for i in range(40)]
    centre = sum(jack) / 40
    a = sum((centre - v) ** 3 for v in jack) / (6 * sum((centre - v) ** 2 for v in jack) ** 1.5)
    for end, level in ((low, 0.025), (high, 0.975)):
        z = normal.inv_cdf(level)
        at = normal.cdf(z0 + (z0 + z) / (1 - a * (z0 + z)))
        assert end == pytest.approx(np.quantile(means, at), rel=1e-9)
    assert low < x.mean() < high and bootstrap_interval([2.0] * 12) == (2.0, 2.0)
    with pytest.raises(ConfigError, match="Try paired_test"):
        bootstrap_interval([1.0, 2.0])


@pytest.mark.slow
def test_levels_are_kept_in_simulated_experiments() -> None:
    """2,000 experiments without a difference: tables of five comparisons over eight seeds, and intervals over 200 windows."""
    random = np.random.default_rng(7)
    false, covered = 0, 0
    for _ in range(2000):
        tests = [paired_test(random.normal(0, 1, 8), np.zeros(8)).p for _ in range(5)]
        false += min(holm(tests)) <= 0.05
        low, high = bootstrap_interval(random.gamma(2.0, 1.0, 200) - 2.0, draws=2000, seed=1)
        covered += low <= 0 <= high
    assert false / 2000 <= 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5
    assert abs(covered / 2000 - 0.95) <= 0.01 + 2 * (0.05 * 0.95 / 2000) ** 0.5
