"""Second moments: accumulation, the solve, files."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rome_jax import covariance
from rome_jax.covariance import SecondMoment
from rome_jax.models import forward
from rome_jax.models.interventions import Site
from rome_jax.tokens import pad
from tests.models.checkpoints import random_params, tiny_config

STATS = "stats_files/gpt2/transformer.h.1.mlp.c_proj_float32_mom2_500.npz"
LENGTHS = (12, 1, 7, 9, 3, 12, 5, 8)


@pytest.fixture(scope="module")
def tiny():
    config = tiny_config("gpt2")
    return random_params(config), config


@pytest.fixture(scope="module")
def rows():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 50, length).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def expected(tiny, rows):
    """Per layer, Σ k kᵀ / count in float64, from the keys of each row alone."""
    params, config = tiny
    total = 0
    for row in rows:
        batch = pad([row], multiple=12)
        keys = forward.capture(params, config, batch, (Site.MLP_KEY,))[Site.MLP_KEY]
        keys = np.asarray(keys, np.float64)[:, 0, : len(row)]
        total = total + np.swapaxes(keys, 1, 2) @ keys
    return total / sum(LENGTHS)


def relative_error(actual, wanted):
    return np.linalg.norm(actual - wanted) / np.linalg.norm(wanted)


def positive_definite(width, seed=0):
    root = np.random.default_rng(seed).standard_normal((width, width))
    return root @ root.T / width + np.eye(width)


# Accumulation


@pytest.mark.parametrize(
    ("per_batch", "left"), [(8, False), (8, True), (4, False), (1, False)], ids=str
)
def test_accumulate_is_the_mean_outer_product_of_the_keys(tiny, rows, expected, per_batch, left):
    batches = [
        pad(rows[i : i + per_batch], multiple=12, left=left) for i in range(0, len(rows), per_batch)
    ]
    moments = covariance.accumulate(*tiny, batches)
    assert sorted(moments) == [0, 1, 2]
    for layer, moment in moments.items():
        assert moment.count == sum(LENGTHS)
        assert moment.mean.dtype == np.float64
        assert relative_error(moment.mean, expected[layer]) <= 1e-6


def test_accumulate_stops_where_it_is_told(tiny, rows, expected):
    moments = covariance.accumulate(*tiny, [pad(rows, multiple=12)], stop=1)
    assert sorted(moments) == [0]
    assert relative_error(moments[0].mean, expected[0]) <= 1e-6


def test_batches_may_come_from_a_generator(tiny, rows):
    batches = (pad([row], multiple=12) for row in rows[:2])
    assert covariance.accumulate(*tiny, batches)[0].count == sum(LENGTHS[:2])


def test_no_batches_is_an_error(tiny):
    with pytest.raises(ValueError, match="at least one batch"):
        covariance.accumulate(*tiny, [])


# The solve


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 1000), width=st.integers(1, 30), shape=st.sampled_from([(), (2,), (2, 3)])
)
def test_solve_is_that_of_numpy(seed, width, shape):
    matrix = positive_definite(width, seed)
    keys = np.random.default_rng(seed + 1).standard_normal((*shape, width)).astype(np.float32)
    solved = SecondMoment(matrix, 100).solve(keys)
    wanted = np.linalg.solve(matrix, keys.reshape(-1, width).T.astype(np.float64)).T
    assert solved.shape == keys.shape
    assert solved.dtype == np.float32
    # One rounding to float32 of a solution that is right to float64.
    np.testing.assert_allclose(solved.reshape(-1, width), wanted, rtol=2**-23, atol=1e-12)


def test_solve_takes_jax_arrays():
    moment = SecondMoment(np.diag([1.0, 4.0]), 10)
    np.testing.assert_array_equal(moment.solve(jax.numpy.array([2.0, 2.0])), [2.0, 0.5])


@pytest.mark.parametrize(
    "matrix", [np.zeros((3, 3)), np.diag([1.0, -1.0, 2.0]), np.ones((3, 3))], ids=str
)
def test_a_matrix_that_is_not_positive_definite_is_an_error(matrix):
    with pytest.raises(ValueError, match=r"2 tokens and width 3 is not positive definite"):
        SecondMoment(matrix, 2).solve(np.ones(3))


def test_keys_of_another_width_are_an_error():
    with pytest.raises(ValueError, match="keys of width 4 and a second moment of width 3"):
        SecondMoment(np.eye(3), 9).solve(np.ones((2, 4)))


@pytest.mark.parametrize("shape", [(3, 4), (3,), (1, 3, 3)])
def test_a_moment_is_square(shape):
    with pytest.raises(ValueError, match="square"):
        SecondMoment(np.ones(shape), 9)


# Files


def test_save_and_load(tmp_path):
    moments = {3: SecondMoment(positive_definite(5), 17), 11: SecondMoment(positive_definite(2), 9)}
    path = tmp_path / "moments.npz"
    covariance.save(path, moments)
    loaded = covariance.load(path)
    assert sorted(loaded) == [3, 11]
    for layer, moment in moments.items():
        assert loaded[layer].count == moment.count
        rounded = moment.mean.astype(np.float32).astype(np.float64)
        np.testing.assert_array_equal(loaded[layer].mean, rounded)
    assert [file.name for file in tmp_path.iterdir()] == ["moments.npz"]


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "moments.npz"
    covariance.save(path, {0: SecondMoment(np.eye(2), 5)})

    def write_half(file, **arrays):
        with open(file, "wb") as out:
            out.write(b"PK half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", write_half)
    with pytest.raises(OSError, match="no space"):
        covariance.save(path, {0: SecondMoment(2 * np.eye(2), 5)})
    np.testing.assert_array_equal(covariance.load(path)[0].mean, np.eye(2))


def test_no_file_is_an_error(tmp_path):
    for read in (covariance.load, covariance.load_reference):
        with pytest.raises(FileNotFoundError, match=r"absent\.npz"):
            read(tmp_path / "absent.npz")


def test_a_file_of_the_original_is_divided_by_its_count(request):
    path = request.path.parent / "golden" / STATS
    moment = covariance.load_reference(path)
    with np.load(path) as file:
        total, count = file["mom2.mom2"], int(file["mom2.count"])
    assert moment.count == count > 1
    np.testing.assert_array_equal(moment.mean, total.astype(np.float64) / count)


def test_a_file_of_another_kind_is_refused_by_its_keys(tmp_path):
    path = tmp_path / "moments.npz"
    covariance.save(path, {0: SecondMoment(np.eye(2), 5)})
    with pytest.raises(
        ValueError, match=r"holds \['count_0', 'fingerprint_0', 'layer_0'\], not the original's"
    ):
        covariance.load_reference(path)


def test_a_file_of_the_original_is_not_one_of_ours(request):
    with pytest.raises(ValueError, match="load_reference"):
        covariance.load(request.path.parent / "golden" / STATS)
