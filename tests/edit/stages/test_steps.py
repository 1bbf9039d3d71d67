"""The search of longer steps on a function whose minimum is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rome_jax.edit.stages.steps import Search

RATE = 0.1
GOALS = np.array([[[3.0, -2.0]], [[0.4, 0.1]]], np.float32)  # [N, 1, 2]


def run(scale, start=None, count=30, goals=GOALS, answered=1000):
    """(accepted [S, N], losses of the trials [S, N], scales [S, N], search) on Σ (δ − goal)⁴."""
    adam = optax.adam(RATE)
    goals = jnp.asarray(goals)

    def loss(delta):
        values = ((delta - goals) ** 4).sum((1, 2))
        return values.sum(), values

    search = Search.begin(adam, jnp.zeros_like(goals) if start is None else start, scale)
    trial, course = jnp.zeros_like(goals), []
    for index in range(count):
        gradient, values = jax.grad(loss, has_aux=True)(trial)
        terms = jnp.stack([values, values, 0 * values, 0 * values])
        accepted = search.accepts(terms)
        course.append((accepted, values, search.scale))
        search = search.accept(accepted, trial, terms)
        done = jnp.array([index >= answered, False])
        trial, search = search.advance(adam, accepted, gradient, jnp.zeros(2), done)
    return *map(np.array, zip(*course, strict=True)), search


def plain(count, goals=GOALS):
    adam, delta = optax.adam(RATE), jnp.zeros_like(goals)
    state = adam.init(delta)
    for _ in range(count):
        updates, state = adam.update(4 * (delta - goals) ** 3, state)
        delta = optax.apply_updates(delta, updates)
    return delta


def test_a_factor_of_one_is_adam():
    accepted, _, scales, search = run(1.0)
    assert accepted.all() and (scales == 1).all()
    np.testing.assert_allclose(search.delta, plain(29), rtol=1e-6)


@pytest.mark.parametrize("factor", [4.0, 64.0])
def test_rejected_steps_halve_the_factor_and_leave_adam_and_delta(factor):
    accepted, losses, scales, search = run(factor)
    best = np.inf * np.ones(2)
    for step in range(len(losses)):
        for n in range(2):
            longer = scales[step, n] > 1
            assert accepted[step, n] == (not longer or losses[step, n] <= best[n])
            best[n] = losses[step, n] if accepted[step, n] else best[n]
            if step + 1 < len(losses):
                expected = scales[step, n] if accepted[step, n] else max(scales[step, n] / 2, 1)
                assert scales[step + 1, n] == expected
    assert (~accepted).any()
    (counts,) = (leaf for leaf in jax.tree.leaves(search.adam) if leaf.ndim == 1)
    assert counts.tolist() == accepted.sum(0).tolist()
    np.testing.assert_allclose(search.terms[0], best)
    np.testing.assert_allclose(((search.delta - GOALS) ** 4).sum((1, 2)), best, rtol=1e-5)


def test_longer_steps_come_nearer_to_a_distant_minimum():
    reached = [run(factor, count=8)[3].terms[0] for factor in (1.0, 4.0)]
    assert reached[1][0] < reached[0][0] / 2


def test_steps_are_plain_once_the_target_is_the_answer():
    scales = run(4.0, count=4, answered=1)[2]
    assert scales.tolist() == [[4, 4], [4, 4], [1, 4], [1, 4]]


def test_adam_begins_anew_at_an_accepted_start():
    start = jnp.asarray(GOALS) * jnp.array([0.9, -9.0])[:, None, None]
    accepted, _, scales, search = run(1.0, start, count=3)
    assert accepted.tolist() == [[True, True], [True, False], [True, True]]
    assert (scales == 1).all()
    (counts,) = (leaf for leaf in jax.tree.leaves(search.adam) if leaf.ndim == 1)
    assert counts.tolist() == [2, 2]  # at the start and after it; at 0 and after it
    np.testing.assert_allclose(
        search.delta[0], start[0] + RATE * np.sign(GOALS[0]) * [[1, 1]], rtol=1e-3
    )
    np.testing.assert_allclose(search.delta[1], plain(1)[1], rtol=1e-6)


def test_the_bound_follows_the_weight_of_the_likelihood():
    """PMET weighs the likelihood by 0.1 once the target is the answer; trials are compared under equal weights."""
    adam = optax.adam(RATE)
    search = Search.begin(adam, jnp.zeros((1, 1, 2)), jnp.float32(2.0))
    terms = jnp.array([[5.0], [4.0], [1.0], [0.0]])
    search = search.accept(search.accepts(terms), jnp.ones((1, 1, 2)), terms)
    accepted = jnp.array([True])
    _, search = search.advance(adam, accepted, jnp.ones((1, 1, 2)), jnp.array([0.1 - 1]), ~accepted)
    np.testing.assert_allclose(search.bound, 0.4 + 1.0, rtol=1e-6)
    assert not search.accepts(jnp.array([[1.5], [0.4], [1.1], [0.0]]))[0]


def test_a_loss_that_is_not_a_number_is_taken_back():
    search = Search.begin(optax.adam(RATE), jnp.zeros((1, 1, 2)), jnp.float32(2.0))
    terms = jnp.ones((4, 1))
    search = search.accept(search.accepts(terms), jnp.ones((1, 1, 2)), terms)
    _, search = search.advance(
        *(optax.adam(RATE), jnp.array([True]), jnp.ones((1, 1, 2)), jnp.zeros(1)),
        jnp.array([False]),
    )
    assert not search.accepts(jnp.full((4, 1), jnp.nan))[0]
