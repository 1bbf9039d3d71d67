"""Running means and standard deviations that a state can carry: every update returns a new normalizer."""

from __future__ import annotations

import dataclasses

import numpy as np

_EPSILON = float(np.finfo(np.float32).eps)  # added to the standard deviation


@dataclasses.dataclass(frozen=True, eq=False)
class Normalizer:
    """Mean and standard deviation of each of X numbers over all rows seen so far.

    Attributes:
      count: Number of rows.
      mean: float64 [X].
      squares: float64 [X] Σ (value − mean)².
    """

    count: int
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def of_size(cls, size: int) -> Normalizer:
        """Returns a normalizer that has seen nothing."""
        return cls(0, np.zeros(size), np.zeros(size))

    def add(self, rows: np.ndarray) -> Normalizer:
        """Adds rows [N, X] to the statistics; `self` does not change.

        Merging the moments of two sets (Chan et al., 1979) gives the same sums as going row by row, so the order of the
        rows, and how they are grouped, only changes rounding.

        Example:
          >>> seen = Normalizer.of_size(1).add(np.array([[1.0], [2.0]])).add(np.array([[6.0]]))
          >>> seen.count, seen.mean.tolist(), seen.squares.tolist()
          (3, [3.0], [14.0])
        """
        if not len(rows):
            return self
        rows = np.asarray(rows, np.float64)
        mean = rows.mean(0)
        squares = ((rows - mean) ** 2).sum(0)
        total = self.count + len(rows)
        shift = mean - self.mean
        return Normalizer(
            total,
            self.mean + shift * len(rows) / total,
            self.squares + squares + shift**2 * self.count * len(rows) / total,
        )

    def normalize(self, rows: np.ndarray) -> np.ndarray:
        """Returns (rows − mean) / (standard deviation + ε), float64 [N, X]; the deviation has N − 1 in its divisor.

        Example:
          >>> rows = np.array([[1.0], [3.0]])
          >>> Normalizer.of_size(1).add(rows).normalize(rows).round(3).ravel().tolist()
          [-0.707, 0.707]
        """
        deviation = np.sqrt(self.squares / max(self.count - 1, 1))
        return (np.asarray(rows, np.float64) - self.mean) / (deviation + _EPSILON)
