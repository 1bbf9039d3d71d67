"""The error of C: it predicts how far the directions of edits are off."""

import itertools

import numpy as np
import pytest

from rome_jax.data.tokens import pad
from rome_jax.models.forward import capture
from rome_jax.models.interventions import Site
from rome_jax.moments.error_bar import direction_error, draw_keys, is_due
from rome_jax.moments.key_sums import KeySums
from rome_jax.moments.second_moment import SecondMoment
from tests.moments.examples import LENGTHS, random_rows, tiny_model

WIDTH = 32


def gaussian_keys(count, seed):
    """Keys of a known second moment with eigenvalues from 1e-4 to 1, and that second moment."""
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((WIDTH, WIDTH)))[0]
    eigenvalues = np.logspace(-4, 0, WIDTH)
    draws = np.random.default_rng(seed).standard_normal((count, WIDTH))
    return (draws * np.sqrt(eigenvalues)) @ rotation, rotation.T @ np.diag(eigenvalues) @ rotation


def true_error(keys, probes, second_moment):
    """The mean of 1 - cos of the angle between C⁻¹ k of a sample and that of the known second moment."""
    found, wanted = (
        SecondMoment(mean, count=10**6).solve(probes).astype(np.float64)
        for mean in (keys.T @ keys / len(keys), second_moment)
    )
    norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(wanted, axis=-1)
    return np.mean(1 - np.sum(found * wanted, axis=-1) / norms)


@pytest.mark.parametrize("tokens", [(600, 600), (400, 800), (4000, 4000)])
def test_it_predicts_the_true_error_of_the_full_second_moment(tokens):
    predicted, actual = [], []
    for seed in range(20):
        keys, second_moment = gaussian_keys(sum(tokens), seed)
        probes, _ = gaussian_keys(16, 1000 + seed)
        halves = [part.T @ part for part in np.split(keys, [tokens[0]])]
        predicted.append(direction_error(*halves, tokens, probes))
        actual.append(true_error(keys, probes, second_moment))
    assert np.mean(predicted) == pytest.approx(np.mean(actual), rel=0.15)
    # One prediction is as good as the mean.
    assert np.std(predicted) < 0.5 * np.mean(actual)


def test_a_key_in_the_sums_does_not_flatter_its_own_error():
    keys, _ = gaussian_keys(800, 0)
    first, second = (part.T @ part for part in np.split(keys, 2))
    held_out = first - np.outer(keys[0], keys[0])
    errors = [direction_error(total, second, (400, 400), keys[:1]) for total in (first, held_out)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_without_directions_the_error_is_unknown():
    keys, _ = gaussian_keys(WIDTH + 10, 0)
    halves = keys[:10].T @ keys[:10], keys[10:].T @ keys[10:]
    assert direction_error(*halves, (10, WIDTH), keys[:2]) is None
    repeated = np.ones((WIDTH, WIDTH)) * 99  # as many keys as needed, but all in one direction
    assert direction_error(repeated, halves[1], (99, WIDTH), keys[:2]) is None


def test_its_keys_are_those_of_tokens_spread_over_a_batch():
    model, batch = tiny_model(), pad(random_rows()[:4], multiple=48)
    sums = KeySums(model.params, model.config, [0, 2])
    keys = draw_keys(sums, batch, 3)
    assert list(keys) == [0, 2] and sums.tokens == 0
    site = capture(model.params, model.config, batch, (Site.MLP_KEY,))[Site.MLP_KEY]
    flat = np.asarray(site).reshape(site.shape[0], -1, site.shape[-1])
    places = np.flatnonzero(batch.mask)[[int((i + 0.5) * sum(LENGTHS[:4]) / 3) for i in range(3)]]
    for layer, found in keys.items():
        np.testing.assert_allclose(found, flat[layer, places], rtol=1e-5, atol=1e-6)


def test_checks_depend_on_the_numbers_of_tokens_alone():
    sizes = list(range(0, 20_000, 100))
    due = [after for before, after in itertools.pairwise(sizes) if is_due(before, after)]
    assert 15 <= len(due) <= 40
    assert all(later / earlier < 1.6 for earlier, later in itertools.pairwise(due[5:]))
