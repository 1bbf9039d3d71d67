"""Metrics of the original, as pure functions of arrays.

Axes: B prompts, T tokens of a target, N tokens of a text.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from rome_jax.evaluation.intervals import NO_INTERVAL
from rome_jax.files.checked import check


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over cases, its spread, and its 95 % interval; rates are in percent, as papers print them.

    Attributes:
      mean: The mean over cases.
      spread: The population standard deviation σ over cases, which the original's summary prints. NaN for the score S,
        which no single case has.
      count: The number of cases.
      low, high: The ends of the 95 % interval of the mean. Both are NaN where there is no interval.

    Example:
      >>> print(Estimate(99.5, 7.1, 200, 97.2, 99.9))
      99.5 [97.2, 99.9]
    """

    mean: float
    spread: float
    count: int
    low: float = math.nan
    high: float = math.nan

    @property
    def has_interval(self) -> bool:
        """Whether both ends of the interval are finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def __str__(self) -> str:
        interval = f" [{self.low:.1f}, {self.high:.1f}]" if self.has_interval else ""
        return f"{self.mean:.1f}{interval}"


def estimate(
    values: np.ndarray, *, scale: float = 100.0, interval: tuple[float, float] = NO_INTERVAL
) -> Estimate:
    """Returns the mean and the spread of one value per case, with a given interval.

    Args:
      values: Float [N], one value per case, at least one.
      scale: Factor that everything is multiplied by; 1 for seconds and perplexities.
      interval: The unscaled ends of the mean's interval; see `rome_jax.evaluation.intervals`.

    Raises:
      ValueError: If there is no value.

    Example:
      >>> print(estimate(np.array([1.0, 1.0, 0.0, 0.0]), interval=(0.15, 0.85)))
      50.0 [15.0, 85.0]
    """
    scale = check(float, scale, "scale")
    values = np.asarray(values, np.float64)
    if not values.size:
        raise ValueError("values is empty: give the value of at least one case.")
    low, high = (float(scale * end) for end in interval)
    return Estimate(
        float(scale * values.mean()), float(scale * values.std()), len(values), low, high
    )


def success(nll_desired: np.ndarray, nll_other: np.ndarray) -> np.ndarray:
    """Returns 1 for each prompt on which the desired target is more likely than the other one, else 0.

    The desired target is the new one on rewrite and paraphrase prompts, and the true one on neighborhood prompts. A tie
    counts as a failure.

    Args:
      nll_desired, nll_other: Float [B], mean negative log-likelihood per target token, in nats.

    Returns:
      float64 [B] of zeros and ones.

    Example:
      >>> success(np.array([1.0, 3.0]), np.array([2.0, 2.0])).tolist()
      [1.0, 0.0]
    """
    return (np.asarray(nll_desired) < np.asarray(nll_other)).astype(np.float64)


def magnitude(nll_desired: np.ndarray, nll_other: np.ndarray) -> np.ndarray:
    """Returns by how much each prompt prefers the desired target, p(desired) − p(other): the original's `diff`.

    p = exp(−NLL) is the geometric mean of the probabilities of a target's tokens. The desired target is that of
    `success`.

    Args:
      nll_desired, nll_other: Float [B], mean negative log-likelihood per target token, in nats.

    Returns:
      float64 [B], from −1 to 1.

    Example:
      >>> magnitude(np.array([0.0, np.log(4)]), np.array([np.log(2), np.log(2)])).round(9).tolist()
      [0.5, -0.25]
    """
    return np.exp(-np.asarray(nll_desired)) - np.exp(-np.asarray(nll_other))


def harmonic_mean(*values: float) -> float:
    """Returns the paper's score S of efficacy, paraphrase and neighborhood success; 0 if one of them is 0.

    Args:
      *values: Non-negative numbers.

    Example:
      >>> harmonic_mean(100.0, 50.0, 50.0)
      60.0
    """
    with np.errstate(divide="ignore"):
        return float(len(values) / np.sum(1 / np.asarray(values, np.float64)))


def accuracy(hits: Sequence[bool] | np.ndarray) -> float:
    """Returns the share of target tokens that are the most likely ones, each given the target tokens before it.

    Args:
      hits: Bool [T], at least one token.

    Raises:
      ValueError: If the target has no tokens.

    Example:
      >>> accuracy([True, True, False, True])
      0.75
    """
    return float(np.mean(_target(hits)))


def exact(hits: Sequence[bool] | np.ndarray) -> bool:
    """Returns whether greedy decoding produces the whole target, token by token.

    It does if and only if every target token is the most likely one under teacher forcing. In that case the first
    decoded token is the target's first token, so the second one is decoded from the same prefix that teacher forcing
    uses, and so on. At the first miss the two prefixes differ. One forward pass therefore answers for the free-running
    model. The same text in other tokens is not a match, and a tie goes to the token that `hits` took as the most likely
    one.

    Args:
      hits: Bool [T], at least one token.

    Raises:
      ValueError: If the target has no tokens.

    Example:
      >>> exact([True, True]), exact([True, False])
      (True, False)
    """
    return bool(_target(hits).all())


def essence_perplexity(log_probs: np.ndarray) -> float:
    """Returns the original's perplexity of a text about the subject, exp(−Σ log p / N) over its tokens 2 to N.

    The first token has no prediction, so the sum has N − 1 terms, but the original divides by N. The value is therefore
    slightly below the usual perplexity.

    Args:
      log_probs: Float [N − 1], natural log-probability of each token after the first.

    Example:
      >>> round(essence_perplexity(np.log([1 / 4, 1 / 2])), 9)  # the cube root of 4 · 2
      2.0
    """
    log_probs = np.asarray(log_probs, np.float64)
    return float(np.exp(-log_probs.sum() / (len(log_probs) + 1)))


def _target(hits: Sequence[bool] | np.ndarray) -> np.ndarray:
    """Returns `hits` as a Boolean array with at least one entry."""
    hits = np.asarray(hits, bool)
    if not hits.size:
        raise ValueError("hits is empty: give every target at least one token.")
    return hits
