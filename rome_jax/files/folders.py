"""Folders that are created for what is written to them: one that stays empty is removed, and so is a temporary one."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rome_jax.files.locks import lock
from rome_jax.files.system_errors import explaining

STAGING = ".saving-"  # begins the names of temporary folders
_NO_FOLDER = (errno.ENOTDIR, os.strerror(errno.ENOTDIR))


@contextlib.contextmanager
def creating(directory: str | Path) -> Iterator[Path]:
    """Creates a folder and its parents in a `with` statement; after an exception, those that are empty are removed.

    Args:
      directory: The folder, which may exist. Folders that existed before are never removed.

    Yields:
      `directory` as a path.

    Raises:
      NotADirectoryError: If a file is in the folder's place.
      OSError: If the folder cannot be created; the message names it and a remedy.

    Example:
      >>> with contextlib.suppress(RuntimeError), creating("results/run_000"):
      ...     raise RuntimeError("no result was written")
      >>> Path("results").exists()
      False
    """
    with _removing(create(directory)):
        yield Path(directory)


def create(directory: str | Path) -> list[Path]:
    """Creates a folder and its parents.

    Args:
      directory: The folder, which may exist.

    Returns:
      The folders that this call created, innermost first; none that another process created at the same time.

    Raises:
      NotADirectoryError: If a file is in the place of a folder.
      OSError: If a folder cannot be created; the message names it and a remedy.

    Example:
      >>> [path.as_posix() for path in create("results/run_000")], create("results")
      (['results/run_000', 'results'], [])
    """
    directory, created = Path(directory), list[Path]()
    with explaining(directory), _removing(created):
        for path in reversed((directory, *directory.parents)):
            if not path.is_dir():
                try:
                    path.mkdir()
                except FileExistsError:
                    if not path.is_dir():
                        raise NotADirectoryError(*_NO_FOLDER) from None
                else:
                    created.insert(0, path)
    return created


@contextlib.contextmanager
def _removing(folders: list[Path]) -> Iterator[None]:
    """Removes folders after an exception, if they are empty."""
    try:
        yield
    except BaseException:
        for path in folders:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


@contextlib.contextmanager
def staging(parent: str | Path) -> Iterator[Path]:
    """Creates a temporary folder in a folder, and removes it at the end of the `with` statement.

    Temporary folders of processes that were killed are removed too; those of running processes are locked.

    Args:
      parent: A folder that exists. What is moved out of the temporary folder stays on the same file system.

    Yields:
      The temporary folder.

    Example:
      >>> with staging(".") as folder:
      ...     _ = (folder / "model.json").write_text("{}")
      ...     (folder / "model.json").rename("model.json")
      PosixPath('model.json')
      >>> [path.name for path in Path(".").iterdir()]
      ['model.json']
    """
    for left in abandoned(parent):
        shutil.rmtree(left, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(dir=parent, prefix=STAGING) as name,
        _opened(name) as descriptor,
    ):
        with contextlib.suppress(OSError):  # the file system has no locks
            lock(descriptor, shared=True)
        yield Path(name)


def abandoned(parent: str | Path) -> Iterator[Path]:
    """Yields the temporary folders in a folder whose processes were killed; each is locked meanwhile."""
    for left in Path(parent).glob(f"{STAGING}*"):
        with contextlib.suppress(OSError), _opened(left) as descriptor:
            if lock(descriptor):
                yield left


@contextlib.contextmanager
def _opened(folder: str | Path) -> Iterator[int]:
    """Opens a folder, to be locked."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
