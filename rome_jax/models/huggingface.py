"""Conversion of weights between Hugging Face directories and stacked params, by one table per family for both ways.

Loading is strict: it fails unless every tensor of the model is there in the right shape and there are no others. Each
tensor is written straight into its place in the stack, so the process holds the weights once and one tensor more.

Axes: L layers. A checkpoint has one tensor for each layer; params have one leaf [L, ...] for all layers.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.files.artifacts import write_whole
from rome_jax.files.safetensors_io import CheckpointError, StoredTensor, read_header, write
from rome_jax.models.config import ModelConfig
from rome_jax.models.families import FAMILIES, to_hf
from rome_jax.models.families.base import Weight
from rome_jax.models.forward import Params, param_shapes
from rome_jax.models.interventions import Leaf

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SMALL = 1 << 24  # bytes; leaves up to this size are assembled and split on the host


@dataclasses.dataclass(frozen=True)
class _Slot:
    """The place of one tensor of the checkpoint: layer `layer` of a leaf, or the whole leaf if it is None."""

    weight: Weight
    layer: int | None
    shape: tuple[int, ...]  # as stored in the checkpoint


def load_params(directory: str | Path, config: ModelConfig, dtype: Any = None) -> Params:
    """Reads the weights of a Hugging Face directory.

    Args:
      directory: A directory with model.safetensors, with shards and model.safetensors.index.json, or with
        pytorch_model.bin files, which the `convert` extra converts to safetensors once. Names of tensors may lack the
        prefix `transformer.`.
      config: The model's config, from its config.json.
      dtype: Type of the params; None keeps the stored type, including float16 and bfloat16.

    Returns:
      Params with stacked leaves on the default device.

    Raises:
      CheckpointError: If a file is missing or damaged, tensors are missing, unexpected or of another shape (all of them
        are listed), or params cannot have their dtype.

    Example:
      >>> rome_jax.save_hf("model", model)
      >>> params = load_params("model", model.config, dtype=jnp.bfloat16)
      >>> params["blocks"]["mlp"]["down"]["kernel"].shape
      (6, 512, 128)
    """
    stored = _match(open_checkpoint(Path(directory)), config, Path(directory))
    leaves: dict[Weight, list[tuple[_Slot, StoredTensor]]] = {}
    for slot, tensor in stored:
        leaves.setdefault(slot.weight, []).append((slot, tensor))
    shapes = _leaf_shapes(config)
    # Largest tensor first: a source may be copied while it moves, which matters least before the others are loaded.
    order = sorted(leaves, key=lambda weight: -math.prod(leaves[weight][0][0].shape))
    params: Params = {}
    for weight in order:
        kept = jnp.result_type(*{tensor.dtype for _, tensor in leaves[weight]})
        shape, target = shapes[weight.path], jnp.dtype(kept if dtype is None else dtype)
        if math.prod(shape) * target.itemsize <= _SMALL:
            leaf = jnp.asarray(_assemble(leaves[weight], shape, target, config))
        else:
            leaf = jnp.zeros(shape, target)
            for slot, tensor in leaves[weight]:
                source = _ours(weight, tensor.read(), config)
                leaf = _put(leaf, source, slot.layer, transposed=weight.transposed)
                leaf.block_until_ready()  # otherwise copies of the sources pile up in memory
        _set(params, weight.path, leaf)
    return params


def _assemble(
    tensors: list[tuple[_Slot, StoredTensor]],
    shape: tuple[int, ...],
    dtype: np.dtype,
    config: ModelConfig,
) -> np.ndarray:
    """Assembles a small leaf on the host, which costs less than compiling a program for it."""
    leaf = np.empty(shape, dtype)
    for slot, tensor in tensors:
        source = _ours(slot.weight, tensor.read(), config)
        leaf[... if slot.layer is None else slot.layer] = (
            source.T if slot.weight.transposed else source
        )
    return leaf


def _ours(weight: Weight, tensor: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Brings the rows of a fused projection into our order: [heads, 3, K, ...] -> [3, heads, K, ...]."""
    if not weight.by_head:
        return tensor
    split = tensor.reshape(config.num_heads, 3, config.head_dim, *tensor.shape[1:])
    return split.swapaxes(0, 1).reshape(tensor.shape)


