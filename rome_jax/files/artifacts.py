"""The cache directory, and files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from rome_jax.files.checked import shown
from rome_jax.files.locks import lock

_PARTIAL = ".partial"  # ends the names of temporary files
_LONGEST_NAME = 200  # bytes; file systems allow 255, and names get suffixes
_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "free some space, or choose another place",
    errno.EACCES: "choose a place that you may write to",
    errno.EPERM: "choose a place that you may write to",
    errno.EROFS: "choose a place that you may write to",
    errno.EISDIR: "give the path of a file",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EPIPE: "the program that reads it has ended",
}


def cache_directory() -> Path:
    """Returns the folder for files that can be downloaded or computed again; it may not exist yet.

    This is `$ROME_JAX_CACHE` if set, otherwise `$XDG_CACHE_HOME/rome_jax`, otherwise `~/.cache/rome_jax`.
    """
    if place := os.environ.get("ROME_JAX_CACHE"):
        return Path(place).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rome_jax"


def trim_directory(directory: str | Path, max_bytes: int) -> None:
    """Removes the least recently used files of a cache until the others fit.

    Args:
      directory: The cache; it may not exist.
      max_bytes: Total size that the files may have, in bytes.

    Example:
      >>> cache = Path("cache")
      >>> cache.mkdir()
      >>> for time, name in enumerate(["old", "new"]):
      ...     _ = (cache / name).write_bytes(bytes(100))
      ...     os.utime(cache / name, (time, time))
      >>> trim_directory(cache, 150)
      >>> [path.name for path in cache.iterdir()]
      ['new']
    """
    found = []
    for path in Path(directory).glob("*"):
        with contextlib.suppress(OSError):  # another process has removed the file
            about = path.stat()
            if path.is_file():
                found.append((max(about.st_atime, about.st_mtime), about.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= max_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size


def write_whole(path: str | Path, content: bytes) -> None:
    """Writes a small file, creating its folder, so that it appears complete or not at all.

    Args:
      path: The file, which is replaced if it exists; see `replacing`.
      content: The bytes of the whole file.

    Raises:
      OSError: If the file cannot be written; the message names it and a remedy.

    Example:
      >>> write_whole(Path("run/run.json"), b"{}")
      >>> Path("run/run.json").read_text()
      '{}'
    """
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a file for writing in a `with` statement, after which it appears complete.

    The content goes to a temporary file in the same folder, which replaces the file at the end, or is removed if the
    body raises an exception. Its name is unique, so any number of processes may write one file: the last one wins.
    A symbolic link is followed and stays. A pipe or device, such as /dev/stdout, is written to as it is.

    Args:
      path: The file; missing folders are created.

    Yields:
      The file to write to, which may not be seekable.

    Raises:
      OSError: If the file cannot be written; the message names it and a remedy.

    Example:
      >>> with replacing("numbers.bin") as file:
      ...     _ = file.write(bytes(3))
      >>> Path("numbers.bin").stat().st_size
      3
    """
    with explaining(path):
        if special := _open_special(path):
            with special:
                yield special
            return
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if target.is_symlink():  # realpath stops at a link that leads back to itself
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target.parent.mkdir(parents=True, exist_ok=True)
        # The name says nothing about the target, whose own name may be as long as the file system allows.
        temporary = target.with_name(f".{secrets.token_hex(8)}{_PARTIAL}")
        try:
            with open(temporary, "xb") as file:
                with contextlib.suppress(OSError):  # the file system has no locks
                    lock(file.fileno(), shared=True)  # `remove_leftovers` leaves the file alone
                yield file
            if target.exists():
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def _open_special(path: str | Path) -> BinaryIO | None:
    """Opens a pipe, a device, or one of this process's standard streams; returns None for other paths."""
    try:
        about = os.stat(path)
    except FileNotFoundError:
        return None
    for stream in (1, 2):
        with contextlib.suppress(OSError):  # the stream is closed
            if os.path.samestat(about, os.fstat(stream)):
                sys.stdout.flush()
                # A stream that is redirected to a file has a position, which opening the file again would lose.
                return open(os.dup(stream), "wb")
    if stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode):
        return None
    return open(path, "wb")


@contextlib.contextmanager
def explaining(path: str | Path) -> Iterator[None]:
    """Adds the path and a remedy to errors of the operating system in a `with` statement that writes a file or folder.

    Args:
      path: What is written.

    Raises:
      OSError: In place of an OSError without a path, and of the exceptions that libraries in Rust raise instead.

    Example:
      >>> with explaining("edits.safetensors"):
      ...     raise OSError(28, "No space left on device")
      Traceback (most recent call last):
      OSError: edits.safetensors cannot be written (No space left on device): free some space, or choose another place.
    """
    try:
        yield
    except Exception as error:
        number = _error_number(error)
        if number is None:
            raise
        kind = type(error) if isinstance(error, OSError) else OSError
        remedy = _REMEDIES.get(number, "choose another place")
        why = getattr(error, "strerror", None) or os.strerror(number)
        explained = kind(f"{path} cannot be written ({why}): {remedy}.")
        explained.errno = number
        raise explained from error


def _error_number(error: Exception) -> int | None:
    """Returns the number of an error of the operating system; None for other exceptions and for explained errors."""
    if isinstance(error, OSError):
        return error.errno if error.strerror else None
    found = re.search(r"\(os error (\d+)\)", str(error))  # as in the tokenizers library
    full = (n for n in (errno.ENOSPC, errno.EDQUOT) if os.strerror(n) in str(error))  # as in Orbax
    return int(found[1]) if found else next(full, None)


def remove_leftovers(directory: str | Path) -> None:
    """Removes the temporary files of processes that were killed while they wrote to a folder.

    Args:
      directory: The folder; its subfolders are left alone. It may not exist.

    Example:
      >>> Path(".0123456789abcdef.partial").touch()
      >>> remove_leftovers(".")
      >>> list(Path(".").iterdir())
      []
    """
    for path in Path(directory).glob(f".*{_PARTIAL}"):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            if lock(file.fileno()):
                path.unlink()


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


def check_writable(directory: str | Path, name: str = "directory") -> Path:
    """Checks that files can be written to a folder, which may not exist yet, and returns it as a path.

    Args:
      directory: The folder.
      name: Name of the folder in errors, such as "--output_dir".

    Raises:
      NotADirectoryError: If a file is in the folder's place.
      PermissionError: If this user may not write to the folder, or may not create it.

    Example:
      >>> check_writable(".", "--output_dir")
      PosixPath('.')
    """
    directory = Path(directory)
    try:
        there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    except (OSError, ValueError) as error:  # a name that is too long, or holds a null character
        why = getattr(error, "strerror", None) or error
        raise NotADirectoryError(
            f"{name}={shown(directory)}: {why}: give another folder."
        ) from error
    if not there.is_dir():
        raise NotADirectoryError(f"{name}={directory}: {there} is a file: give a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{name}={directory}: {there} is not writable: give another folder.")
    return directory
