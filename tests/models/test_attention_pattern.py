"""The pattern of attention as a site: what it holds, and what a patch of it does."""

import functools

import jax
import numpy as np
import pytest

from rome_jax.data.tokens import TokenBatch, pad
from rome_jax.models.forward import (
    capture,
    embed,
    logits,
    plain_attention,
    run_last_layer,
    run_layers,
)
from rome_jax.models.interventions import Site
from rome_jax.models.layers import Attention, Interventions
from rome_jax.models.patches import Patch, PatchMode, RunPatch
from tests.models.checkpoints import FAMILIES, SEQUENCES, tiny_model

HEADS = 3


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return tiny_model(request.param)


def patterns(params, config, batch, **options):
    """Computes the patterns of a batch, [L, B, H, T, T]."""
    sites = (Site.ATTN_PATTERN,)
    return np.asarray(capture(params, config, batch, sites, **options)[Site.ATTN_PATTERN])


def replace(layer, mask, values):
    return Patch(Site.ATTN_PATTERN, PatchMode.REPLACE, np.int32(layer), np.asarray(mask), values)


def test_rows_are_distributions_over_what_is_seen(model):
    params, config = model
    batch = pad(SEQUENCES)
    found = patterns(params, config, batch)
    assert found.shape == (config.num_layers, 3, HEADS, 7, 7)
    for row, sequence in enumerate(SEQUENCES):
        real = found[:, row, :, : len(sequence)]
        np.testing.assert_allclose(real.sum(axis=-1), 1, rtol=1e-6)
        assert (real > 0).sum() == config.num_layers * HEADS * len(sequence) * (
            len(sequence) + 1
        ) / 2
        assert (np.triu(real, k=1) == 0).all()  # no later columns, and no padding


def test_heads_and_layers_differ(model):
    found = patterns(*model, pad(SEQUENCES[:1]))
    flat = found.reshape(-1, 7, 7)
    assert len({pattern.tobytes() for pattern in flat}) == len(flat)


@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_no_pattern(model, left):
    params, config = model
    batch = pad(SEQUENCES, left=left, multiple=8)
    found = patterns(params, config, batch)
    for row, sequence in enumerate(SEQUENCES):
        alone = patterns(params, config, pad([sequence]))[:, 0]
        real = np.flatnonzero(batch.mask[row])
        np.testing.assert_allclose(found[:, row][:, :, real][..., real], alone, atol=1e-6)


def test_its_own_pattern_changes_nothing(model):
    params, config = model
    batch = pad(SEQUENCES)
    own = patterns(params, config, batch)
    want = logits(params, config, batch)
    for layer in range(config.num_layers):
        patch = replace(layer, batch.mask, own[layer])
        got = logits(params, config, batch, patches=(patch,))
        np.testing.assert_array_equal(np.asarray(got)[batch.mask], np.asarray(want)[batch.mask])


def test_the_pattern_of_another_run_changes_the_rows_that_the_mask_selects(model):
    params, config = model
    batch = pad([SEQUENCES[0], SEQUENCES[2]])
    other = patterns(params, config, TokenBatch(batch.ids[::-1], batch.mask))
    mask = np.zeros_like(batch.mask)
    mask[0, 4] = True
    patch = replace(1, mask, other[1])
    sites = (Site.ATTN_PATTERN, Site.ATTN_OUT, Site.RESIDUAL)
    clean, changed = (
        {site: np.asarray(values) for site, values in found.items()}
        for found in (
            capture(params, config, batch, sites),
            capture(params, config, batch, sites, patches=(patch,)),
        )
    )
    pattern = changed[Site.ATTN_PATTERN]
    np.testing.assert_array_equal(pattern[1, 0, :, 4], other[1, 0, :, 4])
    assert np.abs(pattern[1, 0, :, 4] - clean[Site.ATTN_PATTERN][1, 0, :, 4]).max() > 0.01

    difference = np.abs(changed[Site.ATTN_OUT] - clean[Site.ATTN_OUT]).max(axis=-1)
    assert difference[1, 0, 4] > 0.01
    difference[1, 0, 4] = 0
    assert (difference[:2] == 0).all()  # lower layers, other tokens and the other row
    assert (difference[:, 1] == 0).all() and (difference[:, 0, :4] == 0).all()

    want, got = clean[Site.RESIDUAL][-1], changed[Site.RESIDUAL][-1]
    assert np.abs(got[0, 4:] - want[0, 4:]).max(axis=-1).min() > 1e-3
    assert (got[1] == want[1]).all() and (got[0, :4] == want[0, :4]).all()