def _theirs(weight: Weight, tensor: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Brings the rows of a fused projection into the checkpoint's order; see `_ours`."""
    if not weight.by_head:
        return tensor
    split = tensor.reshape(3, config.num_heads, config.head_dim, *tensor.shape[1:])
    return split.swapaxes(0, 1).reshape(tensor.shape)


@functools.partial(jax.jit, donate_argnums=0, static_argnames="transposed")
def _put(
    leaf: jax.Array, tensor: jax.Array, layer: jax.Array | None, *, transposed: bool
) -> jax.Array:
    """Writes one tensor into its donated leaf in place."""
    tensor = (tensor.T if transposed else tensor).astype(leaf.dtype)
    if layer is None:
        return jax.lax.dynamic_update_slice(leaf, tensor, (0,) * leaf.ndim)
    return jax.lax.dynamic_update_index_in_dim(leaf, tensor, layer, 0)


def save_params(
    directory: str | Path,
    params: Params,
    config: ModelConfig,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Writes model.safetensors and config.json, which `load_params` and `transformers` both read.

    Each file appears complete or not at all. One layer at a time is copied to the host.

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
    shapes = _leaf_shapes(config)
    leaves = {
        "/".join(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    wrong = [path for path in shapes if path not in leaves or leaves[path].shape != shapes[path]]
    wrong += [path for path in leaves if path not in shapes]
    if wrong:
        raise CheckpointError(
            f"params do not fit the config of this model: {', '.join(wrong)} missing, unexpected or of another shape."
        )
    slots = _slots(config)
    specs = {
        name: (np.dtype(leaves[slot.weight.path].dtype), slot.shape) for name, slot in slots.items()
    }

    def tensors() -> Iterator[np.ndarray]:
        for slot in slots.values():
            leaf = leaves[slot.weight.path]
            if leaf.nbytes <= _SMALL:
                leaf = np.asarray(leaf)
            tensor = np.asarray(leaf if slot.layer is None else leaf[slot.layer])
            yield _theirs(slot.weight, tensor.T if slot.weight.transposed else tensor, config)

    directory.mkdir(parents=True, exist_ok=True)
    write(directory / _SINGLE, specs, tensors(), {"format": "pt"})
    stored = {"dtype": str(leaves["wte/embedding"].dtype)}  # the dtype in which transformers loads
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
    return {name: slot.shape for name, slot in _slots(config).items()}


def open_checkpoint(directory: Path) -> dict[str, StoredTensor]:
    """Finds the tensors of a directory by name, without reading them. Headers and sizes of all files are checked.

    Raises:
      CheckpointError: If there are no weights, a shard is missing, a file is damaged, or a tensor is stored twice.
      MissingPackageError: If the weights are in PyTorch's format and torch is not installed.
    """
    if (directory / _SINGLE).is_file():
        return read_header(directory / _SINGLE)
    index = directory / _INDEX
    if not index.is_file():
        binaries = [directory / f"pytorch_model.bin{end}" for end in ("", ".index.json")]
        if not any(path.is_file() for path in binaries):
            raise CheckpointError(
                f"{directory} has no weights: expected {_SINGLE}, {_INDEX} or pytorch_model.bin in it."
            )
        from rome_jax.models import convert_torch  # only needed here

        return read_header(convert_torch.convert(directory))
    tensors: dict[str, StoredTensor] = {}
    for shard in shard_paths(index):
        for name, tensor in read_header(shard).items():
            if name in tensors:
                raise CheckpointError(
                    f"{name} is in {tensors[name].path} and in {shard}: remove the shards of other models."
                )
            tensors[name] = tensor
    return tensors


def shard_paths(index: Path) -> list[Path]:
    """Lists the files named by an index.

    Raises:
      CheckpointError: If the index does not parse, or files are missing.
    """
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is damaged: download or copy it again.") from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent} lacks {', '.join(missing)}, which its index names: download or copy the rest."
        )
    return [index.parent / name for name in names]


def _match(
    tensors: Mapping[str, StoredTensor], config: ModelConfig, directory: Path
) -> list[tuple[_Slot, StoredTensor]]:
    """Pairs every slot with its tensor, or raises an error that lists all problems."""
    slots = _slots(config)
    spec = FAMILIES[config.family]
    buffers = {buffer.format(i) for buffer in spec.buffers for i in range(config.num_layers)}
    names = {weight.path: weight.name for weight in spec.weights}
    full = {name: _with_prefix(name, spec.prefix, names["lm_head/kernel"]) for name in tensors}
    twice = [name for name, count in Counter(full.values()).items() if count > 1]
    by_name = {full[name]: tensor for name, tensor in tensors.items() if full[name] not in buffers}

    head = by_name.get(names["lm_head/kernel"])
    if head is not None and config.tie_embeddings:
        embedding = by_name.get(names["wte/embedding"])
        if embedding is not None and not _same(head, embedding):
            raise CheckpointError(
                f"{head.path} has a {head.name} that differs from the embeddings, though the config ties them: "
                'set "tie_word_embeddings": false in config.json.'
            )
        del by_name[names["lm_head/kernel"]]

    problems = []
    if missing := [name for name in slots if name not in by_name]:
        problems.append(f"missing {_listed(missing)}")
    if unexpected := [t.name for name, t in by_name.items() if name not in slots] + twice:
        problems.append(f"unexpected {_listed(unexpected)}")
    problems += [
        f"{name} has shape {tensor.shape} instead of {slots[name].shape}"
        for name, tensor in by_name.items()
        if name in slots and tensor.shape != slots[name].shape
    ]
    problems += [
        f"{name} is {tensor.dtype}, not float32, float16 or bfloat16"
        for name, tensor in by_name.items()
        if name in slots and tensor.dtype.name not in ("float32", "float16", "bfloat16")
    ]
    if problems:
        raise CheckpointError(
            f"the weights in {directory} do not fit its config.json: {'; '.join(problems)}."
        )
    return [(slot, by_name[name]) for name, slot in slots.items()]


def _with_prefix(name: str, prefix: str, head: str) -> str:
    """Adds the prefix that GPT-2's files on the hub lack and newer files have."""
    own = name.startswith((prefix, f"{head.rpartition('.')[0]}."))
    return name if own else f"{prefix}{name}"


def _same(first: StoredTensor, second: StoredTensor) -> bool:
    """Returns whether two tensors are equal, comparing some rows at a time."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    a, b = first.read(), second.read()
    return all(np.array_equal(a[i : i + 1024], b[i : i + 1024]) for i in range(0, len(a), 1024))


def _listed(names: list[str], limit: int = 40) -> str:
    """Lists names, up to a limit: in a checkpoint of another family, all names are wrong."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(sorted(names)[:limit]) + more


def _leaf_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every leaf by its path, as the linen model would create it."""
    return {
        "/".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(param_shapes(config))
    }


def _slots(config: ModelConfig) -> dict[str, _Slot]:
    """Returns the slot of every tensor of a model's checkpoint by its name."""
    shapes = _leaf_shapes(config)
    slots = {}
    for weight in FAMILIES[config.family].weights:
        if weight.path not in shapes:  # a tied head has no weights of its own
            continue
        stacked = weight.path.startswith("blocks/")
        shape = shapes[weight.path][1:] if stacked else shapes[weight.path]
        for layer in range(config.num_layers) if stacked else (None,):
            slots[weight.name.format(layer)] = _Slot(
                weight, layer, shape[::-1] if weight.transposed else shape
            )
    return slots


def _set(params: Params, path: str, leaf: jax.Array) -> None:
    """Stores a leaf under its path."""
    *parents, last = path.split("/")
    for key in parents:
        params = params.setdefault(key, {})
    params[last] = leaf
