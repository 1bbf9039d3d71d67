"""Export of models to directories in the Hugging Face format, which only ever replaces exports of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import typing_extensions

from rome_jax.files.artifacts import is_temporary, remove_leftovers, write_whole
from rome_jax.files.checked import check
from rome_jax.files.folders import creating, staging
from rome_jax.files.json_files import read_object
from rome_jax.files.locks import in_use
from rome_jax.files.system_errors import explaining
from rome_jax.models.huggingface import save_params
from rome_jax.models.registry import LanguageModel
from rome_jax.version import __version__

MARKER = "rome_jax_export.json"  # marks a directory that `save_hf` wrote, and lists its files


class _Marker(typing_extensions.TypedDict):
    """The content of the marker, as far as it is read."""

    format: int
    files: list[str]


def save_hf(directory: str | Path, model: LanguageModel, *, overwrite: bool = False) -> None:
    """Writes a Hugging Face directory that `transformers` and `load_model` load with the same logits.

    All files are written to a temporary folder first and then moved into place, so an interrupted save leaves the old
    model intact. The file rome_jax_export.json lists the files of the export.

    Args:
      directory: A new or empty directory, or an earlier export, which `overwrite` allows to replace.
      model: The model to save.
      overwrite: Whether to replace an earlier export. All of its files are removed. Nothing else is ever replaced.

    Raises:
      FileExistsError: If the directory holds an export and `overwrite` is not set, or holds anything else.
      CheckpointError: If the params do not fit the model's config.
      FolderInUseError: If another process saves to the directory.
      OSError: If the directory cannot be written to.

    Example:
      >>> rome_jax.save_hf("edited", model)
      >>> rome_jax.load_model("edited").fingerprint() == model.fingerprint()
      True
    """
    directory = check_hf_directory(directory, overwrite=overwrite)
    tokens = {
        name: getattr(model.tokenizer, name)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    known = {name: token for name, token in tokens.items() if token is not None}
    with (
        explaining(directory),
        creating(directory),
        in_use(directory),
        staging(directory) as folder,
    ):
        remove_leftovers(directory)
        save_params(folder, model.params, model.config, known)
        model.tokenizer.save_pretrained(folder)
        _move(folder, directory, model)


def _move(folder: Path, directory: Path, model: LanguageModel) -> None:
    """Moves the files of an export into place, and removes those of the export that it replaces."""
    old = set(_files(directory))
    new = {file.name for file in folder.iterdir()}
    # At any moment the marker lists every file, so that an interrupted export can be replaced.
    _mark(directory, old | new, model)
    # The config is moved last: a new directory is not a model before it has one.
    for name in sorted(new, key=lambda name: name == "config.json"):
        (folder / name).replace(directory / name)
    for name in old - new:
        (directory / name).unlink(missing_ok=True)
    _mark(directory, new, model)


def _mark(directory: Path, files: Iterable[str], model: LanguageModel) -> None:
    """Writes the marker."""
    content = {
        "format": 1,
        "about": "rome_jax wrote the files listed here and may replace them.",
        "files": sorted(files),
        "model": model.name,
        "source": model.source,
        "version": __version__,
    }
    write_whole(directory / MARKER, (json.dumps(content, indent=2) + "\n").encode())


def _files(directory: Path) -> list[str]:
    """Returns the names in a directory's marker; none if there is no readable marker."""
    try:
        names = read_object(directory / MARKER, _Marker)["files"]
    except (OSError, ValueError):
        return []
    return [name for name in names if Path(name).name == name]


def check_hf_directory(directory: str | Path, *, overwrite: bool = False) -> Path:
    """Checks that `save_hf` may write to a directory, and returns it as a path.

    Args:
      directory, overwrite: As in `save_hf`.

    Raises:
      FileExistsError: If the directory holds an export and `overwrite` is not set, or holds anything else.
    """
    directory = Path(check(str, os.fspath(directory), "directory"))  # tokenizers wants Unicode
    if not directory.exists() and not directory.is_symlink():
        return directory
    if not directory.is_dir():
        raise FileExistsError(f"{directory} is not a directory: give another path.")
    names = {p.name for p in directory.iterdir() if not is_temporary(p.name)}
    if not names:
        return directory
    own = {MARKER, *_files(directory)}
    if MARKER not in names:
        raise FileExistsError(
            f"{directory} holds files that are not an export of rome_jax ({_some(names)}), which are never replaced: "
            "give another directory."
        )
    if foreign := names - own:
        raise FileExistsError(
            f"{directory} is an export of rome_jax, but also holds other files ({_some(foreign)}): give another "
            "directory, or move these away."
        )
    if not overwrite:
        raise FileExistsError(
            f"{directory} holds an earlier export: set overwrite=True (--overwrite) to replace it, or give another "
            "directory."
        )
    return directory


def _some(names: Iterable[str], limit: int = 3) -> str:
    """Lists some names."""
    ordered = sorted(names)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(ordered[:limit]) + more
