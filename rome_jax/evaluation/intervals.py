"""95 % intervals of means over cases: Wilson for rates, bootstrap for everything else.

A case is the unit of both: the prompts of a case share a subject and an edit, so they are not independent.

Axes: N cases, M metrics, R resamples.
"""

from __future__ import annotations

import math

import numpy as np

_Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution
_PERCENTILES = (0.025, 0.975)
_RESAMPLES = 10_000
_DRAWS_AT_ONCE = 1 << 22  # case indices in memory

NO_INTERVAL = (math.nan, math.nan)


def wilson(rate: float, count: int) -> tuple[float, float]:
    """Returns the Wilson score interval of a rate.

    Unlike the normal approximation it keeps its width at rates of 0 and 1, where all cases agree, and it stays within
    [0, 1].

    A case that averages several prompts contributes a fraction instead of 0 or 1. The interval then treats each case as
    one Boolean. That is conservative: a fraction in [0, 1] has at most the variance of a Boolean with the same mean.

    Args:
      rate: The mean over cases, from 0 to 1.
      count: The number of cases, at least 1.

    Returns:
      The lower and the upper end.

    Example:
      >>> tuple(round(end, 3) for end in wilson(1.0, 100))
      (0.963, 1.0)

    References:
      Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    center = rate + _Z**2 / (2 * count)
    half = _Z * math.sqrt(max(rate * (1 - rate), 0) / count + (_Z / (2 * count)) ** 2)
    scale = 1 + _Z**2 / count
    # Rounding must not put a rate of 0 or 1 outside of its interval.
    return min(max((center - half) / scale, 0.0), rate), max(
        min((center + half) / scale, 1.0), rate
    )


def resampled_means(values: np.ndarray, present: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Draws cases with replacement and computes the mean of every metric over each draw.

    All metrics share the drawn cases, so functions of several means, such as the score S, can be computed per draw.

    Args:
      values: Float [N, M]. Entries that are not present are ignored.
      present: Bool [N, M], whether a case has the metric.
      seed: Seed of the draws; equal input gives equal results.

    Returns:
      float64 [R, M]; NaN where no drawn case has the metric.

    Example:
      >>> values = np.array([[1.0], [3.0]])
      >>> sorted({float(mean) for mean in resampled_means(values, values > 0)[:, 0]})
      [1.0, 2.0, 3.0]
    """
    count = len(values)
    rng = np.random.default_rng(seed)
    values, weights = np.where(present, values, 0.0), present.astype(np.float64)
    means = []
    size = min(max(1, _DRAWS_AT_ONCE // count), _RESAMPLES)
    for start in range(0, _RESAMPLES, size):
        rows = min(size, _RESAMPLES - start)
        drawn = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        with np.errstate(all="ignore"):  # metrics that no drawn case has, and infinite perplexities
            means.append((times @ values) / (times @ weights))
    return np.concatenate(means)


def percentile_interval(draws: np.ndarray) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of a statistic.

    Args:
      draws: Float [R], the statistic of each resample; NaNs are ignored.

    Returns:
      The 2.5 % and 97.5 % quantiles. `NO_INTERVAL` if the draws do not vary, which says nothing about the uncertainty,
      or if one is infinite.

    Example:
      >>> percentile_interval(np.linspace(0, 100, 1001))
      (2.5, 97.5)
      >>> percentile_interval(np.ones(1000))
      (nan, nan)

    References:
      Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    draws = draws[~np.isnan(draws)]
    if not draws.size or not np.isfinite(draws).all() or np.allclose(draws, draws[0], 1e-12, 0):
        return NO_INTERVAL
    low, high = np.quantile(draws, _PERCENTILES)
    return float(low), float(high)
