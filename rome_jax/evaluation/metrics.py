"""Metrics as the original defines them: pure functions of arrays.

Axes: B prompts, T tokens of a target, N tokens of a text.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over cases with its spread, both times 100 as papers print them.

    Attributes:
      mean: the mean over cases.
      spread: the population standard deviation σ, which the original's summary prints.
      count: the number of cases n.
    """

    mean: float
    spread: float
    count: int

    @property
    def half_width(self) -> float:
        """Half of the mean's 95 % interval, 1.96 σ / √n."""
        return 1.96 * self.spread / math.sqrt(self.count)

    def __str__(self) -> str:
        return f"{self.mean:5.1f} ± {self.half_width:.1f}"


def estimate(values: np.ndarray, *, scale: float = 100.0) -> Estimate:
    """Mean and spread of one value a case.

    Args:
      values: float [n], one or more.
      scale: what both are multiplied by; 1 for seconds and perplexities.

    Raises:
      ValueError: there is no value.

    Example:
      >>> estimate(np.array([1.0, 1.0, 0.0, 0.0]))
      Estimate(mean=50.0, spread=50.0, count=4)
    """
    values = np.asarray(values, np.float64)
    if not values.size:
        raise ValueError("values is empty: give the value of at least one case.")
    return Estimate(float(scale * values.mean()), float(scale * values.std()), len(values))


def success(nll_wanted: np.ndarray, nll_other: np.ndarray) -> np.ndarray:
    """Whether each prompt prefers the wanted target, 0 or 1; a tie is a failure.

    On rewrite and paraphrase prompts the new target is wanted, on neighborhood prompts the true one.

    Args:
      nll_wanted, nll_other: float [B], mean negative log-likelihood per target token.

    Returns:
      float [B].

    Example:
      >>> success(np.array([1.0, 3.0]), np.array([2.0, 2.0])).tolist()
      [1.0, 0.0]
    """
    return (np.asarray(nll_wanted) < np.asarray(nll_other)).astype(np.float64)


def magnitude(nll_wanted: np.ndarray, nll_other: np.ndarray) -> np.ndarray:
    """By how much each prompt prefers the wanted target, p(wanted) − p(other): the original's `diff`.

    p = exp(−NLL) is the geometric mean of a target's token probabilities. On rewrite and paraphrase prompts the new
    target is wanted, on neighborhood prompts the true one.

    Args:
      nll_wanted, nll_other: float [B], mean negative log-likelihood per target token.

    Returns:
      float [B], from −1 to 1.

    Example:
      >>> magnitude(np.array([0.0, np.log(4)]), np.array([np.log(2), np.log(2)])).round(9).tolist()
      [0.5, -0.25]
    """
    return np.exp(-np.asarray(nll_wanted)) - np.exp(-np.asarray(nll_other))


def harmonic_mean(*values: float) -> float:
    """The paper's score S of efficacy, paraphrase and neighborhood success; 0 where one of them is 0.

    Args:
      values: none below 0.

    Example:
      >>> harmonic_mean(100.0, 50.0, 50.0)
      60.0
    """
    with np.errstate(divide="ignore"):
        return float(len(values) / np.sum(1 / np.asarray(values, np.float64)))


def accuracy(hits: Sequence[bool] | np.ndarray) -> float:
    """Share of target tokens that are the most likely ones, each given those before it.

    Args:
      hits: bool [T], one or more.

    Raises:
      ValueError: a target without tokens.

    Example:
      >>> accuracy([True, True, False, True])
      0.75
    """
    return float(np.mean(_target(hits)))


def exact(hits: Sequence[bool] | np.ndarray) -> bool:
    """Whether greedy decoding says the whole target, token by token.

    It does if and only if, teacher-forced, every target token is the most likely one: then the first decoded token is
    the target's, so the second is decoded after the very tokens that teacher forcing shows, and so on; and at the first
    miss the two part. So one forward pass answers for the free-running model. (The same text in other tokens is no
    match; a tie goes to whichever token `hits` took for the most likely one.)

    Args:
      hits: bool [T], one or more.

    Raises:
      ValueError: a target without tokens.

    Example:
      >>> exact([True, True]), exact([True, False])
      (True, False)
    """
    return bool(_target(hits).all())


def essence_perplexity(log_probs: np.ndarray) -> float:
    """The original's perplexity of a text about the subject, exp(−Σ log p / N) over its tokens 2 to N.

    The first token has no prediction, so N − 1 terms are summed; yet the original divides by N. The value is therefore
    a little below the usual perplexity.

    Args:
      log_probs: float [N − 1], natural log-probability of each token but the first.

    Example:
      >>> round(essence_perplexity(np.log([1 / 4, 1 / 2])), 9)  # the cube root of 4 · 2
      2.0
    """
    log_probs = np.asarray(log_probs, np.float64)
    return float(np.exp(-log_probs.sum() / (len(log_probs) + 1)))


def _target(hits: Sequence[bool] | np.ndarray) -> np.ndarray:
    hits = np.asarray(hits, bool)
    if not hits.size:
        raise ValueError("hits is empty: give every target at least one token.")
    return hits
