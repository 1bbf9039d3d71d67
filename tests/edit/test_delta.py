"""Edits as data: the rank-one update, merged and factored application, files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from rome_jax.edit import delta as delta_module
from rome_jax.edit.delta import (
    DELTA_FILE,
    apply_delta,
    dense,
    load_delta,
    rank_one_update,
    save_delta,
)
from rome_jax.models import forward
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate
from rome_jax.tokens import TokenBatch
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


def test_updates_of_one_leaf_add_up(gpt2):
    params, _ = gpt2
    first, second = (random_deltas(params, "gpt2", seed=seed)[1] for seed in (1, 2))
    together = apply_delta(params, Delta(first.updates + second.updates))
    one_by_one = apply_delta(apply_delta(params, first), second)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), together, one_by_one
    )


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


# Files


METADATA = {"model": "tiny", "layers": [1], "requests": [{"subject": "Žižek", "target": "Rome"}]}


@pytest.mark.parametrize("which", ["one edit", "several"])
def test_save_and_load(gpt2, tmp_path, which):
    deltas = random_deltas(gpt2[0], "gpt2")
    delta = deltas if which == "several" else deltas[1]
    path = save_delta(tmp_path / "new" / "edit", delta, METADATA)
    assert path == tmp_path / "new" / "edit" / DELTA_FILE
    assert [file.name for file in path.parent.iterdir()] == [DELTA_FILE]
    loaded, metadata = load_delta(path.parent)
    assert metadata == METADATA
    assert loaded.batched == delta.batched
    assert jax.tree.structure(loaded) == jax.tree.structure(delta)
    jax.tree.map(np.testing.assert_array_equal, loaded, delta)
    assert [a.dtype for a in jax.tree.leaves(loaded)] == [a.dtype for a in jax.tree.leaves(delta)]


def test_more_than_ten_updates_keep_their_order(tmp_path):
    ones = jnp.ones((2, 1))
    delta = Delta(
        tuple(LowRankUpdate(Leaf.MLP_DOWN, jnp.int32(i), i * ones, ones) for i in range(12))
    )
    save_delta(tmp_path, delta, {})
    assert [int(update.layer) for update in load_delta(tmp_path)[0].updates] == list(range(12))


def test_a_second_save_replaces_the_first(gpt2, tmp_path):
    deltas = random_deltas(gpt2[0], "gpt2")
    save_delta(tmp_path, deltas, {"version": 1})
    save_delta(tmp_path, deltas[0], {"version": 2})
    loaded, metadata = load_delta(tmp_path)
    assert metadata == {"version": 2}
    assert not loaded.batched


def test_an_interrupted_save_leaves_no_delta(gpt2, tmp_path, monkeypatch):
    def write_half(arrays, file, metadata):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    deltas = random_deltas(gpt2[0], "gpt2")
    monkeypatch.setattr(delta_module, "save_file", write_half)
    with pytest.raises(KeyboardInterrupt):
        save_delta(tmp_path, deltas, {})
    assert not (tmp_path / DELTA_FILE).exists()
    monkeypatch.undo()

    save_delta(tmp_path, deltas, {"version": 1})
    monkeypatch.setattr(delta_module, "save_file", write_half)
    with pytest.raises(KeyboardInterrupt):
        save_delta(tmp_path, deltas[0], {"version": 2})
    assert load_delta(tmp_path)[1] == {"version": 1}, "the old file is whole"


def test_metadata_that_is_not_json_is_an_error_before_anything_is_written(gpt2, tmp_path):
    with pytest.raises(TypeError):
        save_delta(tmp_path, random_deltas(gpt2[0], "gpt2"), {"model": object()})
    assert not list(tmp_path.iterdir())


def test_a_directory_without_a_delta_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"delta\.safetensors does not exist"):
        load_delta(tmp_path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_file_of_another_kind_is_an_error(tmp_path, metadata):
    save_file({"h.0.weight": np.ones(3, np.float32)}, tmp_path / DELTA_FILE, metadata=metadata)
    with pytest.raises(ValueError, match=r"delta\.safetensors is not an edit of rome_jax"):
        load_delta(tmp_path)


@pytest.mark.parametrize("content", [b"", b"garbage that is long enough to hold a header"])
def test_a_damaged_file_is_an_error(tmp_path, content):
    (tmp_path / DELTA_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"delta\.safetensors .*damaged"):
        load_delta(tmp_path)


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
    jax.tree.map(np.testing.assert_array_equal, apply_delta(params, Delta(())), params)
