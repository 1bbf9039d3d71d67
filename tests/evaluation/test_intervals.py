"""Intervals over cases: against scipy, by hand, and for input that says nothing about the uncertainty."""

import math

import numpy as np
import pytest
import scipy.stats

from rome_jax.evaluation import intervals
from rome_jax.evaluation.intervals import percentile_interval, resampled_means, wilson


@pytest.mark.parametrize("wins", [0, 1, 37, 99, 100])
def test_wilson_is_scipys(wins):
    expected = scipy.stats.binomtest(wins, 100).proportion_ci(method="wilson")
    assert wilson(wins / 100, 100) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_wilson_has_a_width_where_all_cases_agree_and_contains_the_rate():
    for count in (1, 5, 1000):
        low, high = wilson(1.0, count)
        assert low == pytest.approx(1 / (1 + 1.96**2 / count), rel=1e-4)
        assert high == 1
        assert wilson(0.0, count) == pytest.approx((0, 1 - low))
    for rate in np.linspace(0, 1, 21):
        low, high = wilson(rate, 7)
        assert 0 <= low <= rate <= high <= 1


def test_a_rate_of_fractions_has_the_interval_of_booleans_with_its_mean():
    """Fractions vary less than Booleans with the same mean, so the interval is at least as wide as a bootstrap."""
    rng = np.random.default_rng(0)
    shares = rng.binomial(4, 0.8, size=(60, 1)) / 4
    low, high = wilson(float(shares.mean()), len(shares))
    drawn = percentile_interval(resampled_means(shares, shares >= 0)[:, 0])
    assert low < drawn[0] < drawn[1] < high


def test_the_bootstrap_is_scipys():
    values = np.random.default_rng(1).exponential(size=(80, 1))
    drawn = percentile_interval(resampled_means(values, values >= 0)[:, 0])
    expected = scipy.stats.bootstrap(
        (values[:, 0],), np.mean, method="percentile", n_resamples=10_000, rng=2
    ).confidence_interval
    # Two independent sets of 10,000 draws agree to a few percent of the width.
    width = expected.high - expected.low
    assert drawn == pytest.approx((expected.low, expected.high), abs=0.04 * width)


def test_draws_are_reproducible_shared_by_all_metrics_and_the_same_in_parts(monkeypatch):
    values = np.random.default_rng(0).normal(size=(9, 2))
    values[:, 1] = 3 * values[:, 0]
    present = np.ones((9, 2), bool)
    draws = resampled_means(values, present)
    assert draws.shape == (10_000, 2)
    np.testing.assert_allclose(draws[:, 1], 3 * draws[:, 0], rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(draws, resampled_means(values, present))
    monkeypatch.setattr(intervals, "_DRAWS_AT_ONCE", 9 * 700)  # 10,000 is no multiple of 700
    np.testing.assert_array_equal(draws, resampled_means(values, present))


def test_a_metric_counts_the_cases_that_have_it():
    values = np.array([[1.0, 5.0], [2.0, 99.0], [3.0, 7.0]])
    present = np.array([[True, True], [True, False], [True, True]])
    draws = resampled_means(values, present)[:, 1]
    known = draws[~np.isnan(draws)]  # a draw of the second case alone has no mean
    assert len(known) == pytest.approx(10_000 * (1 - 1 / 27), rel=0.01)
    assert set(known) <= {5.0, 7.0, 6.0, (2 * 5 + 7) / 3, (5 + 2 * 7) / 3}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "values",
    [
        [[2.0]],
        [[2.0], [2.0], [2.0]],
        [[0.1]] * 3,
        [[math.inf], [1.0]],
        [[-1e300], [1e300], [math.inf]],
    ],
    ids=["one case", "equal cases", "equal up to rounding", "infinite", "huge"],
)
def test_degenerate_values_have_no_interval(values):
    draws = resampled_means(np.array(values), np.ones_like(values, bool))
    assert np.isnan(percentile_interval(draws[:, 0])).all()
    assert np.isnan(percentile_interval(np.full(5, np.nan))).all()
