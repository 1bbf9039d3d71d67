"""Edits under the names of Hugging Face checkpoints, added to the tensors of an exported model."""

import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.edit import to_hf
from rome_jax.edit.delta import apply_delta, merge_deltas, weight_of
from rome_jax.files.safetensors_io import read_header
from rome_jax.models.config import Family
from rome_jax.models.huggingface import save_params
from rome_jax.models.interventions import Delta, DenseUpdate, Leaf, LowRankUpdate, Part
from tests.edit.deltas import random_deltas
from tests.models.checkpoints import FAMILIES, random_params, tiny_config


def exported(directory, params, config):
    save_params(directory, params, config)
    tensors = read_header(directory / "model.safetensors")
    return {name: np.array(tensor.read()) for name, tensor in tensors.items()}


def edits_of(params, family):
    """Two edits of the same weights, and dense changes of a kernel and a bias."""
    shape = params["blocks"]["mlp"]["down"]["kernel"].shape[1:]
    change = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape) / 1000
    delta = Delta(
        (
            DenseUpdate(Leaf.MLP_DOWN, Part.KERNEL, jnp.int32(2), change),
            DenseUpdate(Leaf.MLP_DOWN, Part.BIAS, jnp.int32(2), change[0]),
        )
    )
    return merge_deltas([random_deltas(params, family, seed=n)[1] for n in range(2)] + [delta])


@pytest.mark.parametrize("family", FAMILIES)
def test_adding_the_tensors_to_a_checkpoint_gives_the_merged_model(tmp_path, family):
    config = tiny_config(family)
    params = random_params(config)
    delta = edits_of(params, family)
    before = exported(tmp_path / "before", params, config)
    after = exported(tmp_path / "after", apply_delta(params, delta), config)
    changes = to_hf(delta, config)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert set(changes) == changed and len(changed) == 4
    for name, change in changes.items():
        np.testing.assert_allclose(before[name] + change, after[name], rtol=1e-6, atol=1e-6)
    down = {"gpt2": "c_proj", "gptj": "fc_out"}[family]
    size = (config.mlp_width, config.width)
    assert changes[f"transformer.h.2.mlp.{down}.weight"].shape == (
        size if family == "gpt2" else size[::-1]
    )


@pytest.mark.parametrize("family", Family)
def test_every_weight_of_every_family_is_changed_as_in_the_saved_model(tmp_path, family):
    config = tiny_config(family)
    params = random_params(config)
    generator = np.random.default_rng(1)
    updates = []
    for leaf in Leaf:
        module, name = leaf.value
        for part in map(Part, params["blocks"][module].get(name, {})):
            shape = weight_of(params, 1, leaf, part).shape
            change = generator.standard_normal(shape, np.float32)
            updates.append(DenseUpdate(leaf, part, jnp.int32(1), jnp.asarray(change)))
    delta = Delta(tuple(updates))
    before = exported(tmp_path / "before", params, config)
    after = exported(tmp_path / "after", apply_delta(params, delta), config)
    changes = to_hf(delta, config)
    assert len(changes) == len(updates) >= 4
    for name in before:
        change = changes.get(name, np.zeros_like(before[name]))
        np.testing.assert_allclose(after[name] - before[name], change, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("leaf", "layer", "shape", "match"),
    [
        (Leaf.MLP_DOWN, 3, (40, 18), "layer=3 does not exist"),
        (Leaf.ATTN_QUERY, 1, (18, 18), "changes attn/query, which this model does not have"),
        (Leaf.MLP_DOWN, 1, (40, 1), r"of shape \[40, 1\], but the model's is \[40, 18\]"),
    ],
)
def test_edits_of_other_models_are_refused(leaf, layer, shape, match):
    factors = (jnp.ones((size, 1)) for size in shape)
    delta = Delta((LowRankUpdate(leaf, jnp.int32(layer), *factors),))
    with pytest.raises(ValueError, match=match):
        to_hf(delta, tiny_config("gpt2"))


def test_independent_edits_are_refused():
    deltas = random_deltas(random_params(tiny_config("gpt2")), "gpt2")
    with pytest.raises(ValueError, match="3 independent edits"):
        to_hf(deltas, tiny_config("gpt2"))
