"""The closed form of all editors against its definition, written down in float64 with explicit inverses."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rome_jax.edit import solver
from rome_jax.edit.config import SolverDevice
from rome_jax.edit.penalty import PastKeys, Penalty
from rome_jax.edit.solver import DuplicateKeysError, associate
from rome_jax.moments.second_moment import SecondMoment

F = 24
GENERATOR = np.random.default_rng(11)


def moment_of(width=F, seed=1):
    root = np.random.default_rng(seed).standard_normal((width, width))
    return SecondMoment(root @ root.T / width + 0.05 * np.eye(width), 1000)


MOMENT = moment_of()
BASIS = MOMENT.null_space(float(np.median(MOMENT.eigen[0])))
THRESHOLD = float(np.quantile(MOMENT.eigen[0], 0.8))
LARGE = MOMENT.null_space(THRESHOLD)  # larger than its complement
# Each penalty with a function of past keys [P, F] that gives A⁻¹.
PENALTIES = {
    "identity": (Penalty.of(None, 3.0, 1.0), 4.0 * np.eye(F), None),
    "moment": (Penalty.of(MOMENT, 3.0), 3.0 * MOMENT.mean, None),
    "moment and ridge": (Penalty.of(MOMENT, 3.0, 0.7), 3.0 * MOMENT.mean + 0.7 * np.eye(F), None),
    "null space": (Penalty.null_space(BASIS, 2.0), 2.0 * np.eye(F), BASIS),
    "large null space": (
        Penalty.null_space(LARGE, 2.0, MOMENT.null_space_complement(THRESHOLD)),
        2.0 * np.eye(F),
        LARGE,
    ),
}


def inverse(name, past):
    _, matrix, basis = PENALTIES[name]
    matrix = matrix + past.T @ past
    if basis is None:
        return np.linalg.inv(matrix)
    return basis @ np.linalg.inv(basis.T @ matrix @ basis) @ basis.T


def explicit(keys, inverted, slack):
    solved = keys @ inverted
    return np.linalg.solve(solved @ keys.T + slack * np.eye(len(keys)), solved)


def remembered(penalty, past):
    return PastKeys.none(penalty, F).add(penalty.whiten(past), basis=penalty.basis)


def error(actual, expected):
    return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("device", SolverDevice)
@pytest.mark.parametrize("num_past", [0, 3, 60])
@pytest.mark.parametrize(("num_keys", "slack"), [(1, 0.0), (1, 1.0), (5, 0.0), (5, 0.1), (40, 1.0)])
@pytest.mark.parametrize("name", PENALTIES)
def test_it_is_its_definition(name, num_keys, slack, num_past, device):
    penalty = PENALTIES[name][0]
    keys = GENERATOR.standard_normal((num_keys, F))
    past = GENERATOR.standard_normal((num_past, F))
    stored = remembered(penalty, past) if num_past else None
    found = associate(keys, penalty, slack, stored, device)
    # The stored keys are rounded to float32.
    assert error(found.left, explicit(keys, inverse(name, past), slack)) <= 2e-6
    assert found.residual <= solver.TOLERANCE
    assert found.device is (device if num_past else SolverDevice.HOST)


def test_independent_sets_are_solved_as_one_by_one():
    keys = GENERATOR.standard_normal((4, 3, F))
    found = associate(keys, PENALTIES["moment"][0]).left
    for own, left in zip(keys, found, strict=True):
        assert error(left, associate(own, PENALTIES["moment"][0]).left) <= 1e-12


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 8), st.floats(0.01, 100), st.floats(0.01, 10), st.integers(0, 100))
def test_emmet_without_ridge_is_memit_with_the_product_of_both_weights(count, weight, slack, seed):
    keys = np.random.default_rng(seed).standard_normal((count, F))
    emmet = associate(keys, Penalty.of(MOMENT, weight), slack).left
    memit = associate(keys, Penalty.of(MOMENT, weight * slack), 1.0).left
    assert error(emmet, memit) <= 1e-9


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 30), st.floats(0.1, 100), st.integers(0, 100))
def test_alphaedit_is_the_nonsymmetric_system_of_its_authors(count, num_past, ridge, seed):
    generator = np.random.default_rng(seed)
    keys, past = (generator.standard_normal((n, F)) for n in (count, num_past))
    penalty = Penalty.null_space(BASIS, ridge)
    left = associate(keys, penalty, 1.0, remembered(penalty, past)).left
    projection = BASIS @ BASIS.T
    system = projection @ (keys.T @ keys + past.T @ past) + ridge * np.eye(F)
    assert error(left.T, np.linalg.solve(system, projection @ keys.T)) <= 1e-5


@pytest.mark.parametrize("num_past", [0, 3, 60])
@pytest.mark.parametrize("name", ["null space", "large null space"])
def test_keys_outside_of_the_null_space_keep_their_values(name, num_past):
    penalty, _, basis = PENALTIES[name]
    keys, past = (GENERATOR.standard_normal((n, F)) for n in (5, num_past))
    stored = remembered(penalty, 100 * past) if num_past else None
    left = associate(keys, penalty, 1.0, stored).left
    outside = left - (left @ basis) @ basis.T
    assert np.abs(outside).max() <= 1e-14 * np.abs(left).max()


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(6)), st.sampled_from(sorted(PENALTIES)))
def test_the_order_of_keys_does_not_matter(order, name):
    keys = np.random.default_rng(3).standard_normal((6, F))
    order = list(order)
    penalty = PENALTIES[name][0]
    permuted = associate(keys[order], penalty).left
    assert error(permuted, associate(keys, penalty).left[order]) <= 1e-9


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_past_keys_added_in_parts_are_those_added_at_once(sizes):
    generator = np.random.default_rng(4)
    parts = [generator.standard_normal((size, F)) for size in sizes]
    past = PastKeys(np.zeros((0, F), np.float32))
    for part in parts:
        before = past
        past = past.add(part)
        assert before is not past
    whole = np.concatenate(parts)
    assert (past.gram is None) == (len(whole) <= F)
    if past.factor is not None:
        expected = np.linalg.cholesky(np.eye(len(whole)) + whole @ whole.T)
        assert error(past.factor, expected) <= 1e-5
    rows = generator.standard_normal((2, F))
    assert error(past.times(rows), rows + rows @ whole.T @ whole) <= 1e-6


@pytest.mark.parametrize("name", PENALTIES)
def test_the_factor_grows_by_what_the_solve_computed(name):
    """The keys that are stored, rounded to float32, are those whose products the solve returns."""
    penalty = PENALTIES[name][0]
    past = remembered(penalty, GENERATOR.standard_normal((3, F)))
    for _ in range(4):
        found = associate(GENERATOR.standard_normal((2, F)), penalty, 1.0, past)
        assert found.below is not None
        past = past.add(found.whitened, found.below)
    stored = past.keys.astype(np.float64)
    expected = np.linalg.cholesky(np.eye(len(stored)) + stored @ stored.T)
    assert error(past.factor, expected) <= 1e-13


@pytest.mark.parametrize("name", ["null space", "large null space"])
def test_past_keys_that_outnumber_their_width_are_summed_up_in_the_basis(name):
    penalty, _, basis = PENALTIES[name]
    batches = [GENERATOR.standard_normal((10, F)) for _ in range(5)]
    past = PastKeys.none(penalty, F)
    for index, batch in enumerate(batches):
        found = associate(batch, penalty, 1.0, past)
        before = np.concatenate([np.zeros((0, F)), *batches[:index]])
        assert error(found.left, explicit(batch, inverse(name, before), 1.0)) <= 2e-6
        past = past.add(found.whitened, found.below, penalty.basis)
    assert past.gram.shape == (basis.shape[1],) * 2 and past.width == basis.shape[1]
    smaller = Penalty.null_space(basis[:, 1:], 2.0)
    with pytest.raises(
        ValueError, match=r"span of rank \d+, and the penalty that of rank \d+: give"
    ):
        associate(batches[0], smaller, 1.0, past)
    with pytest.raises(ValueError, match="outnumber their width: give its basis"):
        PastKeys.none(penalty, F).add(penalty.whiten(np.ones((F + 1, F))))


def test_float32_that_fails_is_repeated_on_the_host():
    penalty = PENALTIES["identity"][0]
    huge = remembered(penalty, 1e25 * np.eye(F)[:3])  # its squares overflow float32
    keys = GENERATOR.standard_normal((2, F))
    found = associate(keys, penalty, 1.0, huge, SolverDevice.ACCELERATOR)
    assert found.device is SolverDevice.HOST
    assert np.isfinite(found.left).all()


def test_equal_keys_without_a_slack_are_named():
    keys = GENERATOR.standard_normal((4, F))
    keys[3] = keys[1] * (1 + 1e-7)
    with pytest.raises(DuplicateKeysError, match="requests 1 and 3 are equal") as refused:
        associate(keys, PENALTIES["moment"][0], 0.0)
    assert refused.value.pairs == ((1, 3),)
    assert np.isfinite(associate(keys, PENALTIES["moment"][0], 0.1).left).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1e-7]))
def test_dependent_keys_without_a_slack_are_refused(seed, noise):
    """Rounding often leaves a dependent system that can be factored, and whose solution has a small residual."""
    keys = np.random.default_rng(seed).standard_normal((3, F))
    keys[2] = (keys[0] + keys[1]) * (1 + noise * keys[2])
    with pytest.raises(ValueError, match="linearly dependent"):
        associate(keys, PENALTIES["moment"][0], 0.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_keys_that_are_not_finite_are_refused(value):
    keys = np.ones((2, F))
    keys[0, 3] = value
    with pytest.raises(ValueError, match="keys of the requests are not finite"):
        associate(keys, PENALTIES["identity"][0])


def test_past_keys_of_another_penalty_are_refused():
    past = remembered(PENALTIES["null space"][0], GENERATOR.standard_normal((2, F)))
    with pytest.raises(ValueError, match="span of rank 12, and the penalty that of all keys: give"):
        associate(np.ones((1, F)), PENALTIES["identity"][0], 1.0, past)
    with pytest.raises(ValueError, match="span of rank 12, and the penalty that of rank 11: give"):
        associate(np.ones((1, F)), Penalty.null_space(BASIS[:, :11], 2.0), 1.0, past)
    with pytest.raises(ValueError, match="width 24, and those of the requests 20"):
        associate(np.ones((1, 20)), Penalty.of(None, 1.0), 1.0, past)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({}, "neither rows nor a square second moment"),
        ({"gram": np.ones((2, 3))}, "neither rows nor a square second moment"),
        ({"keys": np.ones((2, F), np.float32), "factor": np.eye(3)}, "do not belong together"),
    ],
)
def test_past_keys_of_other_shapes_are_refused(arrays, said):
    with pytest.raises(ValueError, match=said):
        PastKeys(**arrays)


def test_a_penalty_that_is_not_definite_is_refused():
    indefinite = dataclasses.replace(MOMENT, mean=MOMENT.mean - np.eye(F))
    with pytest.raises(ValueError, match=r"plus 0\.1 on its diagonal is not positive definite"):
        Penalty.of(indefinite, 1.0, 0.1)


def test_the_null_space_is_strictly_below_the_threshold():
    moment = SecondMoment(np.diag([1.0, 2.0, 3.0]), 100)
    assert moment.null_space(2.0).shape == (3, 1)
    assert moment.null_space(2.1).shape == (3, 2)
    with pytest.raises(
        ValueError, match=r"nullspace_threshold=1 is not above .* smallest is 1: raise"
    ):
        moment.null_space(1.0)
