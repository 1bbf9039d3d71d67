"""Places of models: the package, local directories, and the Hugging Face hub."""

from __future__ import annotations

import importlib.resources
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rome_jax.files.checked import shown
from rome_jax.files.json_files import read_object
from rome_jax.files.safetensors_io import CheckpointError
from rome_jax.models.config import ModelConfig, from_hf

# Small trained models that come with the package, and their folders; see rome_jax.factworld.
SHIPPED = {"factworld-gpt2": "gpt2", "factworld-gptj": "gptj"}

TOKENIZER_FILES = (
    "tokenizer.json tokenizer_config.json vocab.json merges.txt special_tokens_map.json added_tokens.json"
).split()
_SAFETENSORS = ["model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
_BINARIES = ["pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"]
_LONGEST_HUB_NAME = 96


class ModelNotFoundError(ValueError):
    """No model has this name, or it cannot be downloaded."""


def has_config(directory: Path) -> bool:
    """Returns whether a directory has a config.json."""
    return (directory / "config.json").is_file()


def read_config(directory: Path) -> dict[str, Any]:
    """Reads the config.json of a directory.

    Raises:
      ModelNotFoundError: If there is no config.json.
      CheckpointError: If it is not a JSON object.
    """
    if (directory / "adapter_config.json").is_file():
        raise ModelNotFoundError(
            f"{directory} is an adapter of PEFT (LoRA), which is not a model of its own: merge it into its base model "
            "(peft's merge_and_unload and save_pretrained) and give the directory of the result."
        )
    if not has_config(directory):
        raise ModelNotFoundError(
            f"{directory} has no config.json: give the directory of a Hugging Face model."
        )
    return read_object(directory / "config.json", error=CheckpointError)


def read_model_config(directory: Path) -> ModelConfig:
    """Reads the config of the model in a directory.

    Raises:
      ModelNotFoundError, CheckpointError: As in `read_config`.
      UnsupportedConfigError: If it describes a model that is not supported; the message names the file.
    """
    return from_hf(read_config(directory), str(directory / "config.json"))


def find(
    name: str, revision: str | None, cache_dir: str | Path | None, offline: bool
) -> tuple[Path, str]:
    """Finds the directory of a model, downloading it if necessary, and describes where it was found.

    Args:
      name: Name of a shipped model, a directory, or a name on the hub.
      revision, cache_dir, offline: As in `rome_jax.load_model`.

    Returns:
      The directory, and "package", "directory ..." or "hub ... @ revision".

    Raises:
      ModelNotFoundError: If the name is unknown, or the model is not on this machine and cannot be downloaded.
    """
    if name in SHIPPED:
        assets = importlib.resources.files("rome_jax") / "factworld" / "assets" / SHIPPED[name]
        if not assets.is_dir():
            raise ModelNotFoundError(
                f"{name} is not in this installation: reinstall rome_jax, or train it with "
                f"`python -m eval.train_factworld --family={SHIPPED[name]} --output_dir=DIR` and load DIR."
            )
        return Path(str(assets)), "package"
    local = Path(os.path.expanduser(name))
    if name and os.path.isdir(local):
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
                allow_patterns=["config.json", *TOKENIZER_FILES, *patterns],
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
      ModelNotFoundError: If the name is not possible on the hub, is that of a file, or looks like a misspelled shipped
        model.

    Example:
      >>> check_hub_name("EleutherAI/gpt-j-6B")
      'EleutherAI/gpt-j-6B'
    """
    if os.path.isfile(os.path.expanduser(name)):
        raise unknown_model(name, "it is a file, and a model is a directory")
    part = r"\w(?:[\w.-]*\w)?"
    possible = re.fullmatch(f"{part}(?:/{part})?", name, re.ASCII) and not re.search(
        r"--|\.\.", name
    )
    if name.startswith("factworld") or not possible or len(name) > _LONGEST_HUB_NAME:
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
    return ModelNotFoundError(f"unknown model {shown(name)} ({why}): give {names}.")


def _unreachable(name: str, why: str) -> ModelNotFoundError:
    """Builds the error for a model that exists but cannot be downloaded from here."""
    return ModelNotFoundError(
        f"model {name!r} {why}: run `hf download {name} --local-dir DIR` on a machine with a network and pass DIR, or "
        f"use a model that comes with the package: {', '.join(SHIPPED)}."
    )
