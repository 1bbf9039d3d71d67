"""The cache of decompositions: computed once per matrix, and never taken for another."""

import numpy as np
import pytest

from rome_jax.edit.penalty import Penalty
from rome_jax.edit.solver import associate
from rome_jax.files import safetensors_io
from rome_jax.moments import decompositions
from rome_jax.moments.second_moment import SecondMoment


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """Keeps decompositions of any width in an empty cache, and counts the computed ones."""
    monkeypatch.setenv("ROME_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(decompositions, "SMALLEST", 2)
    monkeypatch.setattr(decompositions, "SMALLEST_FACTOR", 2)
    computed = []
    decompose = decompositions._decompose
    monkeypatch.setattr(
        decompositions, "_decompose", lambda matrix: computed.append(1) or decompose(matrix)
    )
    return computed


def matrix_of(seed):
    root = np.random.default_rng(seed).standard_normal((8, 8))
    return root @ root.T


def test_a_matrix_is_decomposed_once(cached):
    first = decompositions.eigen(matrix_of(1))
    again = decompositions.eigen(matrix_of(1))
    for computed, read in zip(first, again, strict=True):
        np.testing.assert_array_equal(read, computed)
    assert len(cached) == 1
    values, vectors = again
    np.testing.assert_allclose(vectors * values @ vectors.T, matrix_of(1), atol=1e-12)
    moment = SecondMoment(matrix_of(1), 100)
    assert moment.null_space(float(values[3])).shape == (8, 3)
    assert len(cached) == 1, "second moments take it, too"


def test_another_matrix_is_another_file(cached):
    decompositions.eigen(matrix_of(1))
    values, _ = decompositions.eigen(matrix_of(1) * (1 + 1e-15))
    assert len(cached) == 2
    assert decompositions.path_of(matrix_of(1)) != decompositions.path_of(matrix_of(2))
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix_of(1)), rtol=1e-9)


def test_a_matrix_is_factored_once_per_ridge(cached, monkeypatch):
    matrix = matrix_of(1)
    first = {ridge: decompositions.cholesky(matrix, ridge) for ridge in (0.0, 0.5)}
    factored = []
    monkeypatch.setattr(
        decompositions, "factor_in_place", factored.append
    )  # it is not called again
    for ridge, expected in first.items():
        factor = decompositions.cholesky(matrix, ridge)
        assert factor.flags.f_contiguous
        np.testing.assert_array_equal(np.tril(factor), np.tril(expected))
        lower = np.tril(factor)
        np.testing.assert_allclose(lower @ lower.T, matrix + ridge * np.eye(8), atol=1e-12)
    moment = SecondMoment(matrix, 100)
    np.testing.assert_array_equal(moment.cholesky, first[0.0])
    np.testing.assert_array_equal(moment.shifted_cholesky(0.5), first[0.5])
    assert not factored and not cached
    # The factor in the cache is mapped, and cannot be written to.
    keys = np.random.default_rng(2).standard_normal((3, 8))
    for own in (keys, keys[:1]):
        expected = np.linalg.solve(matrix, own.T).T
        np.testing.assert_allclose(moment.solve(own), expected, rtol=1e-5)
        left = associate(own, Penalty.of(moment, 1.0)).left
        wanted = np.linalg.solve(expected @ own.T + np.eye(len(own)), expected)
        np.testing.assert_allclose(left, wanted, rtol=1e-9)
    assert moment.condition_number() == pytest.approx(np.linalg.cond(matrix, 1), rel=0.5)


def test_a_file_of_another_type_is_replaced(cached):
    values, vectors = decompositions.eigen(matrix_of(1))
    path = decompositions.path_of(matrix_of(1))
    arrays = [values.astype(np.float32), vectors.astype(np.float32)]
    names = ("values", "vectors")
    specs = {name: (array.dtype, array.shape) for name, array in zip(names, arrays, strict=True)}
    safetensors_io.write(path, specs, arrays)
    again, _ = decompositions.eigen(matrix_of(1))
    np.testing.assert_array_equal(again, values)
    assert len(cached) == 2


def test_what_cannot_be_factored_leaves_no_file(cached, tmp_path):
    with pytest.raises(np.linalg.LinAlgError):
        decompositions.cholesky(-np.eye(4))
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("content", [b"", b"damaged", None])
def test_a_damaged_file_is_replaced(cached, content):
    expected, _ = decompositions.eigen(matrix_of(1))
    path = decompositions.path_of(matrix_of(1))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] if content is None else content)
    values, _ = decompositions.eigen(matrix_of(1))
    np.testing.assert_array_equal(values, expected)
    assert len(cached) == 2 and path.read_bytes() == whole


def test_without_a_cache_it_computes_each_time(cached, monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("ROME_JAX_CACHE", str(tmp_path / "file"))  # no folder
    for _ in range(2):
        decompositions.eigen(matrix_of(1))
    assert len(cached) == 2


def test_narrow_matrices_leave_no_file(monkeypatch, tmp_path):
    monkeypatch.setenv("ROME_JAX_CACHE", str(tmp_path))
    decompositions.eigen(matrix_of(1))
    assert not list(tmp_path.iterdir())
