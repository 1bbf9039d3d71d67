"""Saved edits with random updates, for tests that need edits but no editing method."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.data.request import EditRequest
from rome_jax.edit.saved_edits import EditedLayer, EditedModel, Provenance, SavedEdit
from rome_jax.models.interventions import Delta, DenseUpdate, Leaf, LowRankUpdate, Part
from rome_jax.models.registry import LanguageModel


def random_delta(model: LanguageModel, seed: int = 0, layers: tuple[int, ...] = (1,)) -> Delta:
    """Returns a random rank-one update of the down-projection at each layer, about as large as the weights.

    Args:
      model: The model to edit.
      seed: Seed of the update.
      layers: The edited layers.
    """
    generator = np.random.default_rng(seed)

    def factor(size):
        return jnp.asarray(0.2 * generator.standard_normal((size, 1)), jnp.float32)

    sizes = (model.config.mlp_width, model.config.width)
    return Delta(
        tuple(
            LowRankUpdate(Leaf.MLP_DOWN, jnp.int32(layer), *map(factor, sizes)) for layer in layers
        )
    )


def random_edit(model: LanguageModel, seed: int = 0, layers: tuple[int, ...] = (1,)) -> SavedEdit:
    """Returns the edit of `random_delta` with a provenance that depends on the seed."""
    provenance = Provenance(
        method="ROME",
        requests=(EditRequest("{} lives in", f"Žižek {seed}", "Rome", case_id=seed),),
        config={"layers": list(layers), "v_lr": 0.5},
        templates=("{}", "A {} in braces. {}"),
        seed=seed,
        model=EditedModel.of(model),
        layers=tuple(EditedLayer(layer, 0.25, 1.5) for layer in layers),
        versions={"rome_jax": "0.1.0", "jax": "0.10"},
        created="2026-01-31T12:00:00+00:00",
    )
    return SavedEdit(random_delta(model, seed, layers), provenance)


def dense_edit(model: LanguageModel, seed: int = 0) -> SavedEdit:
    """Returns an edit as fine-tuning makes it: dense updates of kernel and bias of layer 0, with ‖ΔW‖/‖W‖ ≈ 1/2."""
    generator = np.random.default_rng(seed)
    down = model.params["blocks"]["mlp"]["down"]
    updates = []
    for part in Part:
        weight = np.asarray(down[part.value][0])
        change = generator.standard_normal(weight.shape) * weight.std() / 2
        change = jnp.asarray(change, jnp.float32)
        updates.append(DenseUpdate(Leaf.MLP_DOWN, part, jnp.int32(0), change))
    provenance = dataclasses.replace(
        random_edit(model, seed).provenance,
        method="FT-L",
        config={"layers": [0], "lr": 1e-3},
        templates=(),
        seed=None,
        layers=(
            EditedLayer(0, 0.5, weight="mlp/down"),
            EditedLayer(0, 0.5, weight="mlp/down bias"),
        ),
    )
    return SavedEdit(Delta(tuple(updates)), provenance)


def assert_same_edits(got, want) -> None:
    """Asserts that edits have the same provenance and bit-identical updates."""
    assert [edit.provenance for edit in got] == [edit.provenance for edit in want]
    for a, b in zip(got, want, strict=True):
        # The tree structure includes the kinds of updates, the leaves and the parts.
        assert jax.tree.structure(a.delta) == jax.tree.structure(b.delta)
        for one, two in zip(jax.tree.leaves(a.delta), jax.tree.leaves(b.delta), strict=True):
            assert one.dtype == two.dtype and one.shape == two.shape
            np.testing.assert_array_equal(one, two)


def one_sentence(error) -> str:
    """Returns the message of an error that pytest caught, which must be one line that ends in a period."""
    message = str(error.value)
    assert "\n" not in message and message.endswith(".")
    return message
