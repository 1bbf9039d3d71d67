"""Checksums of a model's config and weights, with which artifacts name the model they came from."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json

import jax
import ml_dtypes
import numpy as np

from rome_jax.models.config import ModelConfig
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
        sha.update(f"\n{path} {leaf.dtype} {leaf.shape}\n".encode())
        rows = max(1, _CHUNK * leaf.shape[0] // max(1, leaf.nbytes))
        for start in range(0, leaf.shape[0], rows):
            part = np.ascontiguousarray(leaf[start : start + rows])
            sha.update(part.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def _describe(config: ModelConfig) -> str:
    """Describes the config as text, without fields at their defaults: a new field then changes no old fingerprint."""
    values = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in ("precision", "upcast_attention")
        and getattr(config, field.name) != field.default
    }
    values = {k: v.value if isinstance(v, enum.Enum) else v for k, v in values.items()}
    return json.dumps(values, sort_keys=True)


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
        sha.update(f"\n{path} {leaf.shape}\n".encode())
        if path.endswith(("kernel", "embedding")):
            # A device would compile a program for each shape, which only pays off for large leaves.
            leaf = leaf if leaf.nbytes > _CHUNK else np.asarray(leaf)
            leaf = leaf[..., ::_STRIDE, :]
        part = np.asarray(leaf)
        rounded = np.ascontiguousarray(part.astype(ml_dtypes.bfloat16))
        sha.update(rounded.reshape(-1).view(np.uint8).data)
    return _BASE + sha.hexdigest()


def is_base(text: str) -> bool:
    """Returns whether a text is a base fingerprint that this version can compare."""
    return text.startswith(_BASE)
