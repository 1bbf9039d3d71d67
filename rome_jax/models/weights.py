"""The tensors of a model's Hugging Face checkpoint, from its family's table, for loading and for saving.

Axes: L layers. A checkpoint has one tensor for each layer; params have one leaf [L, ...] for all layers.
"""

from __future__ import annotations

import dataclasses
import math

import jax

from rome_jax.models.config import ModelConfig
from rome_jax.models.families import FAMILIES
from rome_jax.models.families.base import Weight
from rome_jax.models.transformer import param_shapes


@dataclasses.dataclass(frozen=True)
class Slot:
    """The place of one tensor of the checkpoint: layer `layer` of a leaf, or the whole leaf if it is None."""

    weight: Weight
    layer: int | None
    shape: tuple[int, ...]  # as stored in the checkpoint


def leaf_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every leaf by its path, as the linen model would create it."""
    return {
        "/".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(param_shapes(config))
    }


def slots_of(config: ModelConfig) -> dict[str, Slot]:
    """Returns the slot of every tensor of a model's checkpoint by its name."""
    shapes = leaf_shapes(config)
    slots = {}
    for weight in FAMILIES[config.family].weights:
        if weight.path not in shapes:  # a tied head has no weights of its own
            continue
        stacked = weight.path.startswith("blocks/")
        shape = shapes[weight.path][1:] if stacked else shapes[weight.path]
        if weight.path.startswith("blocks/attn/qkv/"):
            shape = (*shape[:-2], math.prod(shape[-2:]))  # a leaf has an axis for the three parts
        for layer in range(config.num_layers) if stacked else (None,):
            slots[weight.name.format(layer)] = Slot(
                weight, layer, shape[::-1] if weight.transposed else shape
            )
    return slots
