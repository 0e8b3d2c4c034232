"""Intervals: published values, exact and simulated coverage, what they hold whatever the values are."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from mstar_engine.evolve.intervals import bootstrap, bootstrap_ratio, wilson

FINITE = st.floats(-1e6, 1e6)


@given(st.integers(1, 10**6), st.data())
@settings(deadline=None)
def test_wilson_holds_the_share(items, data):
    successes = data.draw(st.integers(0, items))
    estimate = wilson(successes, items)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    mirrored = wilson(items - successes, items)
    assert mirrored.low == pytest.approx(1 - estimate.high, abs=1e-9)


def test_wilson_against_published_values():
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for successes, items, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        estimate = wilson(successes, items)
        assert (estimate.low, estimate.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


@pytest.mark.parametrize("items", [20, 100, 256])
def test_wilson_covers_95_percent(items):
    """Exactly, by enumeration of all outcomes: no simulation, no false alarm."""
    found = [wilson(successes, items) for successes in range(items + 1)]
    coverage = []
    for share in np.linspace(0.05, 0.95, 181):
        holds = np.array([estimate.low <= share <= estimate.high for estimate in found])
        coverage.append(binom.pmf(np.arange(items + 1), items, share) @ holds)
    assert min(coverage) > 0.92 and 0.945 < np.mean(coverage) < 0.96


def test_bootstrap_agrees_with_resampling_the_problems():
    values = np.random.default_rng(1).integers(-4, 9, 200) / 8
    estimate = bootstrap(values, seed=2, resamples=20000)
    rng = np.random.default_rng(3)
    means = np.array([rng.choice(values, 200).mean() for _ in range(20000)])
    # Quantiles of 20000 resamples have a standard error below 0.001 here: 5 of them.
    assert estimate.low == pytest.approx(np.quantile(means, 0.025), abs=0.005)
    assert estimate.high == pytest.approx(np.quantile(means, 0.975), abs=0.005)
    assert bootstrap(values, seed=2) == bootstrap(values[::-1], seed=2) != bootstrap(values, seed=3)


def test_a_ratio_resamples_problems_with_their_sizes():
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 30, 150)
    totals = sizes * rng.uniform(0.5, 1.5, 150)
    estimate = bootstrap_ratio(totals, sizes, seed=2, resamples=20000)
    assert estimate.value == pytest.approx(totals.sum() / sizes.sum()) and estimate.items == 150
    ratios = []
    for _ in range(20000):
        drawn = rng.choice(150, 150)
        ratios.append(totals[drawn].sum() / sizes[drawn].sum())
    # The standard error of the ratio is about 0.025, that of its quantiles below 0.001: 5 of them.
    assert estimate.low == pytest.approx(np.quantile(ratios, 0.025), abs=0.005)
    assert estimate.high == pytest.approx(np.quantile(ratios, 0.975), abs=0.005)


@pytest.mark.parametrize("kind", ["shares", "differences", "ratio"])
def test_bootstrap_covers_what_it_should(kind):
    """600 simulated sets of 80 problems. A true coverage of 93% or more, as the percentile bootstrap has with so many,
    falls below the bound with a probability of 1e-6; the width is that of the normal approximation, within 5%."""
    sets, items = 600, 80
    held, widths = 0, []
    for index in range(sets):
        rng = np.random.default_rng([5, index])
        difficulty = rng.beta(0.7, 0.7, items)
        if kind == "shares":
            estimate, true = bootstrap(rng.binomial(8, difficulty) / 8, seed=index, resamples=500), 0.5
            deviation = math.sqrt(0.25 / 2.4 + (0.25 - 0.25 / 2.4) / 8)
        elif kind == "differences":
            greedy, sample = (rng.random(items) < difficulty for _ in range(2))
            values = sample.astype(float) - greedy
            estimate, true = bootstrap(values, seed=index, resamples=500, bounds=(-1, 1)), 0.0
            deviation = math.sqrt(2 * (0.25 - 0.25 / 2.4))
        else:
            sizes = rng.integers(5, 16, items)
            estimate, true = bootstrap_ratio(sizes * difficulty, sizes, seed=index, resamples=500), 0.5
            deviation = math.sqrt(np.mean(np.arange(5, 16) ** 2) * 0.25 / 2.4) / 10
        held += estimate.low <= true <= estimate.high
        widths.append(estimate.high - estimate.low)
    assert held >= binom.ppf(1e-6, sets, 0.93)
    assert np.mean(widths) == pytest.approx(2 * 1.96 * deviation / math.sqrt(items), rel=0.05)


@given(st.lists(FINITE, min_size=1, max_size=20), st.integers(0, 5))
@settings(deadline=None)
def test_bootstrap_holds_the_mean_of_any_numbers(values, seed):
    estimate = bootstrap(values, seed, resamples=200)
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= estimate.low <= estimate.value <= estimate.high <= max(values) + slack
    assert estimate.value == pytest.approx(np.mean(values), rel=1e-9, abs=slack) and estimate.items == len(values)


@given(st.lists(FINITE, min_size=2, max_size=20), st.floats(-100, 100))
@settings(deadline=None)
def test_bootstrap_moves_with_the_values(values, by):
    """Values from anywhere, not only from 0 to 1: shifted by a number, value and interval shift by it."""
    here, there = bootstrap(values, resamples=200), bootstrap([value + by for value in values], resamples=200)
    if len(set(values)) == len({value + by for value in values}):  # rounding has merged none
        for name in ("value", "low", "high"):
            assert getattr(there, name) == pytest.approx(getattr(here, name) + by, rel=1e-9, abs=1e-8)


@given(st.lists(st.tuples(FINITE, st.floats(0.5, 100)), min_size=1, max_size=20), st.integers(0, 5))
@settings(deadline=None)
def test_a_ratio_lies_between_those_of_the_problems(pairs, seed):
    totals, sizes = zip(*pairs, strict=True)
    estimate = bootstrap_ratio(totals, sizes, seed, resamples=200)
    ratios = [total / size for total, size in pairs]
    slack = 1e-9 * max(map(abs, ratios))
    assert min(ratios) - slack <= estimate.low <= estimate.value <= estimate.high <= max(ratios) + slack


def test_a_ratio_with_equal_sizes_is_a_mean():
    values = np.random.default_rng(1).random(60)
    mean, ratio = bootstrap(values, resamples=20000), bootstrap_ratio(3 * values, [3] * 60, resamples=20000)
    for name in ("value", "low", "high"):  # other draws: quantiles differ by 5 standard errors at most
        assert getattr(ratio, name) == pytest.approx(getattr(mean, name), abs=0.005)


def test_a_last_bit_moves_an_interval_by_a_last_bit():
    """Two equal totals of which one is rounded otherwise: the same problems are drawn."""
    totals, sizes = [0.3, 0.3, 2.0, 5.0], [1, 3, 2, 4]
    moved = [np.nextafter(0.3, 1), np.nextafter(0.3, 0), 2.0, 5.0]
    one, other = bootstrap_ratio(totals, sizes), bootstrap_ratio(moved, sizes)
    assert (one.low, one.value, one.high) == pytest.approx((other.low, other.value, other.high), rel=1e-12)


@given(st.integers(1, 1000), st.floats(-1, 1))
def test_equal_values_keep_the_doubt_that_bounds_leave(items, value):
    estimate = bootstrap([value] * items, bounds=(-1.0, 1.0))
    doubt = wilson(0, items).high
    assert -1 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.high - estimate.low == pytest.approx(2 * doubt)
    free = bootstrap([value] * items)
    assert free.low == free.value == free.high == value


def test_nothing_but_successes_is_wilson():
    for successes in (0, 10):
        estimate, wanted = bootstrap([successes / 10] * 10, bounds=(0.0, 1.0)), wilson(successes, 10)
        assert (estimate.low, estimate.high) == pytest.approx((wanted.low, wanted.high))


@given(st.integers(20, 60), st.integers(0, 40), st.integers(20, 60))
@settings(deadline=None, max_examples=40)
def test_pairing_narrows_what_correlates(neither, second, both):
    """Two outcomes a problem, the second right wherever the first is: the interval of their paired difference is
    narrower than that of the difference of two independent means. The true ratio of widths is 0.82 at most, more
    than five standard errors of the quantiles below 1."""
    first = np.repeat([0.0, 0.0, 1.0], [neither, second, both])
    other = np.repeat([0.0, 1.0, 1.0], [neither, second, both])
    paired = bootstrap(other - first, seed=1)
    alone = [bootstrap(values, seed=1) for values in (first, other)]
    unpaired = math.hypot(*(estimate.high - estimate.low for estimate in alone))
    assert paired.high - paired.low < unpaired


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: wilson(3, 2), "successes=3 of items=2"),
        (lambda: wilson(0, 0), "successes=0 of items=0"),
        (lambda: bootstrap([]), "no values"),
        (lambda: bootstrap([0.5, math.nan]), r"values\[1\]=nan; allowed: finite"),
        (lambda: bootstrap([0.5, math.inf]), r"values\[1\]=inf; allowed: finite"),
        (lambda: bootstrap([0.5, 3.0], bounds=(0, 1)), "values from 0.5 to 3; allowed: 0 to 1"),
        (lambda: bootstrap_ratio([], []), "no totals"),
        (lambda: bootstrap_ratio([1.0], [1.0, 2.0]), "1 totals, 2 sizes"),
        (lambda: bootstrap_ratio([1.0, 1.0], [1.0, 0.0]), r"sizes\[1\]=0; allowed: above 0"),
        (lambda: bootstrap_ratio([1.0, math.nan], [1.0, 1.0]), r"totals\[1\]=nan"),
    ],
)
def test_refusals(call, said):
    with pytest.raises(ValueError, match=said):
        call()
