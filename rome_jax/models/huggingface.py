"""Weights between Hugging Face directories and stacked params: a table for each family, read both ways.

Loading is strict: every tensor of the model is there in the right shape and nothing unknown is, or nothing is loaded.
It writes each tensor straight into its place in the stack: the process holds the weights once and one tensor more.

Axes: L layers. A checkpoint has one tensor for each layer; params have one leaf [L, ...] for all of them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.files.safetensors_io import CheckpointError, StoredTensor, read_header, write
from rome_jax.models.config import Family, ModelConfig, to_hf
from rome_jax.models.forward import Params, param_shapes
from rome_jax.models.interventions import Leaf

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SMALL = 1 << 24  # bytes of a leaf up to which it is put together, or taken apart, on the host


@dataclasses.dataclass(frozen=True)
class Weight:
    """One row of a family's table.

    Attributes:
      path: of our leaf, joined by "/"; leaves below `blocks` have a leading axis [L].
      name: of the checkpoint's tensor; `{}` stands for the layer.
      transposed: whether the checkpoint stores [out, in]. Our kernels are [in, out].
    """

    path: str
    name: str
    transposed: bool = False


def _norms(*names: str) -> tuple[Weight, ...]:
    return tuple(
        Weight(f"{'' if name == 'ln_f' else 'blocks/'}{name}/{ours}", f"{prefix}{name}.{theirs}")
        for name in names
        for prefix in ("transformer." if name == "ln_f" else "transformer.h.{}.",)
        for ours, theirs in (("scale", "weight"), ("bias", "bias"))
    )


WEIGHTS: dict[Family, tuple[Weight, ...]] = {
    Family.GPT2: (  # Conv1D: [in, out] already
        Weight("wte/embedding", "transformer.wte.weight"),
        Weight("wpe/embedding", "transformer.wpe.weight"),
        *_norms("ln_1", "ln_2", "ln_f"),
        Weight("blocks/attn/qkv/kernel", "transformer.h.{}.attn.c_attn.weight"),
        Weight("blocks/attn/qkv/bias", "transformer.h.{}.attn.c_attn.bias"),
        Weight("blocks/attn/out/kernel", "transformer.h.{}.attn.c_proj.weight"),
        Weight("blocks/attn/out/bias", "transformer.h.{}.attn.c_proj.bias"),
        Weight("blocks/mlp/up/kernel", "transformer.h.{}.mlp.c_fc.weight"),
        Weight("blocks/mlp/up/bias", "transformer.h.{}.mlp.c_fc.bias"),
        Weight("blocks/mlp/down/kernel", "transformer.h.{}.mlp.c_proj.weight"),
        Weight("blocks/mlp/down/bias", "transformer.h.{}.mlp.c_proj.bias"),
        Weight("lm_head/kernel", "lm_head.weight", transposed=True),  # if untied
    ),
    Family.GPTJ: (  # nn.Linear: [out, in]
        Weight("wte/embedding", "transformer.wte.weight"),
        *_norms("ln_1", "ln_f"),
        Weight("blocks/attn/query/kernel", "transformer.h.{}.attn.q_proj.weight", transposed=True),
        Weight("blocks/attn/key/kernel", "transformer.h.{}.attn.k_proj.weight", transposed=True),
        Weight("blocks/attn/value/kernel", "transformer.h.{}.attn.v_proj.weight", transposed=True),
        Weight("blocks/attn/out/kernel", "transformer.h.{}.attn.out_proj.weight", transposed=True),
        Weight("blocks/mlp/up/kernel", "transformer.h.{}.mlp.fc_in.weight", transposed=True),
        Weight("blocks/mlp/up/bias", "transformer.h.{}.mlp.fc_in.bias"),
        Weight("blocks/mlp/down/kernel", "transformer.h.{}.mlp.fc_out.weight", transposed=True),
        Weight("blocks/mlp/down/bias", "transformer.h.{}.mlp.fc_out.bias"),
        Weight("lm_head/kernel", "lm_head.weight", transposed=True),  # if untied
        Weight("lm_head/bias", "lm_head.bias"),
    ),
}
# Causal masks that old versions of transformers saved with the weights.
_BUFFERS = ("transformer.h.{}.attn.bias", "transformer.h.{}.attn.masked_bias")


@dataclasses.dataclass(frozen=True)
class _Slot:
    """Where one tensor of the checkpoint goes: layer `layer` of a leaf, or all of it if None."""

    weight: Weight
    layer: int | None
    shape: tuple[int, ...]  # in the checkpoint


def load_params(directory: str | Path, config: ModelConfig, dtype: Any = None) -> Params:
    """Reads the weights of a Hugging Face directory.

    Args:
      directory: with model.safetensors, or shards and model.safetensors.index.json, or pytorch_model.bin files,
        which the `convert` extra turns into safetensors once. Names may lack the prefix `transformer.`.
      config: of the model, from its config.json.
      dtype: of the params; None keeps what is stored, float16 and bfloat16 included.

    Returns:
      Params with stacked leaves on the default device.

    Raises:
      CheckpointError: a file is absent or damaged; tensors are missing, unexpected (both are listed) or of another
        shape; a dtype that params cannot have.

    Example:
      >>> params = load_params("gpt2-xl", config, dtype=jnp.bfloat16)  # doctest: +SKIP
      >>> params["blocks"]["mlp"]["down"]["kernel"].shape  # doctest: +SKIP
      (48, 6400, 1600)
    """
    stored = _match(open_checkpoint(Path(directory)), config, Path(directory))
    leaves: dict[Weight, list[tuple[_Slot, StoredTensor]]] = {}
    for slot, tensor in stored:
        leaves.setdefault(slot.weight, []).append((slot, tensor))
    shapes = _leaf_shapes(config)
    # Largest tensor first: a source may be copied while it moves, which costs least before the rest is there.
    order = sorted(leaves, key=lambda weight: -math.prod(leaves[weight][0][0].shape))
    params: Params = {}
    for weight in order:
        kept = jnp.result_type(*{tensor.dtype for _, tensor in leaves[weight]})
        shape, target = shapes[weight.path], jnp.dtype(kept if dtype is None else dtype)
        if math.prod(shape) * target.itemsize <= _SMALL:
            leaf = jnp.asarray(_assemble(leaves[weight], shape, target))
        else:
            leaf = jnp.zeros(shape, target)
            for slot, tensor in leaves[weight]:
                leaf = _put(leaf, tensor.read(), slot.layer, transposed=weight.transposed)
                leaf.block_until_ready()  # else copies of the sources queue up
        _set(params, weight.path, leaf)
    return params


def _assemble(
    tensors: list[tuple[_Slot, StoredTensor]], shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    """A small leaf put together on the host: moving it twice costs less than compiling a program for it."""
    leaf = np.empty(shape, dtype)
    for slot, tensor in tensors:
        source = tensor.read()
        leaf[... if slot.layer is None else slot.layer] = (
            source.T if slot.weight.transposed else source
        )
    return leaf


@functools.partial(jax.jit, donate_argnums=0, static_argnames="transposed")
def _put(
    leaf: jax.Array, tensor: jax.Array, layer: jax.Array | None, *, transposed: bool
) -> jax.Array:
    """Writes one tensor into its donated leaf, in place."""
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

    Each file appears whole or not at all. One layer at a time is copied to the host.

    Args:
      directory: created if need be.
      params: of the whole model.
      config: of the model.
      attributes: more entries of config.json, such as `eos_token_id`.

    Raises:
      CheckpointError: params that are not of this config.
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
            yield tensor.T if slot.weight.transposed else tensor

    directory.mkdir(parents=True, exist_ok=True)
    write(directory / _SINGLE, specs, tensors(), {"format": "pt"})
    stored = {"dtype": str(leaves["wte/embedding"].dtype)}  # transformers loads in it
    content = json.dumps(to_hf(config) | stored | dict(attributes or {}), indent=2, sort_keys=True)
    temporary = directory / ".config.json.tmp"
    temporary.write_text(content + "\n")
    temporary.replace(directory / "config.json")


def layer_name(config: ModelConfig, leaf: Leaf, layer: int) -> str:
    """The name that Hugging Face gives the module of a projection; files of statistics are called after it.

    Raises:
      ValueError: a layer or a leaf that the model does not have.

    Example:
      >>> from rome_jax.models.config import PRESETS
      >>> layer_name(PRESETS["gpt2-xl"], Leaf.MLP_DOWN, 17)
      'transformer.h.17.mlp.c_proj'
    """
    path = "/".join(("blocks", *leaf.value, "kernel"))
    for weight in WEIGHTS[config.family]:
        if weight.path == path:
            return weight.name.removesuffix(".weight").format(config.check_layer(layer))
    raise ValueError(f"{config.family.value} models have no {leaf.name}.")


def checkpoint_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The checkpoint of a model: name -> shape of every tensor, as Hugging Face stores it."""
    return {name: slot.shape for name, slot in _slots(config).items()}


