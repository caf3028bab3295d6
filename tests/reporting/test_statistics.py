"""The numbers of a paired comparison, against scipy, hand-computed cases and simulation."""

import itertools
import statistics as plain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tune_fusion.reporting import statistics

FIVE = [0.004, 0.001, 0.007, -0.002, 0.005]
DIFFERENCES = st.lists(st.integers(-1000, 1000).map(lambda whole: whole / 1000), min_size=2, max_size=8)


def exact_p(differences):
    """The two-sided sign-flip test by hand: every change of signs, counted."""
    observed = np.mean(differences)
    means = [
        np.mean(np.array(signs) * differences)
        for signs in itertools.product([1, -1], repeat=len(differences))
    ]
    greater = np.mean([m >= observed - 1e-12 for m in means])
    less = np.mean([m <= observed + 1e-12 for m in means])
    return min(1.0, 2 * min(greater, less))


def test_mean_and_sd_are_those_of_the_textbook():
    assert statistics.mean(FIVE) == pytest.approx(0.003)
    assert statistics.sd(FIVE) == pytest.approx(plain.stdev(FIVE))
    assert statistics.mean([]) is None
    assert statistics.sd([0.5]) is None


def test_the_expanded_level_is_the_published_formula_s():
    tail = stats.norm.cdf(-np.sqrt(5 / 4) * 2.7764451051977987)
    assert statistics.expanded_confidence(5) == pytest.approx(1 - 2 * tail)
    assert statistics.expanded_confidence(5) == pytest.approx(0.99809, abs=1e-5)
    assert statistics.expanded_confidence(10_000) == pytest.approx(0.95, abs=1e-4)


def test_the_interval_is_the_quantiles_of_all_resampled_means():
    means = [np.mean(draw) for draw in itertools.product(FIVE, repeat=5)]
    level = statistics.expanded_confidence(5)
    expected = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    assert statistics.interval(FIVE) == pytest.approx(tuple(expected), abs=4e-4)
    assert statistics.interval(FIVE) == statistics.interval(FIVE)


def test_an_interval_of_one_is_none_and_of_equal_differences_is_the_point():
    assert statistics.interval([]) is None
    assert statistics.interval([0.01]) is None
    assert statistics.interval([0.01] * 5) == (0.01, 0.01)
    assert statistics.interval([0.0] * 5) == (0.0, 0.0)


def test_two_seeds_reach_from_one_to_the_other():
    assert statistics.interval([0.01, 0.03]) == pytest.approx((0.01, 0.03))


def coverage(draw, n, level, repetitions=1500, resamples=3000):
    """How often percentile intervals of that level hold the true mean, zero."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(repetitions):
        sample = draw(rng, n)
        means = sample[rng.integers(0, n, (resamples, n))].mean(axis=1)
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
        held += low <= 0 <= high
    return held / repetitions


@pytest.mark.parametrize(
    ("name", "n", "at_least"),
    [("normal", 5, 0.90), ("normal", 10, 0.93), ("skewed", 5, 0.85), ("skewed", 10, 0.88)],
)
def test_the_expanded_interval_covers_what_the_docstring_says_and_the_plain_one_far_less(name, n, at_least):
    draws = {
        "normal": lambda rng, size: rng.standard_normal(size),
        "skewed": lambda rng, size: rng.exponential(size=size) - 1,
    }
    expanded = coverage(draws[name], n, statistics.expanded_confidence(n))
    assert expanded >= at_least
    assert expanded - coverage(draws[name], n, 0.95) > 0.03


@pytest.mark.parametrize(
    "differences", [FIVE, [0.01] * 5, [0.01, -0.01, 0.02], [0.0] * 4, [0.3, 0.1, 0.2, 0.05]]
)
def test_the_p_value_counts_every_change_of_signs(differences):
    assert statistics.p_value(differences) == pytest.approx(exact_p(differences))


def test_the_smallest_p_is_reached_when_all_lie_on_one_side():
    assert statistics.smallest_p(5) == 0.0625
    for n in (2, 5, 8):
        one_side = [0.01 * (index + 1) for index in range(n)]
        assert statistics.p_value(one_side) == pytest.approx(statistics.smallest_p(n))
    assert statistics.smallest_p(1) == statistics.p_value([0.1]) == 1.0


def test_beyond_sixteen_seeds_random_changes_of_sign_take_over():
    assert statistics.smallest_p(17) <= statistics.p_value([0.01] * 17) < 2e-4
    spread = list(np.random.default_rng(3).normal(0.3, 1, 20))
    assert statistics.p_value(spread) == pytest.approx(stats.ttest_1samp(spread, 0).pvalue, abs=0.03)


def test_seeds_needed_reach_the_power_of_a_paired_t_test_by_simulation():
    needed = statistics.seeds_needed(FIVE)
    assert needed is not None
    effect = np.mean(FIVE) / np.std(FIVE, ddof=1)

    def power(n):
        samples = np.random.default_rng(0).normal(effect, 1, (40_000, n))
        return np.mean(stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05)

    assert power(needed) >= 0.79
    assert power(needed - 1) < 0.805


def test_seeds_needed_agrees_with_the_textbook():
    # d = 0.5 needs 34 pairs for 80 % power at 5 % (Cohen 1988; G*Power gives 34).
    differences = [0.5 + x for x in stats.zscore([1, 2, 3, 4, 5, 6, 7, 8], ddof=1)]
    assert statistics.seeds_needed(differences) == 34


@pytest.mark.parametrize(
    ("differences", "needed"),
    [
        ([0.01], None),
        ([], None),
        ([0.01, -0.01], None),
        ([0.01] * 5, 5),
        ([1.0, 1.0001], 5),
        ([-0.1, 0.1001], None),
    ],
)
def test_seeds_needed_where_there_is_little_to_compute(differences, needed):
    assert statistics.seeds_needed(differences) == needed


@settings(deadline=None, max_examples=25)
@given(DIFFERENCES, st.integers(-50, 50))
def test_a_shift_shifts_the_interval_and_a_change_of_sides_turns_it_round(differences, shift):
    low, high = statistics.interval(differences)
    assert statistics.interval([d + shift / 10 for d in differences]) == pytest.approx(
        (low + shift / 10, high + shift / 10), abs=1e-9
    )
    assert statistics.interval([-d for d in differences]) == pytest.approx((-high, -low), abs=1e-9)
    assert min(differences) - 1e-12 <= low <= high <= max(differences) + 1e-12
    assert statistics.p_value([-d for d in differences]) == pytest.approx(statistics.p_value(differences))
    assert statistics.p_value(differences) >= statistics.smallest_p(len(differences)) - 1e-12
