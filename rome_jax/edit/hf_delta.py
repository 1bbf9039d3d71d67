"""Edits under the names and in the orientation of Hugging Face checkpoints, to use them outside of this library."""

from __future__ import annotations

import numpy as np

from rome_jax.edit.delta import Update, check_single, dense, weight_name
from rome_jax.models.config import ModelConfig
from rome_jax.models.families import FAMILIES
from rome_jax.models.families.base import Weight
from rome_jax.models.huggingface import checkpoint_shapes, to_checkpoint_order
from rome_jax.models.interventions import Delta, DenseUpdate, Part


def to_hf(delta: Delta, config: ModelConfig) -> dict[str, np.ndarray]:
    """Returns ΔW of each weight that an edit changes, as a tensor to add to a `transformers` state dict.

    The names are those that `save_hf` writes, such as transformer.h.17.mlp.c_proj.weight. GPT-2 stores kernels as
    Conv1D, [in, out], and the other families as Linear, [out, in]. GPT-NeoX sorts the rows of queries, keys, and values
    by head.

    Args:
      delta: One edit, without a case axis.
      config: Configuration of the edited model.

    Returns:
      float32 arrays by name. Several updates of one weight are summed.

    Raises:
      ValueError: If the delta has a case axis, or changes a weight, layer or shape that the model does not have.

    Example:
      >>> from rome_jax.edit import rome, to_hf
      >>> deltas = rome.compute_deltas(model, [request], config, second_moments=moments, templates=["{}"])
      >>> {name: change.shape for name, change in to_hf(deltas[0], model.config).items()}
      {'transformer.h.0.mlp.c_proj.weight': (512, 128)}
    """
    check_single(delta)
    shapes = checkpoint_shapes(config)
    changes: dict[str, np.ndarray] = {}
    for update in delta.updates:
        weight = _row(update, config)
        name = weight.name.format(int(update.layer))
        change = np.asarray(dense(update), np.float32)
        if weight.transposed:
            change = change.T
        if change.shape != shapes[name]:
            raise ValueError(
                f"the delta changes a {name} of shape {list(change.shape)}, but the model's is {list(shapes[name])}: "
                "it was made for another model."
            )
        change = np.ascontiguousarray(to_checkpoint_order(weight, change, config))
        changes[name] = changes[name] + change if name in changes else change
    return changes


def _row(update: Update, config: ModelConfig) -> Weight:
    """Returns the row of the family's table for the tensor that an update changes.

    Raises:
      ValueError: If the model does not have the weight or the layer.
    """
    part = update.part if isinstance(update, DenseUpdate) else Part.KERNEL
    path = "/".join(("blocks", *update.leaf.value, part.value))
    config.check_layer(int(update.layer))
    for weight in FAMILIES[config.family].weights:
        if weight.path == path:
            return weight
    raise ValueError(f"the delta changes {weight_name(update)}, which this model does not have.")
