"""Eigenvectors of second moments, computed once per matrix and kept in the cache directory.

Decomposing C of a wide model takes minutes to hours, much longer than an edit. The file of a decomposition is named
after the content of C, so that another C never finds it.

Axes: F MLP width.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import numpy as np
import scipy.linalg

from rome_jax.files import safetensors_io
from rome_jax.files.artifacts import cache_directory, trim_directory

SMALLEST = 2048  # F from which decompositions are kept; smaller ones take a few seconds
_MOST_BYTES = 30 * 2**30  # of all decompositions; those of GPT-J's six layers take 13 GB


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
    if len(matrix) < SMALLEST:
        return _decompose(matrix)
    try:
        path = path_of(matrix)
    except FileNotFoundError:  # this user has no home folder
        return _decompose(matrix)
    with contextlib.suppress(OSError, ValueError):
        if (found := _read(path, len(matrix))) is not None:
            return found
    values, vectors = _decompose(matrix)
    with contextlib.suppress(OSError):
        specs = {"values": (values.dtype, values.shape), "vectors": (vectors.dtype, vectors.shape)}
        safetensors_io.write(path, specs, [values, vectors])
        trim_directory(path.parent, _MOST_BYTES)
    return values, vectors


def path_of(matrix: np.ndarray) -> Path:
    """Returns the path of a matrix's decomposition in the cache."""
    digest = hashlib.sha256(np.ascontiguousarray(matrix, np.float64).data).hexdigest()
    return cache_directory() / "decompositions" / f"{digest}.safetensors"


def _read(path: Path, width: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Reads a decomposition; None if there is none of this width."""
    if not path.exists():
        return None
    tensors = safetensors_io.open_file(path).tensors
    if {name: tensor.shape for name, tensor in tensors.items()} != {
        "values": (width,),
        "vectors": (width, width),
    }:
        return None
    return tensors["values"].read(), tensors["vectors"].read()


def _decompose(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decomposes a matrix with LAPACK."""
    values, vectors = scipy.linalg.eigh(matrix, check_finite=False)
    return values, vectors