def open_checkpoint(directory: Path) -> dict[str, StoredTensor]:
    """The tensors of a directory by name, not read yet. Headers and sizes of all files are checked.

    Raises:
      CheckpointError: no weights, a shard that is absent, a damaged file, a tensor stored twice.
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
        from rome_jax.models import convert_torch  # nothing else needs it

        return read_header(convert_torch.convert(directory))
    tensors: dict[str, StoredTensor] = {}
    for shard in shard_paths(index):
        for name, tensor in read_header(shard).items():
            if name in tensors:
                raise CheckpointError(
                    f"{name} is in {tensors[name].path} and in {shard}: remove the shards that are not of this model."
                )
            tensors[name] = tensor
    return tensors


def shard_paths(index: Path) -> list[Path]:
    """The files that an index names.

    Raises:
      CheckpointError: an index that does not parse, or files that are absent.
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
    """Pairs every slot with its tensor, or raises with everything that is wrong."""
    slots = _slots(config)
    buffers = {buffer.format(i) for buffer in _BUFFERS for i in range(config.num_layers)}
    full = {name: _with_prefix(name) for name in tensors}
    twice = [name for name, count in Counter(full.values()).items() if count > 1]
    by_name = {full[name]: tensor for name, tensor in tensors.items() if full[name] not in buffers}

    head = by_name.get("lm_head.weight")
    if head is not None and config.tie_embeddings:
        embedding = by_name.get("transformer.wte.weight")
        if embedding is not None and not _same(head, embedding):
            raise CheckpointError(
                f"{head.path} has an lm_head.weight that differs from the embeddings, though the config ties them: "
                'set "tie_word_embeddings": false in config.json.'
            )
        del by_name["lm_head.weight"]

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
            f"the weights in {directory} are not those of its config.json: {'; '.join(problems)}."
        )
    return [(slot, by_name[name]) for name, slot in slots.items()]


