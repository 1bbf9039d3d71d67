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

from rome_jax.files.folders import STAGING, creating
from rome_jax.files.locks import lock
from rome_jax.files.system_errors import explaining

_PARTIAL = re.compile(r"\.[0-9a-f]{16}\.partial")  # names of temporary files


def cache_directory() -> Path:
    """Returns the folder for files that can be downloaded or computed again; it may not exist yet.

    This is `$ROME_JAX_CACHE` if set, otherwise `$XDG_CACHE_HOME/rome_jax`, otherwise `~/.cache/rome_jax`.

    Raises:
      FileNotFoundError: If the home folder is needed, and this user has none.
    """
    place = os.environ.get("ROME_JAX_CACHE")
    home = Path(place or os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        return home.expanduser() / ("" if place else "rome_jax")
    except RuntimeError:
        raise FileNotFoundError(
            "this user has no home folder: set ROME_JAX_CACHE to a folder."
        ) from None


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
      path: The file; missing folders are created, and removed again after an exception.

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
        # The name says nothing about the target, whose own name may be as long as the file system allows.
        temporary = target.with_name(f".{secrets.token_hex(8)}.partial")
        with creating(target.parent):
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


def is_temporary(name: str) -> bool:
    """Returns whether a file or folder has the name of a temporary one.

    Example:
      >>> is_temporary(".0123456789abcdef.partial"), is_temporary("model.partial")
      (True, False)
    """
    return bool(_PARTIAL.fullmatch(name)) or name.startswith(STAGING)


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
    for path in Path(directory).glob(".*.partial"):
        if _PARTIAL.fullmatch(path.name):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                if lock(file.fileno()):
                    path.unlink()
