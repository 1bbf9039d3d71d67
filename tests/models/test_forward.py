"""The functional driver: golden numbers, the linen module, ranges of layers, padding, patches, deltas, gradients."""

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
    Transformer,
    capture,
    embed,
    init_params,
    logits,
    plain_attention,
    run_layers,
    unembed,
)
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate, Patch, PatchMode, Site
from rome_jax.models.layers import Interventions
from tests.models.checkpoints import FAMILIES, GOLDEN, golden_model, random_params, tiny_config

SEQUENCES = [[4, 17, 31, 2, 8, 49, 1], [9, 9, 3], [20, 6, 0, 44, 13, 0, 6]]


def model(family, **changes):
    config = tiny_config(family, **changes)
    return random_params(config), config


def close(got, want, tolerance=1e-5):
    """Whether arrays agree to a tolerance relative to the largest value."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return got.shape == want.shape and np.abs(got - want).max() <= tolerance * np.abs(want).max()


def rows(batch, values):
    """The real positions of values [..., B, T, X] as one array [..., N, X]."""
    return np.asarray(values)[..., np.asarray(batch.mask), :]


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
    params, config = model(family, tie_embeddings=tie)
    batch = pad(SEQUENCES)
    want = jax.jit(Transformer(config).apply)({"params": params}, batch.ids, batch.mask)
    assert close(rows(batch, logits(params, config, batch)), rows(batch, want), 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_initialised_params_are_those_of_gpt2(family):
    config = tiny_config(family, width=36, vocab_size=400)
    params = init_params(config, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, random_params(config))
    kernel = params["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.shape == (3, 36, 40)
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
    params, config = model(family)
    batch = pad(SEQUENCES)
    attention = plain_attention(batch)
    first = embed(params, config, batch.ids, attention.positions)
    want = capture(params, config, batch, (Site.RESIDUAL,))[Site.RESIDUAL]
    for middle in middles:
        hidden = run(params, config, first, attention, 0, middle)
        before = want[middle - 1] if middle else first
        assert close(rows(batch, hidden), rows(batch, before), 1e-6)
        hidden = run(params, config, hidden, attention, middle, config.num_layers)
        assert close(rows(batch, hidden), rows(batch, want[-1]), 1e-6)


def test_captures_of_a_range_are_those_layers():
    params, config = model("gpt2")
    batch = pad(SEQUENCES)
    whole = capture(params, config, batch, (Site.RESIDUAL, Site.MLP_KEY))
    out = run_layers(
        params,
        config,
        whole[Site.RESIDUAL][0],
        plain_attention(batch),
        start=1,
        capture=(Site.MLP_KEY,),
    )
    assert close(
        rows(batch, out.captures[Site.MLP_KEY]), rows(batch, whole[Site.MLP_KEY][1:]), 1e-6
    )
    below = capture(params, config, batch, (Site.MLP_KEY,), stop=2)[Site.MLP_KEY]
    assert close(rows(batch, below), rows(batch, whole[Site.MLP_KEY][:2]), 1e-6)


@pytest.mark.parametrize("start, stop", [(-1, 2), (2, 1), (0, 4)])
def test_ranges_outside_the_model_are_refused(start, stop):
    params, config = model("gpt2")
    batch = pad(SEQUENCES)
    with pytest.raises(ValueError, match=rf"start={start}, stop={stop}.*0 to 3"):
        run_layers(
            params, config, jnp.zeros((3, 7, 18)), plain_attention(batch), start=start, stop=stop
        )


def test_traced_bounds_give_no_captures():
    params, config = model("gpt2")
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
    params, config = model(family)
    batch = pad(SEQUENCES)
    positions = np.array([[0, 6], [2, 1], [4, 4]], np.int32)  # the columns of each row
    want = np.take_along_axis(
        np.asarray(logits(params, config, batch)), positions[..., None], axis=1
    )
    assert close(logits(params, config, batch, positions=positions), want, 1e-6)


@pytest.mark.parametrize("family, dtype", [("gpt2", jnp.float16), ("gptj", jnp.bfloat16)])
def test_half_precision_runs_and_gives_float32_logits(family, dtype):
    params, config = model(family)
    half = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    batch = pad(SEQUENCES)
    out = logits(half, config, batch)
    assert out.dtype == jnp.float32
    # float16 carries 11 bits and bfloat16 8; a few layers lose a few of them.
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    tolerance = 64 * float(jnp.finfo(dtype).eps) / 8
    assert close(rows(batch, out), rows(batch, logits(rounded, config, batch)), tolerance)
    assert unembed(half, config, jnp.ones((2, 18), dtype)).dtype == jnp.float32


# Padding


@pytest.fixture(scope="module")
def alone():
    """The logits of each sequence in a batch of its own, by family."""
    out = {}
    for family in FAMILIES:
        params, config = model(family)
        out[family] = params, config, [logits(params, config, pad([s]))[0] for s in SEQUENCES]
    return out


@settings(deadline=None, max_examples=12)
@given(
    family=st.sampled_from(FAMILIES),
    order=st.sampled_from([1, 4]).flatmap(
        lambda n: st.lists(st.integers(0, 2), min_size=n, max_size=n)
    ),
    left=st.booleans(),
    multiple=st.sampled_from([8, 32]),
    filler=st.integers(0, 49),
)
def test_padding_and_company_change_nothing(alone, family, order, left, multiple, filler):
    params, config, want = alone[family]
    sequences = [SEQUENCES[i] for i in order]
    batch = pad(sequences, left=left, multiple=multiple)
    ids = np.where(batch.mask, batch.ids, filler)
    out = logits(params, config, TokenBatch(ids, batch.mask))
    assert np.isfinite(out).all()
    for row, i in enumerate(order):
        assert close(out[row][batch.mask[row]], want[i])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_context_can_be_used(family):
    params, config = model(family)
    long = np.arange(32)[None] % 50
    want = logits(params, config, TokenBatch(long, np.ones((1, 32), bool)))
    part = logits(params, config, TokenBatch(long[:, :20], np.ones((1, 20), bool)))
    assert close(part, want[:, :20])


# Patches


@pytest.fixture(scope="module", params=FAMILIES)
def clean(request):
    """A model, a batch of equally long rows, its captures and logits."""
    params, config = model(request.param)
    batch = pad([[4, 17, 31, 2, 8], [9, 9, 3, 1, 0]])
    captured = capture(params, config, batch, tuple(Site)[1:])
    return params, config, batch, captured, logits(params, config, batch)


def everywhere(batch):
    return jnp.asarray(batch.mask)


def test_replacing_the_residual_reproduces_the_other_run(clean):
    params, config, batch, captured, want = clean
    other = TokenBatch(np.asarray(batch.ids)[::-1].copy(), batch.mask)
    assert not close(logits(params, config, other), want)
    for layer in range(config.num_layers):
        patch = Patch(
            Site.RESIDUAL,
            PatchMode.REPLACE,
            jnp.int32(layer),
            everywhere(batch),
            captured[Site.RESIDUAL][layer],
        )
        assert close(logits(params, config, other, patches=(patch,)), want)


@pytest.mark.parametrize("site", [Site.ATTN_OUT, Site.MLP_PRE, Site.MLP_KEY, Site.MLP_OUT])
def test_replacing_by_its_own_value_changes_nothing(clean, site):
    params, config, batch, captured, want = clean
    patch = Patch(site, PatchMode.REPLACE, jnp.int32(1), everywhere(batch), captured[site][1])
    assert close(logits(params, config, batch, patches=(patch,)), want)


def test_adding_to_the_mlp_output_adds_there_and_only_there(clean):
    params, config, batch, captured, _ = clean
    vector = 3 * jax.random.normal(jax.random.key(0), (config.width,))
    mask = jnp.zeros(batch.ids.shape, bool).at[0, 2].set(True).at[1, 4].set(True)
    layers = jnp.array([1, 2])  # one for each row
    patch = Patch(Site.MLP_OUT, PatchMode.ADD, layers, mask, vector)
    out = capture(params, config, batch, (Site.MLP_OUT, Site.RESIDUAL), patches=(patch,))
    for site in out:
        change = np.asarray(out[site] - captured[site])  # [L, B, T, D]
        assert close(change[1, 0, 2], vector) and close(change[2, 1, 4], vector)
        assert np.abs(change[0]).max() < 1e-5 and np.abs(change[1, 1]).max() < 1e-5
        assert np.abs(change[:, 0, :2]).max() < 1e-5 and np.abs(change[:, 1, :4]).max() < 1e-5
    later = np.asarray(out[Site.RESIDUAL] - captured[Site.RESIDUAL])[2, 0, 3:]
    assert np.abs(later).max() > 1e-2  # attention carries it on


def test_replacing_embeddings_is_running_other_tokens(clean):
    params, config, batch, _, want = clean
    other = TokenBatch(np.asarray(batch.ids)[::-1].copy(), batch.mask)
    values = params["wte"]["embedding"][batch.ids]
    patch = Patch(Site.EMBED, PatchMode.REPLACE, jnp.int32(0), everywhere(batch), values)
    assert close(logits(params, config, other, patches=(patch,)), want, 1e-6)


def test_patches_apply_in_their_order(clean):
    params, config, batch, captured, _ = clean
    one = jnp.ones(config.width)
    replace = Patch(Site.MLP_OUT, PatchMode.REPLACE, jnp.int32(2), everywhere(batch), one)
    add = Patch(Site.MLP_OUT, PatchMode.ADD, jnp.int32(2), everywhere(batch), one)
    for patches, value in (((replace, add), 2.0), ((add, replace), 1.0)):
        out = capture(params, config, batch, (Site.MLP_OUT,), patches=patches)[Site.MLP_OUT]
        assert (out[2] == value).all()
        assert close(out[:2], captured[Site.MLP_OUT][:2], 1e-6)


def test_patches_of_one_shape_share_one_program(clean):
    params, config, batch, _, _ = clean
    before = logits._cache_size()
    for layer in range(config.num_layers):
        mask = everywhere(batch) & (jnp.arange(5) == layer)
        logits(
            params,
            config,
            batch,
            patches=(Patch(Site.MLP_KEY, PatchMode.ADD, jnp.int32(layer), mask, jnp.ones(40)),),
        )
    assert logits._cache_size() == before + 1


# Deltas

LEAVES = {
    "gpt2": (Leaf.ATTN_QKV, Leaf.ATTN_OUT, Leaf.MLP_UP, Leaf.MLP_DOWN),
    "gptj": (
        Leaf.ATTN_QUERY,
        Leaf.ATTN_KEY,
        Leaf.ATTN_VALUE,
        Leaf.ATTN_OUT,
        Leaf.MLP_UP,
        Leaf.MLP_DOWN,
    ),
}


def random_deltas(params, leaves, layers, rank=2):
    """N edits of the given leaves; edit n is at layers[n]."""
    generator = np.random.default_rng(0)
    updates = []
    for leaf in leaves:
        _, rows, columns = params["blocks"][leaf.value[0]][leaf.value[1]]["kernel"].shape
        left, right = (
            jnp.asarray(generator.standard_normal((len(layers), size, rank)) / 2, jnp.float32)
            for size in (rows, columns)
        )
        updates.append(LowRankUpdate(leaf, jnp.asarray(layers), left, right))
    return Delta(tuple(updates))


def merged(params, delta):
    """Params with one edit added to the weights, in the plainest way."""
    params = jax.tree.map(lambda leaf: leaf, params)  # new dicts
    for update in delta.updates:
        leaf = params["blocks"][update.leaf.value[0]][update.leaf.value[1]]
        leaf["kernel"] = leaf["kernel"].at[update.layer].add(update.left @ update.right.T)
    return params


@pytest.mark.parametrize("family", FAMILIES)
def test_a_factored_delta_equals_merged_weights(family):
    params, config = model(family)
    batch = pad(SEQUENCES)
    clean = rows(batch, logits(params, config, batch))
    every = random_deltas(params, LEAVES[family], [1])[0]
    for leaf in LEAVES[family]:
        # The other leaves' terms are zero: one compiled program tests them all, one at a time.
        delta = Delta(
            tuple(u if u.leaf is leaf else u.replace(right=0 * u.right) for u in every.updates)
        )
        want = rows(batch, logits(merged(params, delta), config, batch))
        assert not close(clean, want, 1e-3), leaf
        assert close(rows(batch, logits(params, config, batch, deltas=delta)), want), leaf


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_see_their_own_edits_at_their_own_layers(family):
    params, config = model(family)
    deltas = random_deltas(params, LEAVES[family][-2:], [2, 0, 1])
    case = np.array([2, 0, 0, 1], np.int32)
    batch = pad([SEQUENCES[i] for i in (0, 1, 2, 0)]).replace(case=case)
    out = logits(params, config, batch, deltas=deltas)
    for row, n in enumerate(case):
        want = logits(merged(params, deltas[int(n)]), config, TokenBatch(batch.ids, batch.mask))
        assert close(out[row][batch.mask[row]], want[row][batch.mask[row]])


def test_one_delta_a_row_needs_no_case():
    params, config = model("gpt2")
    deltas = random_deltas(params, [Leaf.MLP_DOWN], [0, 1, 2])
    batch = pad(SEQUENCES)
    numbered = batch.replace(case=np.arange(3, dtype=np.int32))
    assert jnp.array_equal(
        logits(params, config, batch, deltas=deltas),
        logits(params, config, numbered, deltas=deltas),
    )
    with pytest.raises(ValueError, match="2 deltas and 3 rows"):
        logits(params, config, batch, deltas=deltas[:2])


def test_a_delta_counts_its_cases():
    params, _ = model("gpt2")
    deltas = random_deltas(params, [Leaf.MLP_DOWN, Leaf.MLP_UP], [0, 1, 2])
    assert len(deltas) == 3 and len(deltas[1:]) == 2 and not deltas[0].batched
    assert jnp.array_equal(deltas[-1].updates[0].left, deltas.updates[0].left[2])
    with pytest.raises(IndexError, match="case 3 of 3"):
        deltas[3]
    with pytest.raises(TypeError, match="single edit"):
        deltas[0][0]


# Gradients


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_do_not_depend_on_remat(family):
    params, config = model(family)
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
    params, config = model(family)
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


def test_interventions_may_be_traced():
    """Patches and deltas go through jit as arguments: only their names are static."""
    params, config = model("gpt2")
    batch = pad(SEQUENCES)
    deltas = random_deltas(params, [Leaf.MLP_DOWN], [0, 1, 2])
    attention = plain_attention(batch)

    @jax.jit
    def run(deltas):
        hidden = embed(params, config, batch.ids, attention.positions)
        out = run_layers(params, config, hidden, attention, interventions=Interventions((), deltas))
        return unembed(params, config, out.hidden)

    assert close(
        rows(batch, run(deltas)), rows(batch, logits(params, config, batch, deltas=deltas))
    )