def _with_prefix(name: str) -> str:
    """GPT-2's files on the hub lack the prefix that today's have."""
    return name if re.match(r"transformer\.|lm_head\.", name) else f"transformer.{name}"


def _same(first: StoredTensor, second: StoredTensor) -> bool:
    """Whether two tensors are equal, compared some rows at a time."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    a, b = first.read(), second.read()
    return all(np.array_equal(a[i : i + 1024], b[i : i + 1024]) for i in range(0, len(a), 1024))


def _listed(names: list[str], limit: int = 40) -> str:
    """All names, within reason: a checkpoint of another family has them all wrong."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(sorted(names)[:limit]) + more


def _leaf_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """path -> shape of every leaf, as the linen model would make it."""
    return {
        "/".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(param_shapes(config))
    }


def _slots(config: ModelConfig) -> dict[str, _Slot]:
    """The checkpoint of a model: name -> slot of every tensor."""
    shapes = _leaf_shapes(config)
    slots = {}
    for weight in WEIGHTS[config.family]:
        if weight.path not in shapes:  # the head of a model that ties it
            continue
        stacked = weight.path.startswith("blocks/")
        shape = shapes[weight.path][1:] if stacked else shapes[weight.path]
        for layer in range(config.num_layers) if stacked else (None,):
            slots[weight.name.format(layer)] = _Slot(
                weight, layer, shape[::-1] if weight.transposed else shape
            )
    return slots


def _set(params: Params, path: str, leaf: jax.Array) -> None:
    *parents, last = path.split("/")
    for key in parents:
        params = params.setdefault(key, {})
    params[last] = leaf
