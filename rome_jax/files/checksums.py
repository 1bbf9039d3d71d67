"""Checksums of tensors in files, and the memory of which large files were already checked.

Small files are checked whenever they are read. Hashing a model of 12 GB at each start would take longer than loading
it, so a large file is checked when its size or its time of modification has changed since the last check.
ROME_JAX_VERIFY=1 checks all files whenever they are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from pathlib import Path

import numpy as np

from rome_jax.files.artifacts import cache_directory, write_whole

VERIFY = "ROME_JAX_VERIFY"  # environment variable
METADATA_KEY = "rome_jax.crc32"  # of safetensors files: a JSON object of checksums by tensor name
_ALWAYS_CHECKED = 1 << 24  # bytes; checking such a file takes about 10 ms
_CHUNK = 1 << 24


def checksum(array: np.ndarray) -> str:
    """Computes the CRC-32 of an array's bytes, which detects damage. It is no protection against intent.

    Args:
      array: Any array; a memory-mapped one is read in pieces.

    Returns:
      8 hexadecimal digits.

    Example:
      >>> checksum(np.arange(3, dtype=np.uint8))
      '0854897f'
    """
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    value = 0
    for start in range(0, flat.size, _CHUNK):
        value = zlib.crc32(flat[start : start + _CHUNK].data, value)
    return f"{value:08x}"


def needs_check(path: Path) -> bool:
    """Returns whether a file has to be checked: it is small, unknown, or has changed since `remember_check`."""
    about = path.stat()
    if about.st_size <= _ALWAYS_CHECKED or os.environ.get(VERIFY, "0") not in ("", "0"):
        return True
    try:
        return _record_of(path).read_text() != _state_of(about)
    except (OSError, ValueError):
        return True


def remember_check(path: Path) -> None:
    """Remembers that a file was checked, unless it is small or the cache folder cannot be written to."""
    about = path.stat()
    if about.st_size > _ALWAYS_CHECKED:
        with contextlib.suppress(OSError):
            write_whole(_record_of(path), _state_of(about).encode())


def _record_of(path: Path) -> Path:
    """Returns the file that remembers the last check of a file."""
    return cache_directory() / "checked" / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()


def _state_of(about: os.stat_result) -> str:
    """Describes the state of a file that a change would change."""
    return f"{about.st_size} {about.st_mtime_ns} {about.st_ino}"
