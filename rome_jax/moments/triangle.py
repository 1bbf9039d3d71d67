"""Packing of symmetric matrices into their upper triangles, which halves files and saved states.

Axes: F MLP width.
"""

from __future__ import annotations

import math

import numpy as np


def pack_triangle(matrix: np.ndarray, dtype: np.typing.DTypeLike) -> np.ndarray:
    """Returns the upper triangle of a matrix, row by row.

    Args:
      matrix: [F, F]; only its upper triangle is read.
      dtype: Of the result.

    Returns:
      [F (F + 1) / 2].

    Example:
      >>> pack_triangle(np.array([[1, 2], [2, 3]]), np.float32).tolist()
      [1.0, 2.0, 3.0]
    """
    width = matrix.shape[0]
    triangle = np.empty(width * (width + 1) // 2, dtype)
    start = 0
    for row in range(width):  # Index arrays would take sixteen bytes per number.
        triangle[start : start + width - row] = matrix[row, row:]
        start += width - row
    return triangle


def unpack_triangle(triangle: np.ndarray) -> np.ndarray:
    """Returns the symmetric matrix of a packed upper triangle.

    Args:
      triangle: [F (F + 1) / 2], from `pack_triangle`.

    Returns:
      float64 [F, F].

    Raises:
      ValueError: If no triangle has the size of `triangle`.

    Example:
      >>> unpack_triangle(np.array([1.0, 2.0, 3.0])).tolist()
      [[1.0, 2.0], [2.0, 3.0]]
    """
    width = (math.isqrt(8 * triangle.size + 1) - 1) // 2
    if triangle.ndim != 1 or width * (width + 1) // 2 != triangle.size:
        raise ValueError(f"an array of shape {triangle.shape} is not a packed triangle")
    matrix = np.empty((width, width))
    start = 0
    for row in range(width):
        matrix[row, row:] = matrix[row:, row] = triangle[start : start + width - row]
        start += width - row
    return matrix
