"""A second moment C = I + B Bᵀ that both sides can make from B: its inverse needs no factor of [F, F]. NumPy alone."""

from __future__ import annotations

import numpy as np

_RANK = 64


def moment_root(width: int) -> np.ndarray:
    """B, float64 [F, r].

    Example:
      >>> moment_root(5).shape
      (5, 64)
    """
    return np.random.default_rng(1).standard_normal((width, _RANK)) / _RANK**0.5


def inverse(root: np.ndarray) -> np.ndarray:
    """C⁻¹, float64 [F, F], by Woodbury's identity.

    Example:
      >>> root = moment_root(5)
      >>> np.allclose(inverse(root) @ (np.eye(5) + root @ root.T), np.eye(5))
      True
    """
    small = np.eye(root.shape[1]) + root.T @ root
    return np.eye(len(root)) - root @ np.linalg.solve(small, root.T)
