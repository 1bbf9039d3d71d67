"""Checksums of tensors in files and of JSON files, and the memory of which large files were already checked.

Small files are checked whenever they are read. Hashing a model of 12 GB at each start would take longer than loading
it, so a large file is checked when its size or its time of modification has changed since the last check.
ROME_JAX_VERIFY=1 checks all files whenever they are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rome_jax.files.artifacts import cache_directory, write_whole

VERIFY = "ROME_JAX_VERIFY"  # environment variable
# In the metadata of a safetensors file, a JSON object of checksums by tensor name; in a JSON file, its own checksum.
METADATA_KEY = "rome_jax.crc32"
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


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of a JSON file with its checksum as the last entry.

    Args:
      content: JSON values by name.

    Example:
      >>> with_checksum({"case_id": 7})
      {'case_id': 7, 'rome_jax.crc32': 'c1f62845'}
    """
    plain = {name: value for name, value in content.items() if name != METADATA_KEY}
    read_back = json.loads(json.dumps(plain))  # names become texts, tuples become lists
    text = json.dumps(read_back, sort_keys=True)
    return plain | {METADATA_KEY: f"{zlib.crc32(text.encode()):08x}"}


def has_damage(content: Mapping[str, Any]) -> bool:
    """Returns whether the content of a JSON file has another checksum than the one in it; False if it has none.

    Example:
      >>> has_damage(with_checksum({"case_id": 7}) | {"case_id": 8})
      True
    """
    recorded = content.get(METADATA_KEY)
    return recorded is not None and recorded != with_checksum(content)[METADATA_KEY]


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
