"""Sharding of a model over several devices: meshes, the logical axes of every leaf, and rules that place them.

A mesh has two axes. The axis "data" splits requests and rows of batches, and "model" splits weights. The MLP's width is
always split over "model". Heads and vocabulary are split if the number of devices divides them and replicated
otherwise: GPT-2 XL has 25 heads and 50,257 tokens. XLA adds the communication.

Queries are split only where keys and values can be split too. A device then holds whole groups of heads that share keys
and values, so attention needs no communication before its output projection. If queries were split further than their
keys and values, XLA would have to reshard queries or scores in every layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from rome_jax.files.checked import Count, check, shown
from rome_jax.models.config import ModelConfig
from rome_jax.models.placement import DATA_AXIS, MODEL_AXIS
from rome_jax.models.transformer import param_shapes

# The logical axes of every leaf. "heads" is the concatenated width of all heads; "qkv" are the three fused projections.
LOGICAL_AXES: dict[str, tuple[str, ...]] = {
    "wte/embedding": ("vocabulary", "width"),
    "wpe/embedding": ("positions", "width"),
    "blocks/ln_1/scale": ("layers", "width"),
    "blocks/ln_1/bias": ("layers", "width"),
    "blocks/attn/qkv/kernel": ("layers", "width", "qkv", "heads"),
    "blocks/attn/qkv/bias": ("layers", "qkv", "heads"),
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
    """Builds a mesh that splits a model over `devices`, by default all devices of this process.

    Example:
      >>> model_mesh().axis_names
      ('data', 'model')
    """
    return parse_mesh(f"{MODEL_AXIS}:-1", devices)


def parse_mesh(text: str, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the mesh that a text describes.

    Args:
      text: Sizes of the axes, such as "data:2,model:4". An axis that is left out has size 1, and the size -1, for one
        axis at most, takes all remaining devices.
      devices: Devices to choose from; by default those of this process. The first ones are used if the mesh needs
        fewer.

    Returns:
      A mesh with the axes "data" and "model".

    Raises:
      ValueError: If the text is not of this form, or the sizes do not fit the number of devices.

    Example:
      >>> dict(parse_mesh("data:-1,model:1", jax.devices()[:1]).shape)
      {'data': 1, 'model': 1}
    """
    devices = jax.local_devices() if devices is None else list(devices)
    sizes = mesh_sizes(text)
    filled = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for axis, size in sizes.items() if axis not in filled)
    if fixed > len(devices):
        raise ValueError(
            f"mesh={shown(text)} needs {fixed} devices, but this process has {len(devices)}: give smaller sizes."
        )
    if filled and len(devices) % fixed:
        raise ValueError(
            f"mesh={shown(text)} cannot use all {len(devices)} devices, which {fixed} does not divide: give a size "
            "instead of -1."
        )
    shape = {
        axis: len(devices) // fixed if axis in filled else sizes.get(axis, 1)
        for axis in (DATA_AXIS, MODEL_AXIS)
    }
    return jax.make_mesh(
        tuple(shape.values()),
        tuple(shape),
        (AxisType.Auto, AxisType.Auto),
        devices=devices[: shape[DATA_AXIS] * shape[MODEL_AXIS]],
    )


def mesh_sizes(text: str) -> Mapping[str, int]:
    """Reads the sizes of the axes that a text names, with -1 for one of them at most.

    Raises:
      ValueError: If the text is not of this form.
    """
    sizes: dict[str, int] = {}
    for part in check(str, text, "mesh").split(","):
        axis, _, size = (piece.strip() for piece in part.partition(":"))
        if axis not in (DATA_AXIS, MODEL_AXIS) or axis in sizes or not size:
            raise ValueError(
                f"mesh={shown(text)}: give each of the axes data and model at most once with its size, such as "
                "data:2,model:4."
            )
        name = f"mesh={shown(text)}: {axis}"
        sizes[axis] = -1 if size == "-1" else check(Count, size, name)
    if list(sizes.values()).count(-1) > 1:
        raise ValueError(f"mesh={shown(text)}: give -1 for one axis at most.")
    return sizes


def split_axes(config: ModelConfig, num_devices: int) -> frozenset[str]:
    """Returns the logical axes that are split over the axis "model" of a mesh.

    Args:
      config: The model's config.
      num_devices: Number of devices along that axis.

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


def check_mesh(config: ModelConfig, mesh: Mesh | AbstractMesh) -> frozenset[str]:
    """Checks that a model can be placed on a mesh, and returns the logical axes that are split over its axis "model".

    Raises:
      ValueError: If the mesh has no such axis or has explicit axes, or its size does not divide the MLP's width.
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
    return split_axes(config, mesh.shape[MODEL_AXIS])


def param_shardings(config: ModelConfig, mesh: Mesh | AbstractMesh) -> Any:
    """Builds the sharding of every leaf of the params.

    Args:
      config: The model's config.
      mesh: A mesh with an axis "model", such as `model_mesh()`; leaves are replicated over its other axes.

    Returns:
      A tree of `NamedSharding` with the structure of params.

    Raises:
      ValueError: If the model cannot be placed on the mesh; see `check_mesh`.

    Example:
      >>> params = jax.device_put(model.params, param_shardings(model.config, model_mesh()))
      >>> params["blocks"]["mlp"]["up"]["kernel"].sharding.spec == PartitionSpec(None, None, "model")
      True
    """
    split = check_mesh(config, mesh)

    def place(path: Any, leaf: Any) -> NamedSharding:
        axes = LOGICAL_AXES["/".join(key.key for key in path)]
        spec = PartitionSpec(*(MODEL_AXIS if axis in split else None for axis in axes))
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, param_shapes(config))
