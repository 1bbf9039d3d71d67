"""Conversion of weights between stored models (Hugging Face directories, GGUF files) and stacked params.

Each tensor is written straight into its place in the stack, so the process holds the weights once and one tensor more.

Axes: L layers. A checkpoint has one tensor for each layer; params have one leaf [L, ...] for all layers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rome_jax.files.artifacts import write_whole
from rome_jax.files.safetensors_io import CheckpointError, write
from rome_jax.models import leaves
from rome_jax.models.checkpoint import Tensor, listed, match, open_checkpoint
from rome_jax.models.config import ModelConfig
from rome_jax.models.families import FAMILIES, to_hf
from rome_jax.models.families.base import Weight
from rome_jax.models.forward import Params
from rome_jax.models.interventions import Leaf
from rome_jax.models.leaves import OnRead
from rome_jax.models.sharding import param_shardings
from rome_jax.models.weights import Slot, leaf_shapes, slots_of

_SINGLE = "model.safetensors"
_SMALL = 1 << 24  # bytes; leaves up to this size are assembled and split on the host


def load_params(
    directory: str | Path,
    config: ModelConfig,
    dtype: Any = None,
    *,
    mesh: Mesh | None = None,
    on_read: OnRead | None = None,
) -> Params:
    """Reads the weights of a Hugging Face directory or of a GGUF file.

    Args:
      directory: A directory with model.safetensors, with shards and model.safetensors.index.json, or with
        pytorch_model.bin files, which the `convert` extra converts to safetensors once; or a GGUF file, whose tensors
        are dequantized one at a time. Names of tensors may lack the prefix `transformer.`.
      config: The model's config, from its config.json or the GGUF file.
      dtype: Type of the params; None keeps the stored type, including float16 and bfloat16. It is float32 for GGUF.
      mesh: Devices to split the params over; see `parse_mesh`. Of each tensor in a safetensors file, only the parts
        that these devices hold are read. None means the default device.
      on_read: Called with a device and the number of bytes that are read for it, for each part of a tensor. A part that
        several devices hold is read once, for the first of them.

    Returns:
      Params with stacked leaves.

    Raises:
      CheckpointError: If a file is missing or damaged, tensors are missing, unexpected or of another shape (all of them
        are listed), or params cannot have their dtype.
      ValueError: If the mesh does not fit the model; see `param_shardings`.

    Example:
      >>> rome_jax.save_hf("model", model)
      >>> params = load_params("model", model.config, dtype=jnp.bfloat16)
      >>> params["blocks"]["mlp"]["down"]["kernel"].shape
      (6, 512, 128)
    """
    place = Path(directory)
    shapes = leaf_shapes(config)
    shardings = dict.fromkeys(shapes) if mesh is None else _by_path(param_shardings(config, mesh))
    stored = match(open_checkpoint(place, config), config, place)
    tensors: dict[Weight, list[tuple[Slot, Tensor]]] = {}
    for slot, tensor in stored:
        tensors.setdefault(slot.weight, []).append((slot, tensor))
    # Largest tensor first: a source may be copied while it moves, which matters least before the others are loaded.
    order = sorted(tensors, key=lambda weight: -math.prod(tensors[weight][0][0].shape))
    params: Params = {}
    for weight in order:
        kept = jnp.result_type(*{tensor.dtype for _, tensor in tensors[weight]})
        shape, target = shapes[weight.path], jnp.dtype(kept if dtype is None else dtype)
        small = math.prod(shape) * target.itemsize <= _SMALL
        build = leaves.assemble if small else leaves.fill
        leaf = build(tensors[weight], shape, target, shardings[weight.path], config, on_read)
        _set(params, weight.path, leaf)
    return params


def _by_path(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths, joined by "/"."""
    return {
        "/".join(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def to_checkpoint_order(weight: Weight, tensor: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Brings the rows of a fused projection into the order of checkpoints.

    Args:
      weight: The row of the family's table; the tensor is returned unchanged unless it is stored by head.
      tensor: A kernel [out, in] or a bias [out] with our order of rows, [3, heads, K].
      config: The model's config.

    Returns:
      The tensor with the rows ordered as [heads, 3, K].
    """
    if not weight.by_head:
        return tensor
    split = tensor.reshape(3, config.num_heads, config.head_dim, *tensor.shape[1:])
    return split.swapaxes(0, 1).reshape(tensor.shape)


def save_params(
    directory: str | Path,
    params: Params,
    config: ModelConfig,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Writes model.safetensors and config.json, which `load_params` and `transformers` both read.

    Each file appears complete or not at all. One layer at a time is copied to the host. Files of these names are
    replaced without a question; `rome_jax.save_hf` protects other models.

    Args:
      directory: The directory; it is created if necessary.
      params: Params of the whole model.
      config: The model's config.
      attributes: Further entries of config.json, such as `eos_token_id`.

    Raises:
      CheckpointError: If the params do not fit the config.

    Example:
      >>> save_params("model", model.params, model.config)
      >>> sorted(path.name for path in Path("model").iterdir())
      ['config.json', 'model.safetensors']
    """
    directory = Path(directory)
    shapes = leaf_shapes(config)
    found = _by_path(params)
    wrong = [path for path in shapes if path not in found or found[path].shape != shapes[path]]
    wrong += [path for path in found if path not in shapes]
    if wrong:
        raise CheckpointError(
            f"params do not fit the config of this model: {listed(wrong)} missing, unexpected or of another shape."
        )
    slots = slots_of(config)
    specs = {
        name: (np.dtype(found[slot.weight.path].dtype), slot.shape) for name, slot in slots.items()
    }

    def tensors() -> Iterator[np.ndarray]:
        for slot in slots.values():
            leaf = found[slot.weight.path]
            if leaf.nbytes <= _SMALL:
                leaf = np.asarray(leaf)
            tensor = np.asarray(leaf if slot.layer is None else leaf[slot.layer])
            if slot.weight.transposed:
                tensor = tensor.reshape(slot.shape[::-1]).T
            else:
                tensor = tensor.reshape(slot.shape)
            yield to_checkpoint_order(slot.weight, tensor, config)

    write(directory / _SINGLE, specs, tensors(), {"format": "pt"})
    stored = {"dtype": str(found["wte/embedding"].dtype)}  # the dtype in which transformers loads
    content = json.dumps(to_hf(config) | stored | dict(attributes or {}), indent=2, sort_keys=True)
    write_whole(directory / "config.json", f"{content}\n".encode())


def layer_name(config: ModelConfig, leaf: Leaf, layer: int) -> str:
    """Returns the name that Hugging Face gives the module of a projection; files of statistics are named after it.

    Args:
      config: The model's config.
      leaf: The projection.
      layer: The layer's index.

    Raises:
      ValueError: If the model does not have the layer or the leaf.

    Example:
      >>> from rome_jax.models.families import PRESETS
      >>> layer_name(PRESETS["gpt2-xl"], Leaf.MLP_DOWN, 17)
      'transformer.h.17.mlp.c_proj'
    """
    return _row(config, leaf).name.removesuffix(".weight").format(config.check_layer(layer))


def _row(config: ModelConfig, leaf: Leaf) -> Weight:
    """Returns the row of a projection's kernel.

    Raises:
      ValueError: If the model does not have the leaf.
    """
    path = "/".join(("blocks", *leaf.value, "kernel"))
    for weight in FAMILIES[config.family].weights:
        if weight.path == path:
            return weight
    raise ValueError(f"{config.family.value} models have no {leaf.name}.")


def stores_transposed(config: ModelConfig, leaf: Leaf) -> bool:
    """Returns whether checkpoints of a model store a projection as [out, in].

    Raises:
      ValueError: If the model does not have the leaf.
    """
    return _row(config, leaf).transposed


def checkpoint_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of a model's checkpoint, by name, as Hugging Face stores it."""
    return {name: slot.shape for name, slot in slots_of(config).items()}


def _set(params: Params, path: str, leaf: jax.Array) -> None:
    """Stores a leaf under its path."""
    *parents, last = path.split("/")
    for key in parents:
        params = params.setdefault(key, {})
    params[last] = leaf
