"""A second moment C = I + B Bᵀ that both sides build from B.

Its inverse needs no factorization of an [F, F] matrix. This module imports only NumPy.
"""

from __future__ import annotations

import numpy as np

_RANK = 64


def moment_root(width: int) -> np.ndarray:
    """Returns B, float64 [F, r].

    Args:
      width: F, the width of the MLP's keys.

    Example:
      >>> moment_root(5).shape
      (5, 64)
    """
    return np.random.default_rng(1).standard_normal((width, _RANK)) / _RANK**0.5


def second_moment_matrix(width: int) -> np.ndarray:
    """Builds C = I + B Bᵀ, float64 [F, F], whose eigenvalues vary.

    Args:
      width: F, the width of the MLP's keys.

    Example:
      >>> bool(np.linalg.eigvalsh(second_moment_matrix(5)).min() >= 1)
      True
    """
    root = moment_root(width)
    matrix = root @ root.T
    matrix[np.diag_indices(width)] += 1
    return matrix


def inverse(root: np.ndarray) -> np.ndarray:
    """Computes C⁻¹, float64 [F, F], with Woodbury's identity.

    Args:
      root: [F, r] matrix B.

    Example:
      >>> root = moment_root(5)
      >>> np.allclose(inverse(root) @ (np.eye(5) + root @ root.T), np.eye(5))
      True
    """
    small = np.eye(root.shape[1]) + root.T @ root
    return np.eye(len(root)) - root @ np.linalg.solve(small, root.T)
