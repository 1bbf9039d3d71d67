"""Edits as data: the rank-one update, merged and factored application, taking out again."""

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
    weight_changes,
)
from rome_jax.models import forward
from rome_jax.models.interventions import Delta, DenseUpdate, Leaf, LowRankUpdate, Part
from tests.models.checkpoints import FAMILIES, assert_same_params, random_params, tiny_config

LEAVES = {
    "gpt2": (Leaf.MLP_DOWN, Leaf.ATTN_QKV, Leaf.MLP_UP),
    "gptj": (Leaf.MLP_DOWN, Leaf.ATTN_VALUE, Leaf.ATTN_OUT),
}
LAYERS = ((0, 2, 1), (1, 1, 1), (2, 0, 0))  # by leaf and case


@pytest.fixture(scope="module")
def gpt2():
    config = tiny_config("gpt2")
    return random_params(config), config


def random_deltas(params, family, rank=2, seed=0):
    """Three edits of three leaves, at layers that differ by case."""
    generator = np.random.default_rng(seed)

    def factor(size):
        return jnp.asarray(0.2 * generator.standard_normal((3, size, rank)), jnp.float32)

    updates = []
    for leaf, layers in zip(LEAVES[family], LAYERS, strict=True):
        module, name = leaf.value
        _, inputs, outputs = params["blocks"][module][name]["kernel"].shape
        updates.append(LowRankUpdate(leaf, jnp.array(layers), factor(inputs), factor(outputs)))
    return Delta(tuple(updates))


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

    wanted = jax.tree.map(np.array, before)
    for update in delta.updates:
        module, name = update.leaf.value
        change = np.asarray(update.left, np.float64) @ np.asarray(update.right, np.float64).T
        kernel = wanted["blocks"][module][name]["kernel"]
        kernel[int(update.layer)] = kernel[int(update.layer)] + change
    assert jax.tree.structure(edited) == jax.tree.structure(params)
    changed = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(edited):
        names = [key.key for key in path]
        old, new = before, wanted
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


