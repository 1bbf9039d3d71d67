"""Checksums of a model's config and weights, with which artifacts name the model they came from."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from typing import Any

import jax
import ml_dtypes
import numpy as np

from rome_jax.models.config import ModelConfig, Rotary, RotaryPairs
from rome_jax.models.families import family_config
from rome_jax.models.forward import Params

_CHUNK = 1 << 26  # bytes copied to the host at a time
_STRIDE = 64  # of the rows that `base_fingerprint` reads
_BASE = "base1:"


def fingerprint(params: Params, config: ModelConfig) -> str:
    """Computes the SHA-256 of the config and of every leaf's path, dtype, shape and bytes.

    The precision of matrix products is excluded: it belongs to a run, not to the model. Nothing is cached: each call
    reads all weights, some rows at a time, which takes a few seconds for GPT-2 XL.

    Args:
      params: Params of the whole model; their devices and shardings make no difference.
      config: The model's config.

    Returns:
      64 hexadecimal digits.

    Example:
      >>> fingerprint(model.params, model.config)[:12]
      'a6e05b724b3d'
    """
    sha = hashlib.sha256(_describe(config).encode())
    for path, leaf in sorted(
        ("/".join(key.key for key in path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ):
        sha.update(f"\n{path} {leaf.dtype} {_described_shape(path, leaf)}\n".encode())
        rows = max(1, _CHUNK * leaf.shape[0] // max(1, leaf.nbytes))
        for start in range(0, leaf.shape[0], rows):
            part = np.ascontiguousarray(leaf[start : start + rows])
            sha.update(part.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def _describe(config: ModelConfig) -> str:
    """Describes the config as text: family, sizes, and the options that differ from those of the family.

    Fields have their first names, and a field is left out where it was once a default, so old fingerprints stay valid.
    """
    sizes = [field.name for field in dataclasses.fields(config) if not field.kw_only]
    values = {name: getattr(config, name) for name in sizes} | {"family": config.family.value}
    numbers = (values[name] for name in sizes if name != "family")
    usual = family_config(config.family, *numbers, head_dim=config.head_dim)
    first_names = {"norm_epsilon": "layer_norm_epsilon"}
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), getattr(usual, field.name)
        if field.name in ("norm_epsilon", "tie_embeddings", "activation"):
            default = field.default
        if field.name == "head_dim":
            default = config.width // config.num_heads
        if (
            field.kw_only
            and field.name not in ("precision", "upcast_attention")
            and value != default
        ):
            values[first_names.get(field.name, field.name)] = _plain(value)
    rotary = config.rotary
    if rotary and rotary == Rotary(rotary.dim, RotaryPairs.INTERLEAVED):
        del values["rotary"]
        values["rotary_dim"] = rotary.dim
    return json.dumps(values, sort_keys=True)


def _plain(value: Any) -> Any:
    """Replaces enums and records by what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    return value.value if isinstance(value, enum.Enum) else value


def base_fingerprint(params: Params, config: ModelConfig) -> str:
    """Computes a checksum that a model, its edits, and its copy in bfloat16 share.

    It covers the config, and a sample of every leaf that edits do not change: all but those of the MLPs. Of each
    matrix it reads one row in 64, rounded to bfloat16, so it is fast enough to be computed before each edit.

    Args:
      params: Params of the whole model.
      config: The model's config.

    Returns:
      "base1:" and 64 hexadecimal digits. The number is raised if the computation changes.

    Example:
      >>> base_fingerprint(model.params, model.config)[:12]
      'base1:239cbd'
    """
    sha = hashlib.sha256(_describe(config).encode())
    for path, leaf in sorted(
        ("/".join(key.key for key in path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ):
        if "/mlp/" in path:
            continue
        sha.update(f"\n{path} {_described_shape(path, leaf)}\n".encode())
        if path.endswith(("kernel", "embedding")):
            # A device would compile a program for each shape, which only pays off for large leaves.
            leaf = leaf if leaf.nbytes > _CHUNK else np.asarray(leaf)
            leaf = leaf[:, ::_STRIDE] if path.startswith("blocks/") else leaf[..., ::_STRIDE, :]
        part = np.asarray(leaf)
        rounded = np.ascontiguousarray(part.astype(ml_dtypes.bfloat16))
        sha.update(rounded.reshape(-1).view(np.uint8).data)
    return _BASE + sha.hexdigest()


def _described_shape(path: str, leaf: jax.Array) -> tuple[int, ...]:
    """Returns the shape that checksums record for a leaf: fused projections once had one axis for all three parts."""
    if path.startswith("blocks/attn/qkv/"):
        return (*leaf.shape[:-2], leaf.shape[-2] * leaf.shape[-1])
    return leaf.shape


def is_base(text: str) -> bool:
    """Returns whether a text is a base fingerprint that this version can compare."""
    return text.startswith(_BASE)
