"""Checks of names and of places to write to, before the work whose results go there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from rome_jax.files.checked import shown

_LONGEST_NAME = 200  # bytes; file systems allow 255, and names get suffixes
_LONGEST_PART = 255  # bytes between two slashes of a path
_LONGEST_PATH = 4095  # bytes of a path


def check_name(name: str, argument: str) -> str:
    """Checks that a text can be the name of a file or folder, and returns it.

    Names come from flags and from files. One that is a path would lead out of the folder that it names a part of.

    Args:
      name: The text.
      argument: What the name is given as, such as "--sweep_name", for the error.

    Raises:
      ValueError: If the name is empty or longer than 200 bytes, or is a path.

    Example:
      >>> check_name("layers_0-5", "--sweep_name")
      'layers_0-5'
      >>> check_name("../escape", "--sweep_name")
      Traceback (most recent call last):
      ValueError: --sweep_name='../escape' is not a name: give a text without slashes and control characters.
    """
    remedy = ""
    if name.strip() in ("", ".", "..") or name.startswith("~"):
        remedy = "give a text that can be the name of a folder"
    elif any(letter in "/\\" or not letter.isprintable() for letter in name):
        remedy = "give a text without slashes and control characters"
    elif len(name.encode()) > _LONGEST_NAME:
        remedy = f"give at most {_LONGEST_NAME} bytes"
    if remedy:
        raise ValueError(f"{argument}={shown(name)} is not a name: {remedy}.")
    return name


def check_path(path: str | Path, name: str = "path", *, error: type[Exception] = ValueError) -> str:
    """Checks that a file or folder can have a path, and returns its text.

    Args:
      path: The path.
      name: Name of the path in errors, such as "--results_dir".
      error: Exception to raise.

    Raises:
      error: If it is no path, is empty or too long, or has a NUL character.

    Example:
      >>> check_path(" ", "--results_dir")
      Traceback (most recent call last):
      ValueError: --results_dir is empty: give a path.
    """
    if not isinstance(path, str | os.PathLike):
        raise error(f"{name}={shown(path)}: give a path.")
    text = os.fspath(path)
    if not text.strip():
        raise error(f"{name} is empty: give a path.")
    why = ""
    encoded = text.encode("utf-8", "surrogatepass")
    if "\0" in text:
        why = "has a NUL character: leave it out"
    elif len(encoded) > _LONGEST_PATH:
        why = f"is longer than {_LONGEST_PATH} bytes: give a shorter path"
    elif any(len(part) > _LONGEST_PART for part in encoded.split(b"/")):
        why = f"has a name of more than {_LONGEST_PART} bytes: give a shorter one"
    if why:
        raise error(f"{name}={shown(text)} {why}.")
    return text


def check_writable(directory: str | Path, name: str = "directory") -> Path:
    """Checks that files can be written to a folder, which may not exist yet, and returns it as a path.

    Args:
      directory: The folder.
      name: Name of the folder in errors, such as "--output_dir".

    Raises:
      ValueError: If no folder can have this path.
      NotADirectoryError: If a file is in the folder's place.
      PermissionError: If this user may not write to the folder, or may not create it.

    Example:
      >>> check_writable(".", "--output_dir")
      PosixPath('.')
    """
    _check_folder(Path(check_path(directory, name)), f"{name}={shown(os.fspath(directory))}")
    return Path(directory)


def check_writable_file(path: str | Path, name: str = "path") -> Path:
    """Checks that a file can be written to a path, and returns it; `artifacts.replacing` creates missing folders.

    Args:
      path: The path of a new file, or of one that is replaced. A pipe or device, such as /dev/stdout, is allowed.
      name: Name of the path in errors, such as "--save".

    Raises:
      ValueError: If no file can have this path.
      IsADirectoryError: If the path is that of a folder.
      NotADirectoryError: If a file is in the place of its folder.
      PermissionError: If this user may not write there.

    Example:
      >>> check_writable_file("edits/sport.safetensors", "--save").name
      'sport.safetensors'
      >>> check_writable_file("edits/", "--save")
      Traceback (most recent call last):
      IsADirectoryError: --save='edits/' is the path of a folder: give the path of a file in it.
    """
    text, said = check_path(path, name), f"{name}={shown(os.fspath(path))}"
    target = Path(os.path.realpath(text))
    if os.path.basename(text) in ("", ".", "..") or target.is_dir():
        raise IsADirectoryError(f"{said} is the path of a folder: give the path of a file in it.")
    if target.is_symlink():  # realpath stops at a link that leads back to itself
        raise OSError(f"{said} is a link that leads back to itself: give another path.")
    if not target.exists() or target.is_file():
        _check_folder(target.parent, said)
    elif not os.access(target, os.W_OK):
        raise PermissionError(f"{said} is not writable: give another path.")
    return Path(path)


def _check_folder(directory: Path, said: str) -> None:
    """Checks that a folder can be written to or created; `said` is the argument of the error."""
    there = next(
        path for path in (directory, *directory.absolute().parents) if os.path.lexists(path)
    )
    if there.is_symlink() and not there.exists():
        raise NotADirectoryError(f"{said}: {there} is a link to nothing: give another path.")
    if not there.is_dir():
        raise NotADirectoryError(f"{said}: {there} is a file: give a folder.")
    try:
        with tempfile.TemporaryFile(dir=there):  # /proc looks writable to root
            pass
    except OSError:
        raise PermissionError(f"{said}: {there} is not writable: give another folder.") from None
