"""Where the parts of a model lie: logical axes of every leaf, and rules that place them on the devices of a mesh.

A model is split over one axis of the mesh, "model". The MLP's width is always split; heads and vocabulary where the
devices divide them, else they are replicated (GPT-2 XL has 25 heads and 50,257 tokens). XLA adds the communication.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rome_jax.models.config import ModelConfig
from rome_jax.models.forward import param_shapes

MODEL_AXIS = "model"

# The logical axes of every leaf. "heads" is the width of all heads together, side by side.
LOGICAL_AXES: dict[str, tuple[str, ...]] = {
    "wte/embedding": ("vocabulary", "width"),
    "wpe/embedding": ("positions", "width"),
    "blocks/ln_1/scale": ("layers", "width"),
    "blocks/ln_1/bias": ("layers", "width"),
    "blocks/attn/qkv/kernel": ("layers", "width", "heads"),
    "blocks/attn/qkv/bias": ("layers", "heads"),
    "blocks/attn/query/kernel": ("layers", "width", "heads"),
    "blocks/attn/key/kernel": ("layers", "width", "heads"),
    "blocks/attn/value/kernel": ("layers", "width", "heads"),
    "blocks/attn/out/kernel": ("layers", "heads", "width"),
    "blocks/attn/out/bias": ("layers", "width"),
    "blocks/ln_2/scale": ("layers", "width"),
    "blocks/ln_2/bias": ("layers", "width"),
    "blocks/mlp/up/kernel": ("layers", "width", "mlp"),
    "blocks/mlp/up/bias": ("layers", "mlp"),
    "blocks/mlp/down/kernel": ("layers", "mlp", "width"),
    "blocks/mlp/down/bias": ("layers", "width"),
    "ln_f/scale": ("width",),
    "ln_f/bias": ("width",),
    "lm_head/kernel": ("width", "vocabulary"),
    "lm_head/bias": ("vocabulary",),
}


def model_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh that splits a model over `devices`, by default all there are.

    Example:
      >>> model_mesh().axis_names
      ('model',)
    """
    return Mesh(np.array(jax.devices() if devices is None else devices), (MODEL_AXIS,))


def split_axes(config: ModelConfig, num_devices: int) -> frozenset[str]:
    """The logical axes that are split over `num_devices`.

    Raises:
      ValueError: an MLP whose width the devices do not divide.

    Example:
      >>> from rome_jax.models.config import PRESETS
      >>> sorted(split_axes(PRESETS["gpt2-xl"], 8))
      ['mlp']
    """
    if config.mlp_width % num_devices:
        raise ValueError(
            f"mlp_width={config.mlp_width} cannot be split over {num_devices} devices: use a number of devices that "
            "divides it."
        )
    sizes = {"mlp": config.mlp_width, "heads": config.num_heads, "vocabulary": config.vocab_size}
    return frozenset(axis for axis, size in sizes.items() if size % num_devices == 0)


def param_shardings(config: ModelConfig, mesh: Mesh) -> Any:
    """Where each leaf of the params lies.

    Args:
      config: of the model.
      mesh: with an axis "model", such as `model_mesh()`; other axes replicate.

    Returns:
      A tree like params, of `NamedSharding`.

    Raises:
      ValueError: a mesh without that axis or with explicit axes, or an MLP whose width the devices do not divide.

    Example:
      >>> params = jax.device_put(model.params, param_shardings(model.config, mesh))  # doctest: +SKIP
    """
    if MODEL_AXIS not in mesh.axis_names:
        raise ValueError(
            f"mesh has the axes {mesh.axis_names} and none named {MODEL_AXIS!r}: use model_mesh()."
        )
    if AxisType.Explicit in mesh.axis_types:
        raise ValueError(
            f"mesh has axis_types={mesh.axis_types}, but XLA chooses the sharding of activations: use model_mesh(), "
            "or jax.make_mesh(..., axis_types=(AxisType.Auto, ...))."
        )
    split = split_axes(config, mesh.shape[MODEL_AXIS])

    def place(path, leaf):
        axes = LOGICAL_AXES["/".join(key.key for key in path)]
        spec = PartitionSpec(*(MODEL_AXIS if axis in split else None for axis in axes))
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, param_shapes(config))
