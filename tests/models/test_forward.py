"""The functional driver: golden numbers, the linen module, ranges of layers, the last layer, padding, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rome_jax.data.tokens import TokenBatch, pad
from rome_jax.models import forward
from rome_jax.models.forward import (
    capture,
    embed,
    logits,
    plain_attention,
    run_last_layer,
    run_layers,
    unembed,
)
from rome_jax.models.interventions import Site
from rome_jax.models.patches import Patch, PatchMode
from rome_jax.models.transformer import Transformer, init_params
from tests.models.checkpoints import (
    FAMILIES,
    GOLDEN,
    SEQUENCES,
    close,
    golden_model,
    random_params,
    rows,
    tiny_config,
    tiny_model,
)


@functools.cache
def whole(family):
    """The residual stream after each layer and the MLP keys of SEQUENCES."""
    return capture(*tiny_model(family), pad(SEQUENCES), (Site.RESIDUAL, Site.MLP_KEY))


# Golden numbers of the original implementation


@pytest.fixture(scope="module", params=FAMILIES)
def golden(request):
    arrays = np.load(GOLDEN / f"forward_{request.param}.npz")
    batch = TokenBatch(arrays["input_ids"].astype(np.int32), arrays["attention_mask"].astype(bool))
    return *golden_model(request.param), batch, arrays


def test_golden_logits(golden):
    params, config, batch, arrays = golden
    assert close(rows(batch, logits(params, config, batch)), rows(batch, arrays["logits"]))


def test_golden_sites(golden):
    params, config, batch, arrays = golden
    names = {
        Site.RESIDUAL: "block_out",
        Site.ATTN_OUT: "attn_out",
        Site.MLP_OUT: "mlp_out",
        Site.MLP_KEY: "mlp_key",
    }
    captured = capture(params, config, batch, tuple(names))
    assert captured.keys() == names.keys()
    for site, name in names.items():
        assert close(rows(batch, captured[site]), rows(batch, arrays[name])), site


# One model, several ways to run it


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tie", [True, False])
def test_the_linen_module_equals_the_driver(family, tie):
    config = tiny_config(family, tie_embeddings=tie)
    params, batch = random_params(config), pad(SEQUENCES)
    want = jax.jit(Transformer(config).apply)({"params": params}, batch.ids, batch.mask)
    assert close(rows(batch, logits(params, config, batch)), rows(batch, want), 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_initialized_params_are_those_of_gpt2(family):
    config = tiny_config(family)
    params = init_params(config, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, random_params(config))
    kernel = params["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.shape == (3, 18, 40)
    assert 0.018 < kernel.std() < 0.022 and 0.018 < params["wte"]["embedding"].std() < 0.022
    assert not jnp.array_equal(kernel[0], kernel[1])
    assert (params["blocks"]["ln_1"]["scale"] == 1).all()


@functools.partial(jax.jit, static_argnames=("config", "start", "stop"))
def run_static(params, config, hidden, attention, start, stop):
    return run_layers(params, config, hidden, attention, start=start, stop=stop).hidden


@functools.partial(jax.jit, static_argnames="config")
def run_traced(params, config, hidden, attention, start, stop):
    return run_layers(params, config, hidden, attention, start=start, stop=stop).hidden


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("run, middles", [(run_static, [1]), (run_traced, [0, 1, 2, 3])])
def test_layers_run_in_any_two_parts(family, run, middles):
    params, config = tiny_model(family)
    batch = pad(SEQUENCES)
    attention = plain_attention(batch)
    first = embed(params, config, batch.ids, attention.positions)
    want = whole(family)[Site.RESIDUAL]
    for middle in middles:
        hidden = run(params, config, first, attention, 0, middle)
        before = want[middle - 1] if middle else first
        assert close(rows(batch, hidden), rows(batch, before), 1e-6)
        hidden = run(params, config, hidden, attention, middle, config.num_layers)
        assert close(rows(batch, hidden), rows(batch, want[-1]), 1e-6)


def test_captures_of_a_range_are_those_layers():
    params, config = tiny_model("gpt2")
    batch = pad(SEQUENCES)
    run = jax.jit(functools.partial(run_layers, start=1, capture=(Site.MLP_KEY,)), static_argnums=1)
    out = run(params, config, whole("gpt2")[Site.RESIDUAL][0], plain_attention(batch))
    want = rows(batch, whole("gpt2")[Site.MLP_KEY])
    assert close(rows(batch, out.captures[Site.MLP_KEY]), want[1:], 1e-6)
    below = capture(params, config, batch, (Site.MLP_KEY,), stop=2)[Site.MLP_KEY]
    assert close(rows(batch, below), want[:2], 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_runs_for_the_columns_that_are_read(family):
    params, config = tiny_model(family)
    batch = pad(SEQUENCES)
    states = np.asarray(whole(family)[Site.RESIDUAL])
    run = jax.jit(run_last_layer, static_argnames="config")
    # Columns of each row, or the same columns of all rows.
    for read in (np.array([[0, 6], [2, 1], [4, 4]]), np.array([2, 0])):
        out = run(params, config, states[1], plain_attention(batch), read)
        columns = np.broadcast_to(read, (3, 2))[..., None]
        assert close(out, np.take_along_axis(states[2], columns, axis=1), 1e-6)


@pytest.mark.parametrize("start, stop", [(-1, 2), (2, 1), (0, 4)])
def test_ranges_outside_the_model_are_refused(start, stop):
    params, config = tiny_model("gpt2")
    batch = pad(SEQUENCES)
    with pytest.raises(ValueError, match=rf"start={start}, stop={stop}.*0 to 3"):
        run_layers(
            params, config, jnp.zeros((3, 7, 18)), plain_attention(batch), start=start, stop=stop
        )


def test_traced_bounds_give_no_captures():
    params, config = tiny_model("gpt2")
    batch = pad(SEQUENCES)
    with pytest.raises(ValueError, match="Python integers"):
        run_layers(
            params,
            config,
            jnp.zeros((3, 7, 18)),
            plain_attention(batch),
            stop=jnp.int32(2),
            capture=(Site.MLP_KEY,),
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_at_positions_are_those_of_all(family):
    params, config = tiny_model(family)
    batch = pad(SEQUENCES)
    positions = np.array([[0, 6], [2, 1], [4, 4]], np.int32)  # the columns of each row
    want = np.take_along_axis(
        np.asarray(logits(params, config, batch)), positions[..., None], axis=1
    )
    assert close(logits(params, config, batch, positions=positions), want, 1e-6)


@pytest.mark.parametrize("family, dtype", [("gpt2", jnp.float16), ("gptj", jnp.bfloat16)])
def test_half_precision_runs_and_gives_float32_logits(family, dtype):
    params, config = tiny_model(family)
    half = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), params)
    batch = pad(SEQUENCES)
    out = logits(half, config, batch)
    assert out.dtype == jnp.float32
    # float16 carries 11 bits and bfloat16 8; a few layers lose a few of them.
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    tolerance = 64 * float(jnp.finfo(dtype).eps) / 8
    assert close(rows(batch, out), rows(batch, logits(rounded, config, batch)), tolerance)
    assert unembed(half, config, jnp.ones((2, 18), dtype)).dtype == jnp.float32


# Padding


@functools.cache
def alone(family):
    """The logits of each sequence in a batch of its own, without padding."""
    return [logits(*tiny_model(family), pad([sequence]))[0] for sequence in SEQUENCES]


@settings(deadline=None, max_examples=8)
@given(
    family=st.sampled_from(FAMILIES),
    order=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    left=st.booleans(),
    multiple=st.sampled_from([8, 32]),
    filler=st.integers(0, 49),
)
def test_padding_and_company_change_nothing(family, order, left, multiple, filler):
    params, config = tiny_model(family)
    batch = pad([SEQUENCES[i] for i in order], left=left, multiple=multiple)
    ids = np.where(batch.mask, batch.ids, filler)
    out = logits(params, config, TokenBatch(ids, batch.mask))
    assert np.isfinite(out).all()
    for row, i in enumerate(order):
        assert close(np.asarray(out)[row][batch.mask[row]], alone(family)[i])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_context_can_be_used(family):
    params, config = tiny_model(family)
    long = np.arange(32)[None] % 50
    want = logits(params, config, TokenBatch(long, np.ones((1, 32), bool)))
    part = logits(params, config, pad(long[:, :20], multiple=32))[:, :20]
    assert close(part, want[:, :20])


# Gradients


def test_gradients_do_not_depend_on_remat():
    params, config = tiny_model("gpt2")
    batch = pad(SEQUENCES)
    attention = plain_attention(batch)
    hidden = embed(params, config, batch.ids, attention.positions)
    weight = jnp.asarray(batch.mask)[..., None]

    def gradients(remat):
        def loss(params, hidden):
            out = run_layers(params, config, hidden, attention, start=1, remat=remat).hidden
            return jnp.sum(weight * jnp.sin(out))

        return jax.jit(jax.grad(loss, (0, 1)))(params, hidden)

    plain, again = gradients(remat=False), gradients(remat=True)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()
    kernel = plain[0]["blocks"]["mlp"]["up"]["kernel"]
    assert (kernel[0] == 0).all() and (jnp.abs(kernel[1:]).max(axis=(1, 2)) > 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_of_a_patch_is_its_directional_derivative(family):
    params, config = tiny_model(family)
    batch = pad(SEQUENCES)
    mask = jnp.zeros(batch.ids.shape, bool).at[:, 1].set(True)

    def loss(vector):
        patch = Patch(Site.MLP_OUT, PatchMode.ADD, jnp.int32(1), mask, vector)
        out = forward.hidden_states(params, config, batch, patches=(patch,)).hidden
        return jnp.sum(jnp.sin(jnp.where(jnp.asarray(batch.mask)[..., None], out, 0)))

    both = jax.jit(jax.value_and_grad(loss))
    direction = np.random.default_rng(0).standard_normal(config.width).astype(np.float32)
    slope = np.vdot(both(np.zeros_like(direction))[1], direction)
    step = np.float32(1e-2)
    difference = (both(step * direction)[0] - both(-step * direction)[0]) / (2 * step)
    assert abs(slope - difference) <= 2e-2 * abs(slope)