def test_a_pattern_may_be_knocked_out_for_one_head(model):
    """Values are broadcast: with zeros in one head's rows, that head adds nothing."""
    params, config = model
    batch = pad(SEQUENCES[:1])
    values = patterns(params, config, batch)[2].copy()
    values[:, 1] = 0
    out = capture(
        params,
        config,
        batch,
        (Site.ATTN_OUT,),
        patches=(replace(2, batch.mask, values),),
    )
    kernel = params["blocks"]["attn"]["out"]["kernel"]
    rows = slice(config.head_dim, 2 * config.head_dim)
    kernel = np.array(kernel)
    kernel[2, rows] = 0
    attn = params["blocks"]["attn"]
    attn = attn | {"out": attn["out"] | {"kernel": kernel}}
    without = params | {"blocks": params["blocks"] | {"attn": attn}}
    want = capture(without, config, batch, (Site.ATTN_OUT,))
    np.testing.assert_allclose(out[Site.ATTN_OUT], want[Site.ATTN_OUT], atol=1e-5)


def test_with_a_cache_the_columns_of_the_cache_come_first(model):
    params, config = model
    batch = pad(SEQUENCES[:1])
    attention = plain_attention(batch)
    hidden = embed(params, config, batch.ids, attention.positions)
    begin = Attention(attention.positions[:, :4], attention.mask[:, :4, :4])
    rest = Attention(attention.positions[:, 4:], attention.mask[:, 4:])

    @functools.partial(jax.jit, static_argnames="config")
    def run(params, config, hidden):
        cache = run_layers(params, config, hidden[:, :4], begin, keep_cache=True).cache
        capture = (Site.ATTN_PATTERN,)
        return run_layers(params, config, hidden[:, 4:], rest, cache=cache, capture=capture)

    out = run(params, config, hidden)
    want = patterns(params, config, batch)[:, :, :, 4:]
    np.testing.assert_allclose(out.captures[Site.ATTN_PATTERN], want, atol=1e-6)


def test_the_last_layer_takes_a_patch_of_the_columns_that_are_read(model):
    params, config = model
    batch = pad(SEQUENCES)
    other = patterns(params, config, batch)[1]
    sites = (Site.ATTN_PATTERN, Site.RESIDUAL)
    states = capture(params, config, batch, sites, patches=(replace(2, batch.mask, other),))
    states = np.asarray(states[Site.RESIDUAL])
    read = np.array([2, 0])
    patch = replace(2, batch.mask[:, read], other[:, :, read])
    run = jax.jit(run_last_layer, static_argnames="config")
    changes = Interventions((patch,))
    out = run(params, config, states[1], plain_attention(batch), read, interventions=changes)
    np.testing.assert_allclose(out, states[2][:, read], rtol=1e-5, atol=1e-5)


def test_a_patch_with_the_values_of_another_run_is_refused(model):
    params, config = model
    batch = pad(SEQUENCES[:1])
    columns = np.arange(7)
    patch = RunPatch(
        Site.ATTN_PATTERN,
        PatchMode.REPLACE,
        0 * columns,
        1 + columns,
        columns > 2,
        columns,
        np.zeros((3, 1, 7, 7)),
    )
    hidden = np.zeros((1, 7, config.width), np.float32)
    changes = Interventions((patch,))
    with pytest.raises(ValueError, match=r"cannot change Site\.ATTN_PATTERN: use a Patch"):
        run_layers(params, config, hidden, plain_attention(batch), interventions=changes)