def as_dtype(params, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_delta_gives_the_bits_of_its_parts_in_turn(gpt2, dtype):
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


# Taking out again


def assert_within_rounding(got, want, *passed, dtype="float32", times=1):
    """Off by at most `times` roundings at each of the params that were passed on the way."""
    unit = float(jnp.finfo(dtype).eps)
    for a, b, *others in zip(*map(jax.tree.leaves, (got, want, *passed)), strict=True):
        a, b, *others = (np.asarray(leaf, np.float64) for leaf in (a, b, *others))
        bound = times * unit * sum(map(np.abs, others))
        assert (np.abs(a - b) - bound).max() <= 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reverting_gives_the_weights_back_up_to_rounding(gpt2, dtype):
    base = as_dtype(gpt2[0], dtype)
    delta = random_deltas(base, "gpt2")[0]
    edited = apply_delta(base, delta)
    reverted = revert_delta(edited, delta)
    assert_within_rounding(reverted, base, base, edited, dtype=dtype)
    kernel = edited["blocks"]["mlp"]["down"]["kernel"] - base["blocks"]["mlp"]["down"]["kernel"]
    assert jnp.abs(kernel).max() > 0.1, "the edit does something"
    assert_same_params(base, as_dtype(gpt2[0], dtype))  # the very bits: the base is still there


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


def test_editing_and_reverting_again_and_again_does_not_drift(gpt2):
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
    with pytest.raises(ValueError, match=r"3 independent edits: merge one, delta\[i\]"):
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

    with pytest.raises(ValueError, match=f"layer {layers}; the model has layers 0 to {layers - 1}"):
        apply_delta(params, delta(layers, inner))
    with pytest.raises(
        ValueError, match=f"{inner + 1} × {width}; this model's is {inner} × {width}"
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
    wanted = (old.astype(np.float32) + right[:, 0].astype(np.float32)).astype(old.dtype)
    np.testing.assert_array_equal(edited[1], wanted)
    twice = old + right[:, 0].astype(old.dtype)
    assert (twice != wanted).any(), "rounding the update first would give something else"


def test_a_case_beyond_the_deltas_is_not_another_edit(gpt2):
    width = gpt2[0]["blocks"]["mlp"]["down"]["kernel"].shape[1:]
    update = LowRankUpdate(
        Leaf.MLP_DOWN, jnp.zeros(2, jnp.int32), *(jnp.ones((2, n, 1)) for n in width)
    )
    rows = Delta((update,)).rows(jnp.array([1, 2]), 2)
    assert np.isfinite(rows.updates[0].left[0]).all()
    assert np.isnan(rows.updates[0].left[1]).all()


def test_no_updates_change_nothing(gpt2):
    params = gpt2[0]
    assert Delta(()).rows(None, 3) == Delta(())
    assert merge_deltas([]) == Delta(())
    assert_same_params(apply_delta(params, Delta(()), donate=True), params)


# Dense updates


def mixed_deltas(params, seed=0):
    """Three edits: low-rank ones, and dense ones of a kernel (at a low-rank one's layer in case 0) and of a bias."""
    generator = np.random.default_rng(seed)
    blocks = params["blocks"]

    def update(leaf, part, layers):
        shape = blocks[leaf.value[0]][leaf.value[1]][part.value].shape[1:]
        change = jnp.asarray(0.2 * generator.standard_normal((3, *shape)), jnp.float32)
        return DenseUpdate(leaf, part, jnp.array(layers), change)

    return Delta(
        (
            *random_deltas(params, "gpt2", seed=seed).updates,
            update(Leaf.MLP_DOWN, Part.KERNEL, (0, 1, 2)),
            update(Leaf.ATTN_QKV, Part.BIAS, (2, 0, 1)),
        )
    )


def test_dense_updates_change_one_layer_of_a_kernel_or_bias(gpt2):
    params, _ = gpt2
    before = jax.tree.map(np.array, params)
    *_, kernel, bias = mixed_deltas(params).updates
    delta = Delta((kernel, bias))[1]
    edited = apply_delta(params, delta)
    assert_same_params(params, before)
    wanted = jax.tree.map(np.array, before)
    wanted["blocks"]["mlp"]["down"]["kernel"][1] += kernel.change[1]
    wanted["blocks"]["attn"]["qkv"]["bias"][0] += bias.change[1]
    assert_same_params(edited, wanted)
    assert np.abs(bias.change[1]).max() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mixed_deltas_merge_revert_and_donate_like_others(gpt2, dtype):
    base = as_dtype(gpt2[0], dtype)
    parts = [mixed_deltas(base, seed)[0] for seed in (1, 2)]
    merged = merge_deltas(parts)
    edited = apply_delta(base, merged)
    assert_same_params(edited, apply_delta(apply_delta(base, parts[0]), parts[1]))
    halfway = apply_delta(base, parts[0])
    passed = (base, halfway, edited)
    assert_within_rounding(revert_delta(edited, merged), base, *passed, dtype=dtype, times=3)
    again = negate_delta(negate_delta(merged))
    jax.tree.map(np.testing.assert_array_equal, again, merged)
    copy = jax.tree.map(jnp.copy, base)
    assert_same_params(apply_delta(copy, merged, donate=True), edited)
    assert copy["blocks"]["attn"]["qkv"]["bias"].is_deleted()
    assert not copy["blocks"]["mlp"]["down"]["bias"].is_deleted()


def test_only_low_rank_deltas_are_factored_and_enter_a_forward_pass(gpt2):
    params, config = gpt2
    deltas = mixed_deltas(params)
    assert random_deltas(params, "gpt2").factored and Delta(()).factored and not deltas.factored
    batch = TokenBatch(np.ones((3, 4), np.int32), np.ones((3, 4), bool))
    for delta in (deltas, deltas[0]):
        with pytest.raises(ValueError, match=r"dense delta .*: merge it with apply_delta"):
            forward.logits(params, config, batch, deltas=delta)


def test_a_dense_update_of_another_model_is_an_error(gpt2):
    params = gpt2[0]

    def delta(leaf, part, layer, *shape):
        return Delta((DenseUpdate(leaf, part, jnp.int32(layer), jnp.ones(shape)),))

    with pytest.raises(ValueError, match="a mlp/down bias of 19; this model's is 18"):
        apply_delta(params, delta(Leaf.MLP_DOWN, Part.BIAS, 0, 19))
    with pytest.raises(ValueError, match="a mlp/down of 18 × 40; this model's is 40 × 18"):
        apply_delta(params, delta(Leaf.MLP_DOWN, Part.KERNEL, 0, 18, 40))
    with pytest.raises(ValueError, match="layer 3; the model has layers 0 to 2"):
        apply_delta(params, delta(Leaf.MLP_DOWN, Part.KERNEL, 3, 40, 18))
    gptj = random_params(tiny_config("gptj"))
    with pytest.raises(ValueError, match="attn/query bias, which this model does not have"):
        apply_delta(gptj, delta(Leaf.ATTN_QUERY, Part.BIAS, 0, 18))


# What an edit does to each weight


def test_weight_changes_by_hand(gpt2):
    """Two updates of one kernel count as one change; a bias is a weight of its own."""
    params = gpt2[0]
    down = params["blocks"]["mlp"]["down"]
    factors = jnp.zeros((40, 1)).at[3].set(3.0), jnp.zeros((18, 2)).at[5, 0].set(4.0)

    def low_rank(left, right):
        return LowRankUpdate(Leaf.MLP_DOWN, jnp.int32(1), left, right)

    # ΔW has 3 · 4 at [3, 5] and, from the second update, 5 at [0, 0]: a norm of 13.
    first = low_rank(jnp.tile(factors[0], 2), factors[1])
    second = low_rank(jnp.zeros((40, 1)).at[0].set(5.0), jnp.zeros((18, 1)).at[0].set(1.0))
    bias = DenseUpdate(Leaf.MLP_DOWN, Part.BIAS, jnp.int32(2), -2 * down["bias"][2])
    kernel = DenseUpdate(Leaf.MLP_DOWN, Part.KERNEL, jnp.int32(1), jnp.zeros((40, 18)))
    changes = weight_changes(params, Delta((first, bias, second)))
    assert [(c.layer, c.weight, c.rank) for c in changes] == [
        (1, "mlp/down", 3),
        (2, "mlp/down bias", None),
    ]
    assert changes[0].norm_ratio == pytest.approx(13 / np.linalg.norm(down["kernel"][1]), rel=1e-6)
    assert changes[1].norm_ratio == pytest.approx(2, rel=1e-6)
    (mixed,) = weight_changes(params, Delta((first, kernel)))
    assert mixed.rank is None
    assert weight_changes(params, Delta(())) == ()


def test_a_change_of_nothing_has_no_norm_even_where_the_weight_has_none(gpt2):
    params = jax.tree.map(jnp.zeros_like, gpt2[0])
    nothing = DenseUpdate(Leaf.MLP_DOWN, Part.BIAS, jnp.int32(0), jnp.zeros(18))
    assert weight_changes(params, Delta((nothing,)))[0].norm_ratio == 0


def test_weight_changes_are_of_one_edit_of_this_model(gpt2):
    params, _ = gpt2
    deltas = random_deltas(params, "gpt2")
    with pytest.raises(ValueError, match="independent edits: merge one"):
        weight_changes(params, deltas)
    short = Delta((DenseUpdate(Leaf.MLP_DOWN, Part.BIAS, jnp.int32(0), jnp.ones(17)),))
    with pytest.raises(ValueError, match="it was made for another model"):
        weight_changes(params, short)


def test_a_delta_prints_as_one_line():
    factors = jnp.zeros((2, 40, 1)), jnp.zeros((2, 18, 1))
    update = LowRankUpdate(Leaf.MLP_DOWN, jnp.array([1, 3], jnp.int32), *factors)
    delta = Delta((update, update))
    line = "MLP_DOWN [40, 18] rank 1"
    assert repr(delta) == f"Delta(2 edits: {line} at layers 1, 3, {line} at layers 1, 3)"
    assert repr(delta[1]) == f"Delta(one edit: {line} at layer 3, {line} at layer 3)"
    dense = DenseUpdate(Leaf.MLP_UP, Part.BIAS, jnp.int32(2), jnp.zeros(40))
    assert repr(Delta((dense,))) == "Delta(one edit: MLP_UP bias [40] at layer 2)"
    shapes = jax.eval_shape(lambda: delta[0])
    assert repr(shapes) == f"Delta(one edit: {line}, {line})"
