"""Eigenvectors and Cholesky factors of second moments, computed once per matrix and kept in the cache directory.

Decomposing C of a wide model takes minutes to hours, much longer than an edit, and factoring that of GPT-J half a
minute on two cores. The file of a decomposition is named after the content of C, so that another C never finds it.

Axes: F MLP width.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import scipy.linalg

from rome_jax.files import safetensors_io
from rome_jax.files.artifacts import cache_directory, trim_directory

SMALLEST = 2048  # F from which eigenvectors are kept; smaller ones take a few seconds
SMALLEST_FACTOR = 8192  # the same of Cholesky factors
# Of all files; eigenvectors of GPT-J's six layers take 13 GB, and factors as much.
_MOST_BYTES = 30 * 2**30
_BLOCK = 4096


def eigen(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decomposes a symmetric matrix, or reads its decomposition from the cache.

    A cache that cannot be read or written is passed over.

    Args:
      matrix: [F, F].

    Returns:
      Eigenvalues in ascending order, float64 [F], and eigenvectors as columns, float64 [F, F].

    Example:
      >>> eigen(np.diag([4.0, 1.0]))[0].tolist()
      [1.0, 4.0]
    """
    matrix = np.asarray(matrix, np.float64)
    width = len(matrix)

    def compute() -> list[np.ndarray]:
        return list(_decompose(matrix))

    shapes = {"values": (width,), "vectors": (width, width)}
    values, vectors = _kept(matrix, "", shapes, compute) if width >= SMALLEST else compute()
    return values, vectors


def cholesky(matrix: np.ndarray, ridge: float = 0.0) -> np.ndarray:
    """Factors C + ν I = L Lᵀ, or reads the factor from the cache, as `eigen` does.

    Args:
      matrix: [F, F] C, all numbers finite.
      ridge: ν, at least 0.

    Returns:
      float64 [F, F] L in the lower triangle, in Fortran order; the rest is meaningless.

    Raises:
      LinAlgError: If C + ν I is not positive definite.

    Example:
      >>> np.tril(cholesky(np.array([[4.0, 2.0], [2.0, 4.0]]), ridge=1.0)).round(3).tolist()
      [[2.236, 0.0], [0.894, 2.049]]
    """
    width = len(matrix)

    def compute() -> list[np.ndarray]:
        # Factored in the memory of the only copy, 2 GB for GPT-J.
        copied = np.array(matrix, np.float64, order="F")
        if ridge:
            copied[np.diag_indices_from(copied)] += ridge
        return [factor_in_place(copied).T]  # files have C order

    shapes = {"factor": (width, width)}
    name = f".cholesky-{float(ridge).hex()}"
    (factor,) = _kept(matrix, name, shapes, compute) if width >= SMALLEST_FACTOR else compute()
    return factor.T


def _kept(
    matrix: np.ndarray,
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    compute: Callable[[], list[np.ndarray]],
) -> list[np.ndarray]:
    """Returns float64 arrays of these shapes from the cache; if it does not have them, computes and keeps them."""
    try:
        path = path_of(matrix, name)
    except FileNotFoundError:  # this user has no home folder
        return compute()
    with contextlib.suppress(OSError, ValueError):
        if (found := _read(path, shapes)) is not None:
            return found
    arrays = compute()
    with contextlib.suppress(OSError):
        specs = {key: (np.dtype(np.float64), shape) for key, shape in shapes.items()}
        safetensors_io.write(path, specs, arrays)
        trim_directory(path.parent, _MOST_BYTES)
    return arrays


def path_of(matrix: np.ndarray, name: str = "") -> Path:
    """Returns the path of a decomposition of a matrix in the cache; `name` tells kinds of decompositions apart."""
    digest = hashlib.sha256(np.ascontiguousarray(matrix, np.float64).data).hexdigest()
    return cache_directory() / "decompositions" / f"{digest}{name}.safetensors"


def _read(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> list[np.ndarray] | None:
    """Reads arrays; None if there are none of these shapes in float64."""
    if not path.exists():
        return None
    tensors = safetensors_io.open_file(path).tensors
    if {name: tensor.shape for name, tensor in tensors.items()} != dict(shapes):
        return None
    if any(tensor.dtype != np.float64 for tensor in tensors.values()):
        return None
    return [tensors[name].read() for name in shapes]


def _decompose(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decomposes a matrix with LAPACK."""
    values, vectors = scipy.linalg.eigh(matrix, check_finite=False)
    return values, vectors


def factor_in_place(matrix: np.ndarray, block: int = _BLOCK) -> np.ndarray:
    """Computes the Cholesky factor of a positive definite matrix, block column by block column.

    Args:
      matrix: float64 [F, F] in Fortran order; its memory is used.
      block: Number of columns per block. OpenBLAS 0.3 crashes if it factors a matrix of 16,384 columns, the width of
        GPT-J's MLPs, on several threads. Matrices of up to one block are factored in one call.

    Returns:
      The factor in the lower triangle; the rest is meaningless.

    Raises:
      LinAlgError: If the matrix is not positive definite.

    Example:
      >>> np.tril(factor_in_place(np.asfortranarray([[4.0, 2.0], [2.0, 5.0]]), block=1)).tolist()
      [[2.0, 0.0], [1.0, 2.0]]
    """
    for start in range(0, len(matrix), block):
        end = start + block
        if start:  # subtract what the columns to the left explain
            matrix[start:, start:end] -= matrix[start:, :start] @ matrix[start:end, :start].T
        diagonal, _ = scipy.linalg.cho_factor(
            matrix[start:end, start:end], lower=True, overwrite_a=True, check_finite=False
        )
        matrix[start:end, start:end] = diagonal
        matrix[end:, start:end] = scipy.linalg.solve_triangular(
            diagonal, matrix[end:, start:end].T, lower=True, check_finite=False
        ).T
    return matrix
