"""Downloads that resume, and appear complete and correct or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any

from rome_jax.files.locks import lock
from rome_jax.files.progress import tqdm
from rome_jax.files.system_errors import explaining

_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without a response


class DownloadError(OSError):
    """A file cannot be downloaded, or has the wrong size or content."""


class UnreachableError(DownloadError):
    """A server cannot be reached, or does not have the file.

    Args:
      message: The message.
      reason: The reason in a few words, such as "HTTP 404 Not Found".
    """

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


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
      UnreachableError: If there is no network (the message gives a command for a machine that has one), or there is no
        such file.
      DownloadError: If the transfer is interrupted, another process downloads the file, or it has the wrong size or
        content.

    Example:
      >>> download("https://example.org/stats.npz", "stats.npz", size=163_840_512)  # doctest: +SKIP
    """
    path = Path(path)
    if path.exists():
        if wrong := _what_is_wrong(path, size, sha256):
            raise DownloadError(f"{path} {wrong}: remove it and download it again.")
        return path
    part = path.with_name(path.name + ".part")
    with explaining(path), _only_writer(part):
        if size is None or part.stat().st_size != size:
            announced = _fetch(url, path, part, size, progress)
            size = announced if size is None else size
        if wrong := _what_is_wrong(part, size, sha256):
            part.unlink()
            raise DownloadError(f"the file from {url} {wrong}: it was removed; download it again.")
        part.replace(path)
    return path


@contextlib.contextmanager
def _only_writer(part: Path) -> Iterator[None]:
    """Keeps other processes from appending to a partial download; one that stays empty is removed."""
    part.parent.mkdir(parents=True, exist_ok=True)
    with open(part, "ab") as file:
        free = True
        with contextlib.suppress(OSError):  # the file system has no locks
            free = lock(file.fileno())
        if not free:
            raise DownloadError(f"another process is downloading {part}: wait for it to finish.")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # it was renamed or removed
                if not part.stat().st_size:
                    part.unlink()


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
        reason = f"HTTP {error.code} {error.reason}"
        raise UnreachableError(f"{url} cannot be downloaded ({reason}).", reason) from error
    except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError) as error:
        reason = str(getattr(error, "reason", error))
        message = (
            f"{url} cannot be reached ({reason}): on a machine with a network, run "
            f"`curl -L -C - -o {path.name} {url}` and copy the file to {path}."
        )
        if part.stat().st_size > have:  # the connection broke off, and the next call resumes
            raise DownloadError(message) from error
        raise UnreachableError(message, reason) from error
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
