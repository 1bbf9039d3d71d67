"""Edits as data: the rank-one update, merged and factored application, and reverting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rome_jax.data.tokens import TokenBatch
from rome_jax.edit.delta import (
    apply_delta,
    dense,
    merge_deltas,
    negate_delta,
    rank_one_update,
    revert_delta,
)
from rome_jax.models import forward
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate, Site
from tests.edit.deltas import LEAVES, as_dtype, assert_within_rounding, random_deltas
from tests.models.checkpoints import FAMILIES, assert_same_params, random_params, tiny_config


@pytest.fixture(scope="module")
def gpt2():
    config = tiny_config("gpt2")
    return random_params(config), config


# The rank-one update


def test_rank_one_update_by_hand():
    update, factor = rank_one_update(
        3,
        u=jnp.array([[0.75, 0.5]]),
        key=jnp.array([[2.0, 1.0]]),  # k · u = 2
        value=jnp.array([[1.0, 0.0, -1.0]]),
        target=jnp.array([[3.0, 4.0, -1.0]]),
    )
    assert factor.tolist() == [2.0]
    assert (update.leaf, update.layer.tolist()) == (Leaf.MLP_DOWN, [3])
    assert update.left.tolist() == [[[0.75], [0.5]]]
    assert update.right.tolist() == [[[1.0], [2.0], [0.0]]]
    assert dense(update).tolist() == [[[0.75, 1.5, 0.0], [0.5, 1.0, 0.0]]]


def test_a_dense_update_sums_its_ranks():
    update = LowRankUpdate(
        Leaf.MLP_UP, jnp.int32(0), jnp.eye(2), jnp.array([[1.0, 2.0], [3.0, 4.0]])
    )
    assert dense(update).tolist() == [[1.0, 3.0], [2.0, 4.0]]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_the_changed_weight_maps_the_key_to_the_target(seed):
    generator = np.random.default_rng(seed)
    weight, bias = generator.standard_normal((40, 18)), generator.standard_normal(18)
    key, target = generator.standard_normal((2, 40)), generator.standard_normal((2, 18))
    u = key + 0.3 * generator.standard_normal((2, 40))  # as C⁻¹ k is near k: k · u is not near 0
    u /= np.linalg.norm(u, axis=-1, keepdims=True)
    value = key @ weight + bias
    update, factor = rank_one_update(
        0, *(jnp.asarray(x, jnp.float32) for x in (u, key, value, target))
    )
    np.testing.assert_allclose(factor, (u * key).sum(-1), rtol=1e-6)
    for n, change in enumerate(np.asarray(dense(update), np.float64)):
        mapped = key[n] @ (weight + change) + bias
        scale = np.abs(value).max() + np.abs(target).max()
        np.testing.assert_allclose(mapped, target[n], atol=1e-6 * scale)
        assert np.abs(value[n] - target[n]).max() > 0.1


# Merging


def test_apply_delta_returns_new_params_and_leaves_the_old(gpt2):
    params, _ = gpt2
    before = jax.tree.map(np.array, params)
    delta = random_deltas(params, "gpt2")[0]
    edited = apply_delta(params, delta)
    assert_same_params(params, before)

    expected = jax.tree.map(np.array, before)
    for update in delta.updates:
        module, name = update.leaf.value
        change = np.asarray(update.left, np.float64) @ np.asarray(update.right, np.float64).T
        kernel = expected["blocks"][module][name]["kernel"]
        kernel[int(update.layer)] += change.reshape(kernel.shape[1:])
    assert jax.tree.structure(edited) == jax.tree.structure(params)
    changed = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(edited):
        names = [key.key for key in path]
        old, new = before, expected
        for name in names:
            old, new = old[name], new[name]
        np.testing.assert_allclose(leaf, new, rtol=1e-6, atol=1e-7, err_msg="/".join(names))
        for layer in range(3) if names[0] == "blocks" else ():
            if not np.array_equal(leaf[layer], old[layer]):
                changed.append((*names[1:3], names[-1], layer))
    assert sorted(changed) == [
        ("attn", "qkv", "kernel", 1),
        ("mlp", "down", "kernel", 0),
        ("mlp", "up", "kernel", 2),
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_delta_gives_the_bits_of_its_parts_in_order(gpt2, dtype):
    params = as_dtype(gpt2[0], dtype)
    # Three edits of the same three leaves, two of them at the same layers.
    parts = [random_deltas(params, "gpt2", seed=seed)[case] for seed, case in enumerate((1, 1, 0))]
    merged = merge_deltas(parts)
    assert len(merged.updates) == 9 and not merged.batched
    one_by_one = params
    for part in parts:
        one_by_one = apply_delta(one_by_one, part)
    assert_same_params(apply_delta(params, merged), one_by_one)
    other_order = apply_delta(params, merge_deltas(parts[::-1]))
    kernel = other_order["blocks"]["mlp"]["down"]["kernel"]
    assert jnp.abs(kernel - params["blocks"]["mlp"]["down"]["kernel"]).max() > 0.1
    if dtype == "bfloat16":
        assert not jnp.array_equal(kernel, one_by_one["blocks"]["mlp"]["down"]["kernel"])


def test_independent_edits_with_a_case_axis_cannot_be_merged(gpt2):
    deltas = random_deltas(gpt2[0], "gpt2")
    with pytest.raises(ValueError, match="3 independent edits"):
        merge_deltas([deltas[0], deltas])


def test_leaves_that_an_edit_does_not_change_are_shared(gpt2):
    params = gpt2[0]
    edited = apply_delta(params, random_deltas(params, "gpt2")[0])
    kernels = {("attn", "qkv"), ("mlp", "up"), ("mlp", "down")}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key for key in path]
        other = edited
        for name in names:
            other = other[name]
        changed = names[-1] == "kernel" and tuple(names[1:3]) in kernels
        assert (other is leaf) is not changed, names


# Donation


def test_a_donating_edit_gives_the_same_bits_and_takes_the_changed_weights_alone(gpt2):
    params = jax.tree.map(jnp.copy, gpt2[0])
    delta = merge_deltas([random_deltas(params, "gpt2", seed=seed)[0] for seed in (1, 2)])
    kept = apply_delta(params, delta)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    donated = apply_delta(params, delta, donate=True)
    assert_same_params(donated, kept)
    dead = {
        tuple(key.key for key in path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if leaf.is_deleted()
    }
    assert dead == {("blocks", *leaf.value, "kernel") for leaf in LEAVES["gpt2"]}
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(kept))


def test_a_donating_edit_writes_in_place(gpt2):
    params = jax.tree.map(jnp.copy, gpt2[0])
    before = params["blocks"]["mlp"]["down"]["kernel"].unsafe_buffer_pointer()
    delta = random_deltas(params, "gpt2")[0]
    after = apply_delta(params, delta, donate=True)["blocks"]["mlp"]["down"]["kernel"]
    assert after.unsafe_buffer_pointer() == before


def test_a_refused_edit_donates_nothing(gpt2):
    params = jax.tree.map(jnp.copy, gpt2[0])
    good = random_deltas(params, "gpt2")[0]
    bad = LowRankUpdate(Leaf.ATTN_QUERY, jnp.int32(0), jnp.ones((18, 1)), jnp.ones((18, 1)))
    with pytest.raises(ValueError, match="attn/query"):
        apply_delta(params, Delta((*good.updates, bad)), donate=True)
    assert_same_params(params, gpt2[0])


# Reverting


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reverting_gives_the_weights_back_up_to_rounding(gpt2, dtype):
    base = as_dtype(gpt2[0], dtype)
    delta = random_deltas(base, "gpt2")[0]
    edited = apply_delta(base, delta)
    reverted = revert_delta(edited, delta)
    assert_within_rounding(reverted, base, base, edited, dtype=dtype)
    kernel = edited["blocks"]["mlp"]["down"]["kernel"] - base["blocks"]["mlp"]["down"]["kernel"]
    assert jnp.abs(kernel).max() > 0.1, "the edit does something"
    assert_same_params(base, as_dtype(gpt2[0], dtype))  # the base is unchanged


def test_several_edits_are_reverted_in_any_order(gpt2):
    base = gpt2[0]
    parts = [random_deltas(base, "gpt2", seed=seed)[0] for seed in (1, 2, 3)]
    edited = apply_delta(base, merge_deltas(parts))
    for order in ((2, 1, 0), (0, 1, 2)):
        reverted, passed = edited, [base, edited]
        for index in order:
            reverted = revert_delta(reverted, parts[index])
            passed.append(reverted)
        assert_within_rounding(reverted, base, *passed, times=3)
    first = apply_delta(base, parts[0])
    first_left = revert_delta(edited, merge_deltas(parts[1:]))
    assert_within_rounding(first_left, first, base, first, edited, times=3)


def test_editing_and_reverting_repeatedly_does_not_drift(gpt2):
    base = gpt2[0]
    delta = random_deltas(base, "gpt2")[0]
    often = base
    for _ in range(20):
        edited = apply_delta(often, delta)
        often = revert_delta(edited, delta)
    assert_within_rounding(often, base, base, edited, times=2)


def test_reverting_twice_subtracts_twice(gpt2):
    base = gpt2[0]
    delta = random_deltas(base, "gpt2")[0]
    edited, below = apply_delta(base, delta), apply_delta(base, negate_delta(delta))
    twice = revert_delta(revert_delta(edited, delta), delta)
    assert_within_rounding(twice, below, base, edited, below, times=2)


def test_negated_twice_is_the_same(gpt2):
    delta = random_deltas(gpt2[0], "gpt2")[1]
    again = negate_delta(negate_delta(delta))
    assert jax.tree.structure(again) == jax.tree.structure(delta)
    jax.tree.map(np.testing.assert_array_equal, again, delta)


@pytest.mark.parametrize("family", FAMILIES)
def test_factored_edits_in_one_batch_are_the_merged_models(family):
    config = tiny_config(family)
    params = random_params(config)
    deltas = random_deltas(params, family)
    generator = np.random.default_rng(3)
    case = np.array([2, 0, 1, 1, 2, 0])
    texts = generator.integers(0, config.vocab_size, (2, 10))
    ids = np.concatenate([texts, texts, texts])
    mask = np.ones((6, 10), bool)
    factored = forward.logits(params, config, TokenBatch(ids, mask, case), deltas=deltas)
    plain = forward.logits(params, config, TokenBatch(ids, mask))
    for n in range(len(deltas)):
        edited = apply_delta(params, deltas[n])
        merged = forward.logits(edited, config, TokenBatch(ids, mask))
        rows = np.flatnonzero(case == n)
        scale = np.std(merged)
        np.testing.assert_allclose(factored[rows], merged[rows], rtol=0, atol=1e-5 * scale)
        assert np.abs(merged - plain).max() > 0.1 * scale, "the edit does something"
    assert np.abs(factored[0] - factored[4]).max() == 0, "the same text under the same edit"
    assert np.abs(factored[0] - factored[2]).max() > 0.1 * scale, "edits differ"


def test_independent_edits_are_not_merged(gpt2):
    params, _ = gpt2
    deltas = random_deltas(params, "gpt2")
    with pytest.raises(ValueError, match=r"3 independent edits: merge one of them, delta\[i\]"):
        apply_delta(params, deltas)
    with pytest.raises(ValueError, match="1 independent edits"):
        apply_delta(params, deltas[0:1])


def test_a_leaf_that_the_model_lacks_is_an_error(gpt2):
    update = LowRankUpdate(Leaf.ATTN_QUERY, jnp.int32(0), jnp.ones((18, 1)), jnp.ones((18, 1)))
    with pytest.raises(ValueError, match="attn/query, which this model does not have"):
        apply_delta(gpt2[0], Delta((update,)))


def test_a_delta_of_another_model_is_an_error(gpt2):
    params = gpt2[0]
    layers, inner, width = params["blocks"]["mlp"]["down"]["kernel"].shape

    def delta(layer, rows):
        ones = (jnp.ones((rows, 1)), jnp.ones((width, 1)))
        return Delta((LowRankUpdate(Leaf.MLP_DOWN, jnp.int32(layer), *ones),))

    with pytest.raises(
        ValueError, match=f"layer {layers}, but the model has layers 0 to {layers - 1}"
    ):
        apply_delta(params, delta(layers, inner))
    with pytest.raises(
        ValueError, match=f"{inner + 1} × {width}, but the model's is {inner} × {width}"
    ):
        apply_delta(params, delta(0, inner + 1))


def test_a_half_precision_weight_is_rounded_once(gpt2):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), gpt2[0])
    old = np.asarray(params["blocks"]["mlp"]["down"]["kernel"][1])
    # Multiples of 2⁻¹², so that products and sums are exact in float32, with more bits than bfloat16 has.
    right = np.random.default_rng(0).integers(-(2**11), 2**11, (old.shape[1], 1)) / 2.0**12
    left = np.ones((old.shape[0], 1))
    update = LowRankUpdate(
        Leaf.MLP_DOWN, jnp.int32(1), *(jnp.asarray(x, jnp.float32) for x in (left, right))
    )
    edited = apply_delta(params, Delta((update,)))["blocks"]["mlp"]["down"]["kernel"]
    assert edited.dtype == jnp.bfloat16
    expected = (old.astype(np.float32) + right[:, 0].astype(np.float32)).astype(old.dtype)
    np.testing.assert_array_equal(edited[1], expected)
    twice = old + right[:, 0].astype(old.dtype)
    assert (twice != expected).any(), "rounding the update first would give something else"


@pytest.mark.parametrize("case", [2, 99, -1, -2, -99])
def test_a_case_that_is_no_edit_gives_nan(gpt2, case):
    params, config = gpt2
    width = params["blocks"]["mlp"]["down"]["kernel"].shape[1:]
    update = LowRankUpdate(
        Leaf.MLP_DOWN, jnp.ones(2, jnp.int32), *(jnp.ones((2, n, 1)) for n in width)
    )
    ids = np.array([[4, 17, 31], [4, 17, 31]])
    batch = TokenBatch(ids, np.ones_like(ids, bool), np.array([1, case]))
    deltas = Delta((update,))
    scores = np.asarray(forward.logits(params, config, batch, deltas=deltas))
    assert np.isfinite(scores[0]).all() and np.isnan(scores[1]).all()
    states = forward.capture(params, config, batch, (Site.MLP_OUT,), deltas=deltas)[Site.MLP_OUT]
    assert np.isfinite(states[0]).all(), "the layer below the edited one"


def test_a_delta_that_is_nan_leaves_other_layers_and_rows_finite(gpt2):
    params, config = gpt2
    width = params["blocks"]["mlp"]["down"]["kernel"].shape[1:]
    left, right = (jnp.ones((2, n, 1)).at[1].set(jnp.nan) for n in width)
    deltas = Delta((LowRankUpdate(Leaf.MLP_DOWN, jnp.ones(2, jnp.int32), left, right),))
    ids = np.array([[4, 17, 31], [4, 17, 31]])
    batch = TokenBatch(ids, np.ones_like(ids, bool), np.array([0, 1]))
    states = forward.capture(params, config, batch, (Site.MLP_OUT,), deltas=deltas)[Site.MLP_OUT]
    assert np.isfinite(states[0]).all() and np.isfinite(states[:, 0]).all()
    assert np.isnan(states[1, 1]).all()


@pytest.mark.parametrize(
    ("left", "right", "match"),
    [
        ((40, 1), (18, 2), "give factors of equal rank"),
        ((40, 2), (18, 1), "give factors of equal rank"),
        ((40,), (18,), "give factors of equal rank"),
        ((1, 40, 1), (18, 1), "give one pair of factors per layer"),
    ],
)
def test_factors_that_would_broadcast_are_refused(gpt2, left, right, match):
    params, config = gpt2
    delta = Delta((LowRankUpdate(Leaf.MLP_DOWN, jnp.int32(1), jnp.ones(left), jnp.ones(right)),))
    batch = TokenBatch(np.ones((1, 3), int), np.ones((1, 3), bool))
    with pytest.raises(ValueError, match=match):
        apply_delta(params, delta)
    with pytest.raises(ValueError, match=match):
        forward.logits(params, config, batch, deltas=delta)


def test_factors_of_another_width_are_refused_in_a_forward_pass(gpt2):
    params, config = gpt2
    update = LowRankUpdate(Leaf.MLP_DOWN, jnp.int32(1), jnp.ones((1, 1)), jnp.ones((18, 1)))
    batch = TokenBatch(np.ones((1, 3), int), np.ones((1, 3), bool))
    with pytest.raises(ValueError, match=r"but the weight is \[40, 18\]"):
        forward.logits(params, config, batch, deltas=Delta((update,)))


def test_no_updates_change_nothing(gpt2):
    params = gpt2[0]
    assert Delta(()).rows(None, 3) == Delta(())
    assert merge_deltas([]) == Delta(())
    assert_same_params(apply_delta(params, Delta(()), donate=True), params)
