"""From a name to a model: params, config and tokenizer together, and back to a directory."""

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
from rome_jax.models.config import PRESETS, ModelConfig, from_hf
from rome_jax.models.forward import Params
from rome_jax.models.huggingface import load_params, save_params

# Small trained models that come with the package; see rome_jax.factworld.
SHIPPED = {"factworld-gpt2": "gpt2", "factworld-gptj": "gptj"}

_TOKENIZER_FILES = (
    "tokenizer.json tokenizer_config.json vocab.json merges.txt special_tokens_map.json added_tokens.json"
).split()
_SAFETENSORS = ["model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
_BINARIES = ["pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"]


class ModelNotFoundError(ValueError):
    """No model goes by that name, or it cannot be fetched."""


class TokenizerError(ValueError):
    """A tokenizer lacks files, or cannot say which characters a token covers."""


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A model and what is needed to talk to it.

    Attributes:
      name: as it was asked for.
      config: static shapes and choices.
      params: stacked leaves; see `rome_jax.models.forward`.
      tokenizer: a fast tokenizer of `transformers`.
      source: how it was found, for artefacts: "package", "directory ..." or "hub ... @ revision".
    """

    name: str
    config: ModelConfig
    params: Params
    tokenizer: Any
    source: str

    def replace(self, **changes) -> LanguageModel:
        """The same model with some attributes changed, such as `params` after an edit."""
        return dataclasses.replace(self, **changes)

    def fingerprint(self) -> str:
        """SHA-256 of config and weights, computed at each call; see `rome_jax.models.fingerprint`."""
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
      name_or_directory: "factworld-gpt2" or "factworld-gptj", which come with the package; a local Hugging Face
        directory; or a model on the Hugging Face hub, such as "gpt2-xl" or "EleutherAI/gpt-j-6B".
      dtype: of the params, such as "bfloat16"; None keeps what is stored.
      precision: of matrix products. The default is true float32 on every device; "default" is faster on GPUs.
      revision: branch, tag or commit on the hub.
      cache_dir: of the hub's files; None means the hub's own.
      offline: look only at what is on this machine. Setting HF_HUB_OFFLINE=1 does the same.

    Returns:
      `LanguageModel`.

    Raises:
      ModelNotFoundError: an unknown name, or a model that is not here and cannot be fetched.
      CheckpointError: weights that are damaged or not those of the config.
      UnsupportedConfigError: a config that asks for something not computed here.
      TokenizerError: a tokenizer with files missing, without character offsets, or with ids that the model has not.

    Example:
      >>> load_model("gpt2-xl", dtype="bfloat16").config.num_layers  # doctest: +SKIP
      48
    """
    precision = as_precision(precision)
    dtype = as_dtype(dtype)
    directory, source = _find(str(name_or_directory), revision, cache_dir, offline)
    config = dataclasses.replace(from_hf(read_config(directory)), precision=precision)
    tokenizer = load_tokenizer(directory, config)  # first: it fails fast
    params = load_params(directory, config, dtype)
    return LanguageModel(str(name_or_directory), config, params, tokenizer, source)


def known_config(name: str) -> ModelConfig | None:
    """What can be known of a model before its weights are read or downloaded: its shape.

    Args:
      name: as for `load_model`.

    Returns:
      That of a shipped model, of a directory or of a preset; None for another name.

    Raises:
      ModelNotFoundError, CheckpointError, ValueError: If a directory holds no supported model.

    Example:
      >>> known_config("gpt2-xl").num_layers, known_config("factworld-gpt2").num_layers
      (48, 6)
    """
    if name in SHIPPED or (name and Path(name).expanduser().is_dir()):
        directory, _ = _find(name, None, None, offline=True)
        return from_hf(read_config(directory))
    return PRESETS.get(name)


def save_hf(directory: str | Path, model: LanguageModel) -> None:
    """Writes a Hugging Face directory, which `transformers` and `load_model` load with the same logits.

    Everything is written beside its place first and then moved there: an interrupted save leaves the old model whole.

    Args:
      directory: new, empty, or that of a model, which is replaced.
      model: what to save.

    Raises:
      FileExistsError: the directory holds something else.
      CheckpointError: params that are not of the model's config.

    Example:
      >>> save_hf("edited", model.replace(params=params))  # doctest: +SKIP
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
        # The config comes last: without it a new directory is no model yet.
        for file in sorted(Path(staging).iterdir(), key=lambda file: file.name == "config.json"):
            file.replace(directory / file.name)


def check_hf_directory(directory: str | Path) -> Path:
    """Returns the directory if `save_hf` may write there.

    Raises:
      FileExistsError: it holds something else than a model.
    """
    directory = Path(directory)
    if directory.exists() and not _replaceable(directory):
        raise FileExistsError(
            f"{directory} exists and is not the directory of a model: give another one, or empty it."
        )
    return directory


def load_tokenizer(directory: Path, config: ModelConfig) -> Any:
    """The fast tokenizer of a directory.

    Raises:
      TokenizerError: see `load_model`.
    """
    files = {name for name in _TOKENIZER_FILES if (directory / name).is_file()}
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files:
        # transformers would make one without a vocabulary.
        raise TokenizerError(
            f"{directory} has no tokenizer: add tokenizer.json, or vocab.json and merges.txt, from where the model "
            "comes from."
        )
    with _without_advice():
        from transformers import AutoTokenizer  # slow to import, needed here alone

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(directory), use_fast=True, local_files_only=True
        )
        ids = tokenizer.get_vocab().values()
    except Exception as error:  # whatever a damaged file makes it raise
        raise TokenizerError(
            f"the tokenizer in {directory} does not load ({type(error).__name__}: {error}): download it again."
        ) from error
    if not tokenizer.is_fast:
        raise TokenizerError(
            f"the tokenizer in {directory} is a {type(tokenizer).__name__}, which cannot say which characters a token "
            "covers: convert it to a fast one (tokenizer.json)."
        )
    if max(ids, default=0) >= config.vocab_size:
        raise TokenizerError(
            f"the tokenizer in {directory} has ids up to {max(ids)}, but the model has {config.vocab_size} "
            "embeddings: they do not belong together."
        )
    return tokenizer


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Keeps transformers from advising, on import, to install PyTorch: its models are not used here."""
    logger = logging.getLogger("transformers")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def read_config(directory: Path) -> dict[str, Any]:
    """The parsed config.json of a directory.

    Raises:
      ModelNotFoundError: there is none.
      CheckpointError: it does not parse.
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
    """The directory of a model and how it was found."""
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
    if name.startswith("factworld") or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
        raise _unknown(name, "it is neither a directory nor a possible name")
    return _from_hub(name, revision, cache_dir, offline)


def _from_hub(
    name: str, revision: str | None, cache_dir: str | Path | None, offline: bool
) -> tuple[Path, str]:
    """Downloads what is needed of a model, or finds it in the hub's cache."""
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
        raise _unknown(name, "the hub wants you to accept its terms and to log in first") from error
    except errors.RevisionNotFoundError as error:
        raise _unknown(name, f"the hub has no revision {revision!r} of it") from error
    except errors.RepositoryNotFoundError as error:
        raise _unknown(name, "the hub has no such model") from error
    except (OSError, errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise _unreachable(
            name, "is not on this machine, and the Hugging Face hub cannot be reached"
        ) from error
    except Exception as error:
        # Clients differ in how they say that a connection failed, and not all of it is an OSError.
        if "timeout" in type(error).__name__.lower() or "connect" in type(error).__name__.lower():
            raise _unreachable(
                name, "is not on this machine, and the hub cannot be reached"
            ) from error
        raise
    if (
        not has_weights(directory, (*_SAFETENSORS, *_BINARIES))
        or not (directory / "config.json").is_file()
    ):
        raise _unreachable(name, "is only in part on this machine")
    return directory, f"hub {name} @ {directory.name}"


def _unreachable(name: str, why: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"model {name!r} {why}: run `hf download {name} --local-dir DIR` where there is a network and pass DIR, or use "
        f"a model that comes with the package: {', '.join(SHIPPED)}."
    )


def _unknown(name: str, why: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"unknown model {name!r} ({why}): give one of {', '.join(SHIPPED)}, the directory of a Hugging Face model, or "
        "a name on the hub such as gpt2-xl or EleutherAI/gpt-j-6B."
    )


def _replaceable(directory: Path) -> bool:
    if not directory.is_dir():
        return False
    if not any(directory.iterdir()):
        return True
    try:
        return "model_type" in read_config(directory)
    except ValueError:
        return False


def as_precision(precision: jax.lax.Precision | str) -> jax.lax.Precision:
    """The precision that an argument means.

    Raises:
      ValueError: none.
    """
    try:
        return jax.lax.Precision(precision)
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"precision={precision!r}: give a jax.lax.Precision, or one of 'highest', 'high', 'default'."
        ) from None


def as_dtype(dtype: Any) -> jnp.dtype | None:
    """The dtype of weights that an argument means; None for None.

    Raises:
      ValueError: none that weights can have.
    """
    if dtype is None:
        return None
    try:
        known = jnp.dtype(dtype)
    except TypeError:
        known = None
    if known is None or known.name not in ("float32", "bfloat16", "float16"):
        raise ValueError(
            f"dtype={dtype!r}: give float32, bfloat16 or float16, or None to keep what is stored."
        )
    return known
