"""Places of models: the package, local directories and files, the package index, and the Hugging Face hub."""

from __future__ import annotations

import fnmatch
import importlib.resources
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rome_jax.files import extras
from rome_jax.files.checked import check, shown
from rome_jax.files.downloads import DownloadError
from rome_jax.files.json_files import read_object
from rome_jax.files.safetensors_io import CheckpointError
from rome_jax.files.wheels import SMOLLM2, WheelFile
from rome_jax.models import gguf_files
from rome_jax.models.config import ModelConfig
from rome_jax.models.families import from_hf

# Small trained models that come with the package, and their folders; see rome_jax.factworld.
SHIPPED = {"factworld-gpt2": "gpt2", "factworld-gptj": "gptj"}
# Pretrained models that the Python package index has as GGUF files in wheels.
IN_WHEELS: Mapping[str, WheelFile] = {"smollm2-135m": SMOLLM2}
NAMES = (*SHIPPED, *IN_WHEELS)  # models that load by name without the Hugging Face hub

TOKENIZER_FILES = (
    "tokenizer.json tokenizer_config.json vocab.json merges.txt special_tokens_map.json added_tokens.json"
).split()
_SAFETENSORS = ["model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
_BINARIES = ["pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"]
_LONGEST_HUB_NAME = 96
_LONGEST_REVISION = 250
_REVISION = r"\w[\w-]*(?:[./]\w[\w-]*)*"  # a Git reference, without two dots in a row
_HUB_SECONDS = 10  # timeout of a request for the list of files


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


def read_model_config(place: Path) -> ModelConfig:
    """Reads the config of a stored model.

    Args:
      place: A directory in the Hugging Face format, or a GGUF file.

    Raises:
      ModelNotFoundError, CheckpointError: As in `read_config` and `rome_jax.models.gguf_files.open_model`.
      UnsupportedConfigError: If it describes a model that is not supported; the message names the file.
    """
    if gguf_files.is_gguf(place):
        return gguf_files.read_config(gguf_files.open_model(place))
    return from_hf(read_config(place), str(place / "config.json"))


def is_local(name: str) -> bool:
    """Returns whether a name is the path of a directory or of a GGUF file."""
    path = os.path.expanduser(name)
    return bool(name) and (os.path.isdir(path) or gguf_files.is_gguf(Path(path)))


def find(
    name: str, revision: str | None, cache_dir: str | Path | None, offline: bool
) -> tuple[Path, str]:
    """Finds a stored model, downloading it if necessary, and describes where it was found.

    Args:
      name: Name of a model in `NAMES`, a directory, a GGUF file, or a name on the hub.
      revision, cache_dir, offline: As in `rome_jax.load_model`.

    Returns:
      The directory or GGUF file, and "package", "wheel PROJECT VERSION", "directory ...", "file ..." or "hub ... @
      revision".

    Raises:
      ModelNotFoundError: If the name is unknown, or the model is not on this machine and cannot be downloaded.
      MissingPackageError: If the model is a GGUF file and the package gguf is not installed, or its weights on the hub
        are in PyTorch's format and torch is not installed.
      ValueError: If a revision is given of a model that is not on the hub.
    """
    check_revision(name, revision)
    if name in SHIPPED:
        assets = importlib.resources.files("rome_jax") / "factworld" / "assets" / SHIPPED[name]
        if not assets.is_dir():
            raise ModelNotFoundError(
                f"{name} is not in this installation: reinstall rome_jax, or train it with "
                f"`python -m eval.train_factworld --family={SHIPPED[name]} --output_dir=DIR` and load DIR."
            )
        return Path(str(assets)), "package"
    if name in IN_WHEELS:
        return _from_wheel(name, offline)
    if is_local(name):
        local = Path(os.path.expanduser(name))
        return local, f"{'directory' if local.is_dir() else 'file'} {local.resolve()}"
    if os.path.splitext(name)[1].lower() == gguf_files.SUFFIX:
        raise unknown_model(name, "there is no such file")
    check_hub_name(name)
    return _from_hub(name, revision, cache_dir, offline)


def _from_wheel(name: str, offline: bool) -> tuple[Path, str]:
    """Finds the file of a wheel in the cache, or fetches it."""
    from huggingface_hub import constants  # slow to import

    gguf_files.check_installed(name)  # before a download
    wheel = IN_WHEELS[name]
    try:
        path = wheel.find(offline=offline or constants.HF_HUB_OFFLINE)
    except DownloadError as error:
        raise ModelNotFoundError(f"model {name!r} is not on this machine: {error}") from error
    return path, f"wheel {wheel.project} {wheel.version}"


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

    if not offline:
        check_convertible(name, revision, cache_dir)
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


def check_convertible(
    name: str, revision: str | None = None, cache_dir: str | Path | None = None
) -> None:
    """Refuses a model whose weights on the hub need torch if torch is not installed, before anything is downloaded.

    If the hub cannot be asked, the download reports it.

    Args:
      name: Name of a model on the hub.
      revision, cache_dir: As in `rome_jax.load_model`.

    Raises:
      MissingPackageError: If torch is needed.

    Example:
      >>> check_convertible("EleutherAI/gpt-j-6B")  # doctest: +SKIP
      Traceback (most recent call last):
      MissingPackageError: EleutherAI/gpt-j-6B, whose weights on the hub are pytorch_model.bin, needs torch: ...
    """
    if extras.is_installed("torch"):
        return
    import huggingface_hub  # slow to import

    for file in filter(lambda pattern: "*" not in pattern, (*_SAFETENSORS, *_BINARIES)):
        found = huggingface_hub.try_to_load_from_cache(name, file, cache_dir, revision)
        if isinstance(found, str):
            return  # of a pytorch_model.bin, `convert` may find an earlier conversion
    try:
        about = huggingface_hub.model_info(name, revision=revision, timeout=_HUB_SECONDS)
    except Exception:  # HTTP clients differ in how they report a failed connection
        return
    files = [file.rfilename for file in about.siblings or ()]

    def holds(patterns: Sequence[str]) -> bool:
        return any(fnmatch.filter(files, pattern) for pattern in patterns)

    if holds(_BINARIES) and not holds(_SAFETENSORS):
        extras.check("torch", "convert", f"{name}, whose weights on the hub are pytorch_model.bin,")


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
        raise unknown_model(name, "it is a file without the suffix .gguf")
    part = r"\w(?:[\w.-]*\w)?"
    possible = re.fullmatch(f"{part}(?:/{part})?", name, re.ASCII) and not re.search(
        r"--|\.\.", name
    )
    if name.startswith(("factworld", "smollm2-")) or not possible or len(name) > _LONGEST_HUB_NAME:
        raise unknown_model(name, "it is neither a directory nor a possible name")
    return name


def check_revision(name: str, revision: str | None) -> None:
    """Refuses a revision that the hub cannot have, or of a model that is not on the hub.

    Args:
      name: Name of the model.
      revision: Branch, tag, or commit; None is always accepted.

    Raises:
      ValueError: If the revision is refused.

    Example:
      >>> check_revision("gpt2-xl", "main")
      >>> check_revision("factworld-gpt2", "main")
      Traceback (most recent call last):
      ValueError: revision='main' is a version of a model on the Hugging Face hub, and factworld-gpt2 is not there: ...
    """
    if revision is None:
        return
    revision = check(str, revision, "revision")
    if name in NAMES or is_local(name):
        raise ValueError(
            f"revision={shown(revision)} is a version of a model on the Hugging Face hub, and {name} is not there: "
            "leave it out."
        )
    if not re.fullmatch(_REVISION, revision, re.ASCII) or len(revision) > _LONGEST_REVISION:
        raise ValueError(f"revision={shown(revision)}: give a branch, a tag, or a commit.")


def unknown_model(name: str, why: str) -> ModelNotFoundError:
    """Builds the error for a name that is not the name of a model.

    Args:
      name: The name that was given.
      why: Why there is no such model, as a clause.

    Returns:
      The error, to be raised by the caller.

    Example:
      >>> print(unknown_model("gpt5", "the hub has no such model"))
      unknown model 'gpt5' (the hub has no such model): give one of factworld-gpt2, factworld-gptj, ...
    """
    return ModelNotFoundError(
        f"unknown model {shown(name)} ({why}): give one of {', '.join(NAMES)}, the directory of a Hugging Face model, "
        "a GGUF file, or a name on the hub such as gpt2-xl or EleutherAI/gpt-j-6B."
    )


def _unreachable(name: str, why: str) -> ModelNotFoundError:
    """Builds the error for a model that exists but cannot be downloaded from here."""
    return ModelNotFoundError(
        f"model {name!r} {why}: run `hf download {name} --local-dir DIR` on a machine with a network and pass DIR, or "
        f"use one that loads without the hub: {', '.join(NAMES)}."
    )
