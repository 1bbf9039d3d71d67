"""The whitening solve and the condition number."""

import tracemalloc

import jax
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from rome_jax.moments.decompositions import factor_in_place
from rome_jax.moments.second_moment import MomentProvenance, SecondMoment


def positive_definite(width, seed=0):
    root = np.random.default_rng(seed).standard_normal((width, width))
    return root @ root.T / width + np.eye(width)


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 1000), width=st.integers(1, 30), shape=st.sampled_from([(), (2,), (2, 3)])
)
def test_solve_equals_numpys(seed, width, shape):
    matrix = positive_definite(width, seed)
    keys = np.random.default_rng(seed + 1).standard_normal((*shape, width)).astype(np.float32)
    solved = SecondMoment(matrix, 100).solve(keys)
    wanted = np.linalg.solve(matrix, keys.reshape(-1, width).T.astype(np.float64)).T
    assert solved.shape == keys.shape
    assert solved.dtype == np.float32
    # The float64 solution is rounded to float32 once.
    np.testing.assert_allclose(solved.reshape(-1, width), wanted, rtol=2**-23, atol=1e-12)


def test_solve_takes_jax_arrays():
    moment = SecondMoment(np.diag([1.0, 4.0]), 10)
    np.testing.assert_array_equal(moment.solve(jax.numpy.array([2.0, 2.0])), [2.0, 0.5])


@pytest.mark.parametrize(
    "matrix", [np.zeros((3, 3)), np.diag([1.0, -1.0, 2.0]), np.ones((3, 3))], ids=str
)
def test_a_matrix_that_is_not_positive_definite_is_an_error(matrix):
    with pytest.raises(ValueError, match=r"layer 0 is not positive definite \(it averages 2"):
        SecondMoment(matrix, 2).solve(np.ones(3))


def test_keys_of_another_width_are_an_error():
    with pytest.raises(ValueError, match="keys of width 4 and a second moment of width 3"):
        SecondMoment(np.eye(3), 9).solve(np.ones((2, 4)))


@pytest.mark.parametrize("shape", [(3, 4), (3,), (1, 3, 3)])
def test_a_moment_is_square(shape):
    with pytest.raises(ValueError, match="square"):
        SecondMoment(np.ones(shape), 9)


@pytest.mark.parametrize("width", [1, 7, 60])
def test_condition_number_is_that_of_the_1_norm(width):
    matrix = positive_definite(width, seed=width)
    estimate = SecondMoment(matrix, 100).condition_number()
    exact = np.linalg.cond(matrix, 1)
    # LAPACK's estimate is a lower bound, which is usually sharp.
    assert 0.5 * exact <= estimate <= 1.001 * exact


def test_condition_number_of_a_singular_matrix_is_an_error():
    with pytest.raises(ValueError, match="not positive definite"):
        SecondMoment(np.ones((3, 3)), 2).condition_number()


def test_fill_rate():
    known = MomentProvenance(rows=5, sequence_length=8, fingerprint="abc")
    moment = SecondMoment(np.eye(2), 30, known)
    assert moment.fill_rate == 0.75
    assert moment.fingerprint == "abc"
    assert np.isnan(SecondMoment(np.eye(2), 30).fill_rate)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_keys_that_are_not_finite_are_an_error(wrong):
    with pytest.raises(ValueError, match="keys hold NaN or infinity"):
        SecondMoment(np.eye(2), 3).solve(np.array([[1.0, 2.0], [wrong, 1.0]]))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("keys", [1, 3])
def test_solve_reads_the_factor_where_it_lies(monkeypatch, order, keys):
    """A copy of GPT-J's factor takes 2 GB and several seconds; scipy's versions return it in different orders."""
    width = 400
    cho_factor = scipy.linalg.cho_factor

    def factor_in_order(*args, **options):
        factor, lower = cho_factor(*args, **options)
        return np.array(factor, order=order), lower

    monkeypatch.setattr(scipy.linalg, "cho_factor", factor_in_order)
    moment = SecondMoment(np.diag(np.arange(1.0, width + 1)), width)
    moment.solve(np.ones((keys, width)))
    tracemalloc.start()
    moment.solve(np.ones((keys, width)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < moment.mean.nbytes / 4


@pytest.mark.parametrize("block", [1, 7, 20, 64])
def test_a_factor_does_not_depend_on_its_blocks(block):
    root = np.random.default_rng(0).standard_normal((20, 20))
    matrix = root @ root.T + np.eye(20)
    factor = np.tril(factor_in_place(np.array(matrix, order="F"), block))
    np.testing.assert_allclose(factor, np.linalg.cholesky(matrix), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("column", [0, 9, 19])
def test_an_indefinite_matrix_is_found_in_every_block(column):
    matrix = np.eye(20, order="F")
    matrix[column, column] = -1
    with pytest.raises(np.linalg.LinAlgError):
        factor_in_place(matrix, block=7)
