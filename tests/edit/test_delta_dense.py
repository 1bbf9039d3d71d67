"""Dense updates, what an edit does to each weight, and how a delta prints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.tokens import TokenBatch
from rome_jax.edit.delta import (
    apply_delta,
    merge_deltas,
    negate_delta,
    revert_delta,
    weight_changes,
    weight_of,
)
from rome_jax.models import forward
from rome_jax.models.interventions import Delta, DenseUpdate, Leaf, LowRankUpdate, Part
from tests.edit.deltas import as_dtype, assert_within_rounding, random_deltas
from tests.models.checkpoints import assert_same_params, random_params, tiny_config


@pytest.fixture(scope="module")
def gpt2():
    config = tiny_config("gpt2")
    return random_params(config), config


# Dense updates


def mixed_deltas(params, seed=0):
    """Three edits: low-rank ones, and dense ones of a kernel (at a low-rank one's layer in case 0) and of a bias."""
    generator = np.random.default_rng(seed)

    def update(leaf, part, layers):
        shape = weight_of(params, 0, leaf, part).shape
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
    expected = jax.tree.map(np.array, before)
    expected["blocks"]["mlp"]["down"]["kernel"][1] += kernel.change[1]
    expected["blocks"]["attn"]["qkv"]["bias"][0] += bias.change[1].reshape(3, -1)
    assert_same_params(edited, expected)
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
        with pytest.raises(ValueError, match=r"dense delta .*: merge it .*with apply_delta"):
            forward.logits(params, config, batch, deltas=delta)


def test_a_dense_update_of_another_model_is_an_error(gpt2):
    params = gpt2[0]

    def delta(leaf, part, layer, *shape):
        return Delta((DenseUpdate(leaf, part, jnp.int32(layer), jnp.ones(shape)),))

    with pytest.raises(ValueError, match="a mlp/down bias of 19, but the model's is 18"):
        apply_delta(params, delta(Leaf.MLP_DOWN, Part.BIAS, 0, 19))
    with pytest.raises(ValueError, match="a mlp/down of 18 × 40, but the model's is 40 × 18"):
        apply_delta(params, delta(Leaf.MLP_DOWN, Part.KERNEL, 0, 18, 40))
    with pytest.raises(ValueError, match="layer 3, but the model has layers 0 to 2"):
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
    with pytest.raises(ValueError, match="was made for another model"):
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
