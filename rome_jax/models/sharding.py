"""Sharding of a model over several devices: the logical axes of every leaf, and rules that place them on a mesh.

A model is split over one axis of the mesh, "model". The MLP's width is always split. Heads and vocabulary are split if
the number of devices divides them and replicated otherwise: GPT-2 XL has 25 heads and 50,257 tokens. XLA adds the
communication.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rome_jax.files.checked import Count, check
from rome_jax.models.config import ModelConfig
from rome_jax.models.forward import param_shapes

MODEL_AXIS = "model"

# The logical axes of every leaf. "heads" is the concatenated width of all heads.
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
    "blocks/attn/query/bias": ("layers", "heads"),
    "blocks/attn/key/bias": ("layers", "heads"),
    "blocks/attn/value/bias": ("layers", "heads"),
    "blocks/attn/query_norm/scale": ("layers", "head"),
    "blocks/attn/key_norm/scale": ("layers", "head"),
    "blocks/attn/out/kernel": ("layers", "heads", "width"),
    "blocks/attn/out/bias": ("layers", "width"),
    "blocks/ln_2/scale": ("layers", "width"),
    "blocks/ln_2/bias": ("layers", "width"),
    "blocks/mlp/gate/kernel": ("layers", "width", "mlp"),
    "blocks/mlp/gate/bias": ("layers", "mlp"),
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
    """Builds a mesh that splits a model over `devices`, by default all devices.

    Example:
      >>> model_mesh().axis_names
      ('model',)
    """
    return Mesh(np.array(jax.devices() if devices is None else devices), (MODEL_AXIS,))


def split_axes(config: ModelConfig, num_devices: int) -> frozenset[str]:
    """Returns the logical axes that are split over a number of devices.

    Raises:
      ValueError: If the number of devices is not a whole number of at least 1 that divides the MLP's width.

    Example:
      >>> from rome_jax.models.families import PRESETS
      >>> sorted(split_axes(PRESETS["gpt2-xl"], 8))
      ['mlp']
    """
    num_devices = check(Count, num_devices, "num_devices")
    if config.mlp_width % num_devices:
        raise ValueError(
            f"mlp_width={config.mlp_width} cannot be split over {num_devices} devices: use a number of devices that "
            "divides it."
        )
    sizes = {"mlp": config.mlp_width, "heads": config.num_kv_heads, "vocabulary": config.vocab_size}
    return frozenset(axis for axis, size in sizes.items() if size % num_devices == 0)


def param_shardings(config: ModelConfig, mesh: Mesh) -> Any:
    """Builds the sharding of every leaf of the params.

    Args:
      config: The model's config.
      mesh: A mesh with an axis "model", such as `model_mesh()`; leaves are replicated over its other axes.

    Returns:
      A tree of `NamedSharding` with the structure of params.

    Raises:
      ValueError: If the mesh has no such axis or has explicit axes, or its size does not divide the MLP's width.

    Example:
      >>> params = jax.device_put(model.params, param_shardings(model.config, model_mesh()))
      >>> params["blocks"]["mlp"]["up"]["kernel"].sharding.spec == PartitionSpec(None, None, "model")
      True
    """
    if MODEL_AXIS not in mesh.axis_names:
        raise ValueError(
            f"mesh has the axes {mesh.axis_names} but none named {MODEL_AXIS!r}: use model_mesh()."
        )
    if AxisType.Explicit in mesh.axis_types:
        raise ValueError(
            f"mesh has axis_types={mesh.axis_types}, but XLA has to choose the sharding of activations: use "
            "model_mesh(), or jax.make_mesh(..., axis_types=(AxisType.Auto, ...))."
        )
    split = split_axes(config, mesh.shape[MODEL_AXIS])

    def place(path: Any, leaf: Any) -> NamedSharding:
        axes = LOGICAL_AXES["/".join(key.key for key in path)]
        spec = PartitionSpec(*(MODEL_AXIS if axis in split else None for axis in axes))
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, param_shapes(config))
