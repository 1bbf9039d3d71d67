"""Metrics as the original defines them: pure functions of arrays."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over cases, times 100, with the half-width of its 95 % interval (1.96 σ / √n)."""

    mean: float
    half_width: float

    def __str__(self) -> str:
        return f"{self.mean:5.1f} ± {self.half_width:.1f}"


def success(nll_wanted: np.ndarray, nll_other: np.ndarray) -> np.ndarray:
    """Whether each prompt prefers the wanted target, 0 or 1; a tie is a failure.

    On rewrite and paraphrase prompts the new target is wanted, on neighborhood prompts the true one.

    Example:
      >>> success(np.array([1.0, 3.0]), np.array([2.0, 2.0])).tolist()
      [1.0, 0.0]
    """
    return (np.asarray(nll_wanted) < np.asarray(nll_other)).astype(np.float64)


def estimate(values: np.ndarray) -> Estimate:
    """Mean and 95 % interval of one value a case.

    Example:
      >>> estimate(np.array([1.0, 1.0, 0.0, 0.0])).mean
      50.0
    """
    values = np.asarray(values, np.float64)
    return Estimate(100 * values.mean(), 196 * values.std() / np.sqrt(len(values)))


def harmonic_mean(*values: float) -> float:
    """The paper's score S of efficacy, paraphrase and neighborhood success.

    Example:
      >>> harmonic_mean(100.0, 50.0, 50.0)
      60.0
    """
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)
