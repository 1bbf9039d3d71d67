"""One number for a model's weights and shape, so that artefacts say which model they came from."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json

import jax
import numpy as np

from rome_jax.models.config import ModelConfig
from rome_jax.models.forward import Params

_CHUNK = 1 << 26  # bytes on the host at a time


def fingerprint(params: Params, config: ModelConfig) -> str:
    """SHA-256 over the config and every leaf's path, dtype, shape and bytes.

    The precision of matrix products is left out: it is a choice of the run, not of the model. Nothing is cached: each
    call reads all of the weights, some rows at a time (GPT-2 XL: a few seconds).

    Args:
      params: of the whole model; where they lie and how they are sharded makes no difference.
      config: of the model.

    Returns:
      64 hexadecimal digits.

    Example:
      >>> fingerprint(model.params, model.config)[:12]  # doctest: +SKIP
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
            sha.update(part.reshape(-1).view(np.uint8))
    return sha.hexdigest()


def _describe(config: ModelConfig) -> str:
    """The config as text. Fields at their default are left out, so that a later field changes no old fingerprint."""
    values = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name != "precision" and getattr(config, field.name) != field.default
    }
    values = {k: v.value if isinstance(v, enum.Enum) else v for k, v in values.items()}
    return json.dumps(values, sort_keys=True)
