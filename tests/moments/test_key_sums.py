"""Sums of k kᵀ: digits, layers, half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.packing import Packer, stack
from rome_jax.data.tokens import pad
from rome_jax.models import forward
from rome_jax.models.interventions import Site
from rome_jax.moments import key_sums
from rome_jax.moments.key_sums import KeySums
from tests.models.checkpoints import FAMILIES, random_params, tiny_config


def relative_error(actual, wanted):
    return np.linalg.norm(actual - wanted) / np.linalg.norm(wanted)


def packed_batches(count, num_rows, length, seed=0):
    """Packed rows of random documents; the last batch is short."""
    generator = np.random.default_rng(seed)
    sizes = np.clip(generator.lognormal(3.0, 1.0, count).astype(int), 1, length)
    rows = list(Packer((generator.integers(0, 50, n).astype(np.int32) for n in sizes), length))
    batches = [
        stack(rows[i : i + num_rows], num_rows, length) for i in range(0, len(rows), num_rows)
    ]
    return batches, sizes.sum()


def keys_of(params, config, batch):
    """The keys of a batch's real tokens in float64, [L, tokens, F]."""
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
    config = tiny_config(family)
    params = random_params(config)
    batches, tokens = packed_batches(30, 4, 32)
    together = KeySums(params, config, range(3))
    for batch in batches:
        together.add(batch)
    for layer in range(3):
        alone = KeySums(params, config, [layer])
        for batch in batches:
            alone.add(batch)
        wanted = sum(
            np.einsum("tf,tg->fg", keys, keys)
            for keys in (keys_of(params, config, batch)[layer] for batch in batches)
        )
        assert list(alone.totals) == [layer] and alone.tokens == together.tokens == tokens
        assert relative_error(alone.totals[layer], together.totals[layer]) <= 1e-6
        assert relative_error(alone.totals[layer], wanted) <= 1e-6


def test_nothing_above_the_last_layer_runs(monkeypatch):
    config = tiny_config("gpt2")
    ran, run = [], key_sums._run

    def recorded(*args, **kwargs):
        ran.append((int(args[5]), kwargs["summed"], kwargs["last"]))
        return run(*args, **kwargs)

    monkeypatch.setattr(key_sums, "_run", recorded)
    KeySums(random_params(config), config, [1]).add(pad([[1, 2, 3]]))
    assert ran == [(0, False, False), (1, True, True)]


def test_padding_counts_nothing():
    config = tiny_config("gptj")
    params = random_params(config)
    totals = []
    for batch in (pad([[4, 5, 6], [7]], multiple=8), pad([[4, 5, 6], [7]], multiple=8, left=True)):
        sums = KeySums(params, config, [2])
        sums.add(batch)
        assert sums.tokens == 4
        totals.append(sums.totals[2])
    assert relative_error(*totals) <= 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_of_half_precision_weights_are_computed_in_float32(family):
    config = tiny_config(family)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_params(config))
    full = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    batches, _ = packed_batches(30, 4, 32)
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
    config = tiny_config("gpt2")
    with pytest.raises(ValueError, match=r"layers=3 does not exist: the model has layers 0 to 2"):
        KeySums(random_params(config), config, [0, 3])
    with pytest.raises(ValueError, match="layers is empty"):
        KeySums(random_params(config), config, [])
