"""Where files that can be made again are kept, downloads, and files that are whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import urllib.error
import urllib.request
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path

from rome_jax.files.progress import tqdm

_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without an answer


class DownloadError(OSError):
    """A file cannot be fetched, or is not what it should be."""


def cache_directory() -> Path:
    """`$ROME_JAX_CACHE`, else `$XDG_CACHE_HOME/rome_jax`, else `~/.cache/rome_jax`. It may not exist yet."""
    if place := os.environ.get("ROME_JAX_CACHE"):
        return Path(place).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rome_jax"


def trim_directory(directory: str | Path, max_bytes: int) -> None:
    """Removes files of a cache, those not used for longest first, until the others fit.

    Args:
      directory: of the cache; it may not exist.
      max_bytes: that the files may take together.

    Example:
      >>> trim_directory("cache/xla", 2 << 30)  # doctest: +SKIP
    """
    found = []
    for path in Path(directory).glob("*"):
        with contextlib.suppress(OSError):  # another process has removed it
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
    """Writes a small file, and the folders above it, whole or not at all.

    Example:
      >>> write_whole(Path("run/run.json"), b"{}")  # doctest: +SKIP
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def check_writable(directory: str | Path, name: str = "directory") -> Path:
    """Returns a folder if files can be written there; it may not exist yet.

    Args:
      directory: the folder.
      name: how the one who gave it calls it, such as "--output_dir".

    Raises:
      OSError: a folder in which this user may not write, or a file in its place.

    Example:
      >>> check_writable(".", "--output_dir")
      PosixPath('.')
    """
    directory = Path(directory)
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{name}={directory}: {there} is a file; give a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{name}={directory}: {there} cannot be written to; give another.")
    return directory


def download(
    url: str,
    path: str | Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    progress: bool = True,
) -> Path:
    """Fetches a file, or finds it where it was fetched to.

    What has come so far is kept beside `path` as `.part`, and the next call resumes there. The file itself appears
    when it is whole and right.

    Args:
      url: http or https.
      path: of the file; its folder is made.
      size: in bytes, if known; what the server announces is checked in any case.
      sha256: of the content, if known.
      progress: show a bar.

    Returns:
      `path`.

    Raises:
      DownloadError: no network (the sentence gives a command for a machine that has one), no such file, an
        interrupted transfer, or a file of another size or content.

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
        raise DownloadError(f"the file from {url} {wrong}: it was thrown away; try again.")
    part.replace(path)
    return path


def _fetch(url: str, path: Path, part: Path, size: int | None, progress: bool) -> int | None:
    """Appends to `part` what is missing of it; returns the size of the whole, if the server says it."""
    have = part.stat().st_size if part.exists() else 0
    try:
        answer = _open(url, have)
        if answer.status != HTTPStatus.PARTIAL_CONTENT:
            have = 0  # the server sends all of it, asked or not
        total = _announced(answer, have)
        if size is not None and total not in (None, size):
            raise DownloadError(
                f"{url} has {total} bytes, and {size} are expected: it is another version of the file."
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
        raise DownloadError(f"{url} cannot be had (HTTP {error.code} {error.reason}).") from error
    except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError) as error:
        raise DownloadError(
            f"{url} cannot be reached ({getattr(error, 'reason', error)}): where there is a network, run "
            f"`curl -L -C - -o {path.name} {url}` and copy the file to {path}."
        ) from error
    if total is not None and part.stat().st_size < total:
        raise DownloadError(
            f"{url} broke off after {part.stat().st_size} of {total} bytes: run the same again to go on from there."
        )
    return total


def _open(url: str, have: int):
    """The server's answer, from byte `have` on if it can."""
    request = urllib.request.Request(url, headers={"User-Agent": "rome_jax"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if have and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _open(url, 0)  # what is here is as long as the file, or longer
        raise


def _announced(answer, have: int) -> int | None:
    """The size of the whole file, as the server says."""
    length = answer.headers.get("Content-Length")
    return None if length is None else have + int(length)


def _what_is_wrong(path: Path, size: int | None, sha256: str | None) -> str:
    """How a file differs from what is expected; empty if it does not."""
    found = path.stat().st_size
    if size is not None and found != size:
        return f"has {found} bytes, and {size} are expected"
    if sha256 is None:
        return ""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if digest == sha256 else f"has SHA-256 {digest}, and {sha256} is expected"
