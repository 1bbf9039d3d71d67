"""Models by name: loading params, config and tokenizer together, and saving them to a directory."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.resources
import json
import logging
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from rome_jax.files.safetensors_io import CheckpointError
from rome_jax.models import fingerprint as fingerprints
from rome_jax.models.config import ModelConfig
from rome_jax.models.families import PRESETS, from_hf
from rome_jax.models.forward import Params
from rome_jax.models.huggingface import load_params, save_params

# Small trained models that come with the package, and their folders; see rome_jax.factworld.
SHIPPED = {"factworld-gpt2": "gpt2", "factworld-gptj": "gptj"}

_TOKENIZER_FILES = (
    "tokenizer.json tokenizer_config.json vocab.json merges.txt special_tokens_map.json added_tokens.json"
).split()
_SAFETENSORS = ["model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
_BINARIES = ["pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"]


class ModelNotFoundError(ValueError):
    """No model has this name, or it cannot be downloaded."""


class TokenizerError(ValueError):
    """A tokenizer lacks files, does not fit the model, or cannot report which characters a token covers."""


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A model together with its tokenizer.

    Attributes:
      name: The name it was loaded by.
      config: Shapes and other static choices.
      params: Weights with stacked layers; see `rome_jax.models.forward`.
      tokenizer: A fast tokenizer of `transformers`.
      source: Where it was found, for artifacts: "package", "directory ..." or "hub ... @ revision".

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
    precision: jax.lax.Precision | str = jax.lax.Precision.HIGHEST,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
) -> LanguageModel:
    """Loads a model with its tokenizer.

    Args:
      name_or_directory: "factworld-gpt2" or "factworld-gptj", which come with the package; a local directory in the
        Hugging Face format; or a model on the Hugging Face hub, such as "gpt2-xl" or "EleutherAI/gpt-j-6B".
      dtype: Type of the params, such as "bfloat16"; None keeps the stored type.
      precision: Precision of matrix products. The default, "highest", is true float32 on every device; "default" is
        faster on GPUs and TPUs.
      revision: Branch, tag or commit on the hub; None means the main branch.
      cache_dir: Folder for files from the hub; None means the hub's own cache.
      offline: Whether to use only files that are already on this machine, as with HF_HUB_OFFLINE=1.

    Returns:
      `LanguageModel`.

    Raises:
      ModelNotFoundError: If the name is unknown, or the model is not on this machine and cannot be downloaded.
      CheckpointError: If the weights are damaged or do not fit the config.
      UnsupportedConfigError: If the config asks for something that is not implemented here.
      TokenizerError: If the tokenizer lacks files or character offsets, or has ids that the model does not have.
      ValueError: If `dtype` or `precision` is unknown.

    Example:
      >>> rome_jax.load_model("factworld-gptj", dtype="bfloat16").config.num_layers
      6
    """
    precision = as_precision(precision)
    dtype = as_dtype(dtype)
    directory, source = _find(str(name_or_directory), revision, cache_dir, offline)
    config = dataclasses.replace(from_hf(read_config(directory)), precision=precision)
    tokenizer = load_tokenizer(directory, config)  # before the weights, because it fails fast
    params = load_params(directory, config, dtype)
    return LanguageModel(str(name_or_directory), config, params, tokenizer, source)


def known_config(name: str) -> ModelConfig | None:
    """Finds the config of a model without reading or downloading its weights.

    Args:
      name: As in `load_model`.

    Returns:
      The config of a shipped model, of a local directory or of a preset; None for another name.

    Raises:
      ModelNotFoundError: If a directory has no config.json.
      CheckpointError: If its config.json is damaged.
      UnsupportedConfigError: If its config.json describes a model that is not supported.

    Example:
      >>> known_config("gpt2-xl").num_layers, known_config("factworld-gpt2").num_layers
      (48, 6)
    """
    if name in SHIPPED or (name and Path(name).expanduser().is_dir()):
        directory, _ = _find(name, None, None, offline=True)
        return from_hf(read_config(directory))
    return PRESETS.get(name)


def save_hf(directory: str | Path, model: LanguageModel) -> None:
    """Writes a Hugging Face directory that `transformers` and `load_model` load with the same logits.

    All files are written to a temporary folder first and then moved into place, so an interrupted save leaves the old
    model intact.

    Args:
      directory: A new or empty directory, or the directory of a model, which is replaced.
      model: The model to save.

    Raises:
      FileExistsError: If the directory holds something other than a model.
      CheckpointError: If the params do not fit the model's config.

    Example:
      >>> rome_jax.save_hf("edited", model)
      >>> rome_jax.load_model("edited").fingerprint() == model.fingerprint()
      True
    """
    directory = check_hf_directory(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokens = {
        name: getattr(model.tokenizer, name)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    with tempfile.TemporaryDirectory(dir=directory, prefix=".saving-") as staging:
        known = {name: token for name, token in tokens.items() if token is not None}
        save_params(staging, model.params, model.config, known)
        model.tokenizer.save_pretrained(staging)
        # The config is moved last: a new directory is not a model before it has one.
        for file in sorted(Path(staging).iterdir(), key=lambda file: file.name == "config.json"):
            file.replace(directory / file.name)


def check_hf_directory(directory: str | Path) -> Path:
    """Checks that `save_hf` may write to a directory, and returns it as a path.

    Raises:
      FileExistsError: If it holds something other than a model.
    """
    directory = Path(directory)
    if directory.exists() and not _replaceable(directory):
        raise FileExistsError(
            f"{directory} exists and is not the directory of a model: give another directory, or empty it."
        )
    return directory


def load_tokenizer(directory: Path, config: ModelConfig) -> Any:
    """Loads the fast tokenizer of a directory.

    Args:
      directory: A directory in the Hugging Face format.
      config: The config of the model that the tokenizer belongs to.

    Raises:
      TokenizerError: If files are missing or damaged, the tokenizer has no character offsets, or it has ids that the
        model does not have.
    """
    files = {name for name in _TOKENIZER_FILES if (directory / name).is_file()}
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files:
        # transformers would silently build a tokenizer without a vocabulary.
        raise TokenizerError(
            f"{directory} has no tokenizer: add the model's tokenizer.json, or its vocab.json and merges.txt."
        )
    with _without_advice():
        from transformers import AutoTokenizer  # slow to import, and needed only here

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(directory), use_fast=True, local_files_only=True
        )
        ids = tokenizer.get_vocab().values()
    except Exception as error:  # a damaged file can raise anything
        raise TokenizerError(
            f"the tokenizer in {directory} does not load ({type(error).__name__}: {error}): download it again."
        ) from error
    if not tokenizer.is_fast:
        raise TokenizerError(
            f"the tokenizer in {directory} is a {type(tokenizer).__name__}, which does not report the characters of a "
            "token: convert it to a fast one (tokenizer.json)."
        )
    if max(ids, default=0) >= config.vocab_size:
        raise TokenizerError(
            f"the tokenizer in {directory} has ids up to {max(ids)}, but the model has {config.vocab_size} "
            "embeddings: use the tokenizer of this model."
        )
    return tokenizer


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Silences the advice of transformers, on import, to install PyTorch, whose models are not used here."""
    logger = logging.getLogger("transformers")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def read_config(directory: Path) -> dict[str, Any]:
    """Reads the config.json of a directory.

    Raises:
      ModelNotFoundError: If there is no config.json.
      CheckpointError: If it is not a JSON object.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ModelNotFoundError(
            f"{directory} has no config.json: give the directory of a Hugging Face model."
        )
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not valid JSON ({error}): download or copy it again."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object: download or copy it again.")
    return content


def _find(
    name: str, revision: str | None, cache_dir: str | Path | None, offline: bool
) -> tuple[Path, str]:
    """Finds the directory of a model, and describes where it was found."""
    if name in SHIPPED:
        assets = importlib.resources.files("rome_jax") / "factworld" / "assets" / SHIPPED[name]
        if not assets.is_dir():
            raise ModelNotFoundError(
                f"{name} is not in this installation: reinstall rome_jax, or train it with "
                f"`python -m eval.train_factworld --family={SHIPPED[name]} --output_dir=DIR` and load DIR."
            )
        return Path(str(assets)), "package"
    local = Path(name).expanduser()
    if name and local.is_dir():
        return local, f"directory {local.resolve()}"
    check_hub_name(name)
    return _from_hub(name, revision, cache_dir, offline)


def _from_hub(
    name: str, revision: str | None, cache_dir: str | Path | None, offline: bool
) -> tuple[Path, str]:
    """Downloads the files of a model that are needed, or finds them in the hub's cache."""
    import huggingface_hub  # slow to import
    from huggingface_hub import errors

    def fetch(patterns: Sequence[str]) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                cache_dir=cache_dir,
                allow_patterns=["config.json", *_TOKENIZER_FILES, *patterns],
                local_files_only=offline,
            )
        )

    def has_weights(directory: Path, patterns: Sequence[str]) -> bool:
        return any(any(directory.glob(pattern)) for pattern in patterns)

    try:
        directory = fetch(_SAFETENSORS)
        if not has_weights(directory, _SAFETENSORS):
            directory = fetch(_BINARIES)
    except errors.GatedRepoError as error:
        raise unknown_model(
            name, "the hub requires that you accept its terms and log in first"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise unknown_model(name, f"the hub has no revision {revision!r} of it") from error
    except errors.RepositoryNotFoundError as error:
        raise unknown_model(name, "the hub has no such model") from error
    except (OSError, errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise _unreachable(
            name, "is not on this machine, and the Hugging Face hub cannot be reached"
        ) from error
    except Exception as error:
        # HTTP clients differ in how they report a failed connection, and not every such error is an OSError.
        if "timeout" in type(error).__name__.lower() or "connect" in type(error).__name__.lower():
            raise _unreachable(
                name, "is not on this machine, and the hub cannot be reached"
            ) from error
        raise
    if (
        not has_weights(directory, (*_SAFETENSORS, *_BINARIES))
        or not (directory / "config.json").is_file()
    ):
        raise _unreachable(name, "is only partly on this machine")
    return directory, f"hub {name} @ {directory.name}"


def check_hub_name(name: str) -> str:
    """Checks that a model on the hub can have this name, and returns it.

    Raises:
      ModelNotFoundError: If the name is not possible on the hub, or looks like a misspelled shipped model.

    Example:
      >>> check_hub_name("EleutherAI/gpt-j-6B")
      'EleutherAI/gpt-j-6B'
    """
    if name.startswith("factworld") or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
        raise unknown_model(name, "it is neither a directory nor a possible name")
    return name


def unknown_model(name: str, why: str, *, only_shipped: bool = False) -> ModelNotFoundError:
    """Builds the error for a name that is not the name of a model.

    Args:
      name: The name that was given.
      why: Why there is no such model, as a clause.
      only_shipped: Whether only the models that come with the package are possible here.

    Returns:
      The error, to be raised by the caller.

    Example:
      >>> print(unknown_model("gpt5", "it does not come with the package", only_shipped=True))
      unknown model 'gpt5' (it does not come with the package): give one of factworld-gpt2, factworld-gptj.
    """
    names = f"one of {', '.join(SHIPPED)}"
    if not only_shipped:
        names += ", the directory of a Hugging Face model, or a name on the hub such as gpt2-xl or EleutherAI/gpt-j-6B"
    return ModelNotFoundError(f"unknown model {name!r} ({why}): give {names}.")


def _unreachable(name: str, why: str) -> ModelNotFoundError:
    """Builds the error for a model that exists but cannot be downloaded from here."""
    return ModelNotFoundError(
        f"model {name!r} {why}: run `hf download {name} --local-dir DIR` on a machine with a network and pass DIR, or "
        f"use a model that comes with the package: {', '.join(SHIPPED)}."
    )


def _replaceable(directory: Path) -> bool:
    """Returns whether a directory is empty or holds a model."""
    if not directory.is_dir():
        return False
    if not any(directory.iterdir()):
        return True
    try:
        return "model_type" in read_config(directory)
    except ValueError:
        return False


def as_precision(precision: jax.lax.Precision | str) -> jax.lax.Precision:
    """Converts an argument to a precision of matrix products.

    Raises:
      ValueError: If there is no such precision.

    Example:
      >>> as_precision("highest").name
      'HIGHEST'
    """
    try:
        return jax.lax.Precision(precision)
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"precision={precision!r}: give a jax.lax.Precision, or one of 'highest', 'high', 'default'."
        ) from None


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
    except TypeError:
        known = None
    if known is None or known.name not in ("float32", "bfloat16", "float16"):
        raise ValueError(
            f"dtype={dtype!r}: give float32, bfloat16 or float16, or None to keep the stored type."
        )
    return known
