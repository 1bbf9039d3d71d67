"""Sums of k kᵀ and their means: digits, layers, batches, half precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.packing import Packer, stack
from rome_jax.data.tokens import pad
from rome_jax.models import forward
from rome_jax.models.fingerprint import fingerprint
from rome_jax.models.interventions import Site
from rome_jax.moments import key_sums
from rome_jax.moments.key_sums import KeySums, accumulate
from rome_jax.version import __version__
from tests.models.checkpoints import FAMILIES, random_params, tiny_config
from tests.moments.examples import LENGTHS, random_rows, relative_error, small_config


@functools.cache
def tiny(family="gpt2"):
    """Returns the (params, config) of a small random model."""
    config = small_config(family)
    return random_params(config), config


@functools.cache
def packed_batches(count=30, num_rows=4, length=48, seed=0):
    """Returns packed rows of random documents, the last batch not full, and their number of tokens."""
    generator = np.random.default_rng(seed)
    sizes = np.clip(generator.lognormal(3.0, 1.0, count).astype(int), 1, length)
    rows = list(Packer((generator.integers(0, 50, n).astype(np.int32) for n in sizes), length))
    batches = [
        stack(rows[i : i + num_rows], num_rows, length) for i in range(0, len(rows), num_rows)
    ]
    return batches, sizes.sum()


def keys_of(params, config, batch):
    """Returns the keys of a batch's real tokens in float64, [L, tokens, F]."""
    keys = forward.capture(params, config, batch, (Site.MLP_KEY,))[Site.MLP_KEY]
    return np.asarray(keys, np.float64)[:, np.asarray(batch.mask)]


def test_a_million_tokens_lose_no_digits():
    config = tiny_config("gpt2", num_layers=1, width=6, num_heads=1, mlp_width=24)
    params = random_params(config)
    batches, tokens = packed_batches(55_000, 512, 32)
    sums = KeySums(params, config, [0])
    wanted = 0
    for batch in batches:
        sums.add(batch)
        keys = keys_of(params, config, batch)[0]
        wanted = wanted + keys.T @ keys
    assert sums.tokens == tokens >= 1_000_000
    assert relative_error(np.triu(sums.totals[0]), np.triu(wanted)) <= 1e-7


@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_is_many_passes(family):
    params, config = tiny(family)
    batches, tokens = packed_batches()
    together = KeySums(params, config, range(3))
    for batch in batches:
        together.add(batch)
    captured = [keys_of(params, config, batch) for batch in batches]
    for layer in range(3):
        alone = KeySums(params, config, [layer])
        for batch in batches:
            alone.add(batch)
        wanted = sum(np.einsum("tf,tg->fg", keys[layer], keys[layer]) for keys in captured)
        assert list(alone.totals) == [layer] and alone.tokens == together.tokens == tokens
        assert relative_error(alone.totals[layer], together.totals[layer]) <= 1e-6
        assert relative_error(alone.totals[layer], wanted) <= 1e-6


def test_nothing_above_the_last_layer_runs(monkeypatch):
    ran, run = [], key_sums._run

    def recorded(*args, **kwargs):
        ran.append((int(args[5]), kwargs["summed"], kwargs["last"]))
        return run(*args, **kwargs)

    monkeypatch.setattr(key_sums, "_run", recorded)
    KeySums(*tiny(), [1]).add(pad([[1, 2, 3]] * 4, multiple=48))
    assert ran == [(0, False, False), (1, True, True)]


def test_padding_counts_nothing():
    params, config = tiny("gptj")
    rows = [[4, 5, 6], [7], [8, 9], [1]]
    totals = []
    for left in (False, True):
        sums = KeySums(params, config, [2])
        sums.add(pad(rows, multiple=48, left=left))
        assert sums.tokens == 7
        totals.append(sums.totals[2])
    assert relative_error(*totals) <= 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_of_half_precision_weights_are_computed_in_float32(family):
    params, config = tiny(family)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    full = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    batches, _ = packed_batches()
    first, both = KeySums(half, config, [0]), KeySums(half, config, [0, 1])
    exact = KeySums(full, config, [0, 1])
    for batch in batches:
        for sums in (first, both, exact):
            sums.add(batch)
    # Below layer 0 only the embedding is rounded, and at most once.
    assert relative_error(first.totals[0], exact.totals[0]) <= 5e-3
    assert relative_error(both.totals[1], exact.totals[1]) <= 5e-2
    # Whether a layer is summed changes nothing above it.
    alone = KeySums(half, config, [1])
    for batch in batches:
        alone.add(batch)
    assert relative_error(alone.totals[1], both.totals[1]) <= 1e-6


def test_layers_must_exist():
    with pytest.raises(ValueError, match=r"layers=3 does not exist: the model has layers 0 to 2"):
        KeySums(*tiny(), [0, 3])
    with pytest.raises(ValueError, match="layers is empty"):
        KeySums(*tiny(), [])


# The mean of several batches.


@pytest.fixture(scope="module")
def expected():
    """Σ k kᵀ / count of each layer in float64, from the keys of each row alone."""
    total = 0
    for row in random_rows():
        keys = keys_of(*tiny(), pad([row], multiple=12))
        total = total + np.swapaxes(keys, 1, 2) @ keys
    return total / sum(LENGTHS)


@pytest.mark.parametrize(("per_batch", "left"), [(8, False), (4, False), (4, True)], ids=str)
def test_accumulate_is_the_mean_outer_product_of_the_keys(expected, per_batch, left):
    rows = random_rows()
    # Batches may come from a generator.
    batches = (
        pad(rows[i : i + per_batch], multiple=48, left=left) for i in range(0, len(rows), per_batch)
    )
    moments = accumulate(*tiny(), batches)
    assert sorted(moments) == [0, 1, 2]
    for layer, moment in moments.items():
        assert moment.count == sum(LENGTHS)
        assert moment.mean.dtype == np.float64
        np.testing.assert_array_equal(moment.mean, moment.mean.T)
        assert relative_error(moment.mean, expected[layer]) <= 1e-6


def test_accumulate_does_the_requested_layers(expected):
    rows = random_rows()
    batches = [pad(rows[:4], multiple=48), pad(rows[4:], multiple=48)]
    moments = accumulate(*tiny(), batches, layers=[1])
    assert sorted(moments) == [1]
    assert relative_error(moments[1].mean, expected[1]) <= 1e-6
    known = moments[1].provenance
    assert (known.layer, known.fingerprint) == (1, fingerprint(*tiny()))
    assert (known.dtype, known.version) == ("float32", __version__)


def test_no_batches_is_an_error():
    with pytest.raises(ValueError, match="at least one batch"):
        accumulate(*tiny(), [])
