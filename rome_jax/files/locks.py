"""Locks on files and folders, which end with the process that holds them."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class FolderInUseError(BlockingIOError):
    """Another process writes to a folder."""


def lock(descriptor: int, *, shared: bool = False) -> bool:
    """Locks an open file or folder until it is closed, without waiting.

    Args:
      descriptor: The file's descriptor.
      shared: Whether others may hold shared locks on it.

    Returns:
      Whether it is locked now; False if somebody else holds a lock that excludes this one.

    Raises:
      OSError: If the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def in_use(directory: str | Path, name: str = "directory") -> Iterator[Path]:
    """Keeps other processes out of a folder in a `with` statement; they are refused, and do not wait.

    The lock is on the folder itself. It ends with the process, however it ends, and leaves no file behind.

    Args:
      directory: A folder that exists.
      name: Name of the folder in errors, such as "--output_dir".

    Yields:
      `directory` as a path.

    Raises:
      FolderInUseError: If the folder is in use, by another process or by this one.

    Example:
      >>> with in_use(".", "--output_dir"), in_use(".", "--output_dir"):
      ...     pass
      Traceback (most recent call last):
      rome_jax.files.locks.FolderInUseError: --output_dir=. is in use by another run: wait for it, or give another ...
    """
    with held(directory, name):
        yield Path(directory)


@contextlib.contextmanager
def held(directory: str | Path, name: str, *, shared: bool = False) -> Iterator[int]:
    """Locks a folder as `in_use` does, for one process or for several that share it.

    Args:
      directory, name: As in `in_use`.
      shared: Whether others may hold shared locks on it.

    Yields:
      The descriptor of the folder, for `lock`.

    Raises:
      FolderInUseError: If somebody else holds a lock that excludes this one.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        free = True
        with contextlib.suppress(OSError):  # the file system has no locks
            free = lock(descriptor, shared=shared)
        if not free:
            raise FolderInUseError(
                f"{name}={directory} is in use by another run: wait for it, or give another folder."
            )
        yield descriptor
    finally:
        os.close(descriptor)
