"""Small .npz files from outside: read whole, without pickles, and refused in one sentence if they are damaged."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from rome_jax.files.places import check_path
from rome_jax.files.system_errors import explaining

_MOST = 1 << 28  # bytes of all arrays together
_MAGIC = b"PK\x03\x04"


def read_npz(path: str | Path, what: str, remedy: str) -> dict[str, np.ndarray]:
    """Reads all arrays of a small .npz file.

    Args:
      path: The file.
      what: What it should be, for errors, such as "a trace".
      remedy: What to do about a damaged file, as an imperative.

    Returns:
      The arrays by name. None of them holds Python objects.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If the file is damaged, is of another format, holds pickles, or unpacks to more than 256 MiB.

    Example:
      >>> np.savez("numbers.npz", one=np.arange(3))
      >>> read_npz("numbers.npz", "a table", "make it again")["one"].tolist()
      [0, 1, 2]
    """
    path = Path(check_path(path))
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: give the path of {what}.")
    with explaining(path, reading=True), open(path, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{path} is damaged or is not {what} (no .npz file): {remedy}.")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        size = sum(member.file_size for member in members)
        if size > _MOST:
            raise ValueError(f"it unpacks to {size:,} bytes")
        if len({member.filename for member in members}) < len(members):
            raise ValueError("two of its arrays have the same name")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _numeric(name, arrays[name]) for name in arrays.files}
    except Exception as error:  # a damaged file can raise anything
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is damaged or is not {what} ({why[:160]}): {remedy}.") from error


def _numeric(name: str, array: np.ndarray | bytes) -> np.ndarray:
    """Refuses members that are no arrays, which numpy returns as bytes."""
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name} is no array")
    return array
