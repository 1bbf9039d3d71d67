"""Errors of the operating system with what they lack: the path that was written to or read, and a remedy."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "free some space, or choose another place",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or choose another place",
    errno.EACCES: "choose a place that you may write to",
    errno.EPERM: "choose a place that you may write to",
    errno.EROFS: "choose a place that you may write to",
    errno.EISDIR: "give the path of a file",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EPIPE: "the program that reads it has ended",
}
_REMEDIES_FOR_READING = {
    errno.EACCES: "give a file that you may read",
    errno.EPERM: "give a file that you may read",
    errno.EISDIR: "give the path of a file",
}


@contextlib.contextmanager
def explaining(path: str | Path, *, reading: bool = False) -> Iterator[None]:
    """Adds the path and a remedy to errors of the operating system in a `with` statement that writes a file or folder.

    Args:
      path: What is written.
      reading: Whether it is read and not written.

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
        if reading:
            remedy = _REMEDIES_FOR_READING.get(number, "check the path")
        why = getattr(error, "strerror", None) or os.strerror(number)
        explained = kind(f"{path} cannot be {'read' if reading else 'written'} ({why}): {remedy}.")
        explained.errno = number
        raise explained from error


def check_space(directory: str | Path, size: int) -> None:
    """Checks that the disk of a folder has room, before a library fails that would leave parts of its files.

    Args:
      directory: The folder, which exists.
      size: Number of bytes that will be written.

    Raises:
      OSError: If there is no room.

    Example:
      >>> check_space(".", 1)
    """
    if shutil.disk_usage(directory).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _error_number(error: Exception) -> int | None:
    """Returns the number of an error of the operating system; None for other exceptions and for explained errors."""
    if isinstance(error, OSError):
        return error.errno if error.strerror else None
    found = re.search(r"\(os error (\d+)\)", str(error))  # as in the tokenizers library
    full = (n for n in _FULL if os.strerror(n) in str(error))  # as in Orbax
    return int(found[1]) if found else next(full, None)
