"""Safetensors files, one tensor at a time: memory-mapped reading, streamed and atomic writing.

The format is eight bytes of header length, a JSON header, then the tensors. The `safetensors` package returns copies
and writes only tensors that are all in memory. That is too much for a model that fills half of a machine's memory.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 100_000_000  # bytes, the format's own limit


class CheckpointError(ValueError):
    """A checkpoint is damaged, incomplete, or does not fit the model that its `config.json` describes."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file that has not been read yet.

    Attributes:
      path: The file.
      name: Name of the tensor in the file.
      dtype: Type of the tensor.
      shape: Shape of the tensor.
      offset: Offset of its first byte in the file.
    """

    path: Path
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    def read(self) -> np.ndarray:
        """Returns the tensor as a read-only view of the memory-mapped file, which takes no memory of the process."""
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        raw = np.memmap(
            self.path, np.uint8, "r", self.offset, math.prod(self.shape) * self.dtype.itemsize
        )
        tensor = np.asarray(raw).view(self.dtype).reshape(self.shape)
        return tensor if tensor.flags.aligned else tensor.copy()


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Finds the tensors of a file by name. Only the header is read, and checked against the size of the file.

    Raises:
      CheckpointError: If the file is not safetensors, is truncated, or has a dtype that numpy does not support.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            file.seek(0)
            if file.read(23) == b"version https://git-lfs":
                raise CheckpointError(
                    f"{path} is a Git LFS pointer instead of the weights: run `git lfs pull` in its directory."
                )
            raise _damaged(path, "its header is longer than the file")
        header = file.read(length)
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        tensors = {}
        for name, entry in entries.items():
            begin, end = entry["data_offsets"]
            shape = tuple(entry["shape"])
            if entry["dtype"] not in _DTYPES:
                raise CheckpointError(
                    f"{path} holds {name} as {entry['dtype']}, which is not supported: save the checkpoint as "
                    "float32, float16 or bfloat16."
                )
            dtype = _DTYPES[entry["dtype"]]
            if end - begin != math.prod(shape) * dtype.itemsize:
                raise _damaged(path, f"the sizes of {name} disagree")
            if begin < 0 or 8 + length + end > size:
                raise _damaged(path, f"{name} ends beyond the end of the file")
            tensors[name] = StoredTensor(path, name, dtype, shape, 8 + length + begin)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise _damaged(path, "its header does not parse") from error
    return tensors


def _damaged(path: Path, why: str) -> CheckpointError:
    """Builds the error for a truncated or damaged file."""
    return CheckpointError(f"{path} is truncated or damaged ({why}): download or copy it again.")


def write(
    path: Path,
    specs: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    tensors: Iterable[np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a file tensor by tensor under a temporary name and then renames it: readers see all of it or nothing.

    Args:
      path: The file, which is replaced if it exists.
      specs: Dtype and shape of every tensor by name, in the order of `tensors`.
      tensors: The values; they are consumed one at a time.
      metadata: Strings for the header; `transformers` expects `{"format": "pt"}`.

    Raises:
      CheckpointError: If the format does not support a dtype.
      ValueError: If a tensor does not have its announced dtype and shape.

    Example:
      >>> weight = np.arange(6, dtype=np.float32).reshape(2, 3)
      >>> write(Path("w.safetensors"), {"w": (weight.dtype, weight.shape)}, [weight])
      >>> read_header(Path("w.safetensors"))["w"].read().tolist()
      [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    """
    header: dict[str, Any] = {}
    offset = 0
    if metadata:
        header["__metadata__"] = dict(metadata)
    for name, (dtype, shape) in specs.items():
        if np.dtype(dtype) not in _NAMES:
            raise CheckpointError(f"{name} has dtype {dtype}, which safetensors files cannot hold.")
        end = offset + math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {
            "dtype": _NAMES[np.dtype(dtype)],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    # Readers memory-map the tensors, which have to be aligned.
    encoded += b" " * (-len(encoded) % 8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            for (name, (dtype, shape)), tensor in zip(specs.items(), tensors, strict=True):
                if tensor.shape != tuple(shape) or tensor.dtype != dtype:
                    raise ValueError(
                        f"{name} is {tensor.dtype} {tensor.shape}, announced as {dtype} {tuple(shape)}."
                    )
                file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def damaged(path: Path, error: Exception) -> CheckpointError:
    """Builds the error for a checkpoint that cannot be read because of another error."""
    why = " ".join(str(error).split())[:160]  # Orbax's errors can be pages long
    return CheckpointError(
        f"{path} is damaged or incomplete ({type(error).__name__}: {why}): copy or save it again."
    )
