"""The cache directory, downloads, and files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import urllib.error
import urllib.request
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any

from rome_jax.files.progress import tqdm

_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without a response


class DownloadError(OSError):
    """A file cannot be downloaded, or has the wrong size or content."""


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


def write_whole(path: Path, content: bytes) -> None:
    """Writes a small file, creating its folder, so that it appears complete or not at all.

    Args:
      path: The file, which is replaced if it exists.
      content: The bytes of the whole file.

    Example:
      >>> write_whole(Path("run/run.json"), b"{}")
      >>> Path("run/run.json").read_text()
      '{}'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


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
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{name}={directory}: {there} is a file: give a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{name}={directory}: {there} is not writable: give another folder.")
    return directory


def download(
    url: str,
    path: str | Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    progress: bool = True,
) -> Path:
    """Downloads a file, or finds it where it was downloaded earlier.

    A partial download is kept next to `path` as `.part`, and the next call resumes it. The file itself appears once it
    is complete and correct.

    Args:
      url: An http or https URL.
      path: Where to put the file; its folder is created.
      size: Size in bytes, or None if unknown; the size that the server announces is checked in any case.
      sha256: SHA-256 of the content, or None if unknown.
      progress: Whether to show a progress bar.

    Returns:
      `path`.

    Raises:
      DownloadError: If there is no network (the message gives a command for a machine that has one), there is no such
        file, the transfer is interrupted, or the file has the wrong size or content.

    Example:
      >>> download("https://example.org/stats.npz", "stats.npz", size=163_840_512)  # doctest: +SKIP
    """
    path = Path(path)
    if path.exists():
        if wrong := _what_is_wrong(path, size, sha256):
            raise DownloadError(f"{path} {wrong}: remove it and download it again.")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    if size is None or not part.exists() or part.stat().st_size != size:
        announced = _fetch(url, path, part, size, progress)
        size = announced if size is None else size
    if wrong := _what_is_wrong(part, size, sha256):
        part.unlink()
        raise DownloadError(f"the file from {url} {wrong}: it was removed; download it again.")
    part.replace(path)
    return path


def _fetch(url: str, path: Path, part: Path, size: int | None, progress: bool) -> int | None:
    """Downloads the rest of a partial file, and returns the size of the whole file if the server announces it."""
    have = part.stat().st_size if part.exists() else 0
    try:
        answer = _open(url, have)
        if answer.status != HTTPStatus.PARTIAL_CONTENT:
            have = 0  # the server ignored the request for a range and sends the whole file
        total = _announced(answer, have)
        if size is not None and total not in (None, size):
            raise DownloadError(
                f"{url} has {total} bytes instead of {size}: it is another version of the file."
            )
        bar = tqdm(
            total=total,
            initial=have,
            unit="B",
            unit_scale=True,
            desc=path.name,
            disable=not progress,
        )
        with answer, open(part, "ab" if have else "wb") as file, bar:
            while block := answer.read(_CHUNK):
                file.write(block)
                bar.update(len(block))
    except urllib.error.HTTPError as error:
        raise DownloadError(
            f"{url} cannot be downloaded (HTTP {error.code} {error.reason})."
        ) from error
    except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError) as error:
        raise DownloadError(
            f"{url} cannot be reached ({getattr(error, 'reason', error)}): on a machine with a network, run "
            f"`curl -L -C - -o {path.name} {url}` and copy the file to {path}."
        ) from error
    if total is not None and part.stat().st_size < total:
        raise DownloadError(
            f"{url} stopped after {part.stat().st_size} of {total} bytes: run the same command again to resume."
        )
    return total


def _open(url: str, have: int) -> Any:
    """Opens a URL, beginning at byte `have` if the server can."""
    request = urllib.request.Request(url, headers={"User-Agent": "rome_jax"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if have and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _open(url, 0)  # the partial file is already as long as the file, or longer
        raise


def _announced(answer: Any, have: int) -> int | None:
    """Returns the size of the whole file if the server announces it."""
    length = answer.headers.get("Content-Length")
    return None if length is None else have + int(length)


def _what_is_wrong(path: Path, size: int | None, sha256: str | None) -> str:
    """Describes how a file differs from what is expected; empty if it does not differ."""
    found = path.stat().st_size
    if size is not None and found != size:
        return f"has {found} bytes instead of {size}"
    if sha256 is None:
        return ""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if digest == sha256 else f"has SHA-256 {digest} instead of {sha256}"
