"""Safetensors files, one tensor at a time: memory-mapped reading, streamed and atomic writing.

The format is eight bytes of header length, a JSON header, then the tensors. The `safetensors` package returns copies
and writes only tensors that are all in memory. That is too much for a model that fills half of a machine's memory.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import ml_dtypes
import numpy as np
import pydantic
import typing_extensions

from rome_jax.files import checksums
from rome_jax.files.artifacts import remove_leftovers, replacing
from rome_jax.files.checked import check
from rome_jax.files.records import parse_json
from rome_jax.files.system_errors import explaining

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


class _Entry(typing_extensions.TypedDict):
    """What a header says about a tensor."""

    dtype: str
    shape: list[Annotated[int, pydantic.Field(ge=0)]]
    data_offsets: tuple[int, int]


class CheckpointError(ValueError):
    """A checkpoint is damaged, incomplete, or does not fit the model that its `config.json` describes."""


class CheckpointWarning(UserWarning):
    """A checkpoint holds tensors that are ignored."""


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


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """A file whose tensors have not been read yet.

    Attributes:
      path: The file.
      tensors: The tensors by name.
      metadata: The strings in its header.
      verified: Whether the file has checksums, which were right when it was last checked. Files of other programs, and
        those that rome_jax wrote before it had checksums, have none.
    """

    path: Path
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]
    verified: bool


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Finds the tensors of a file by name; see `open_file`."""
    return dict(open_file(path).tensors)


def open_file(path: Path) -> StoredFile:
    """Reads the header of a file, and compares its tensors with their checksums if that is due.

    The header is checked against the size of the file. `rome_jax.files.checksums` says when checksums are compared.

    Raises:
      FileNotFoundError: If there is no such file.
      CheckpointError: If the file is not safetensors, is truncated or damaged, or has a dtype that numpy does not
        support.

    Example:
      >>> weight = np.arange(6, dtype=np.float32).reshape(2, 3)
      >>> write(Path("w.safetensors"), {"w": (weight.dtype, weight.shape)}, [weight], {"format": "pt"})
      >>> file = open_file(Path("w.safetensors"))
      >>> file.metadata["format"], file.tensors["w"].shape, file.verified
      ('pt', (2, 3), True)
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: give the path of a safetensors file.")
    header = _header(path)
    try:
        entries = parse_json(header, "header")
    except ValueError as error:
        raise _damaged(path, "its header does not parse") from error
    if not isinstance(entries, dict):
        raise _damaged(path, "its header does not parse")
    name = f"{path} is truncated or damaged, download or copy it again: header"
    metadata = check(
        dict[str, str], entries.pop("__metadata__", None) or {}, name, error=CheckpointError
    )
    checked = check(dict[str, _Entry], entries, name, error=CheckpointError)
    tensors = _tensors(path, checked, 8 + len(header))
    return StoredFile(path, tensors, metadata, _verify(path, tensors, metadata))


def _header(path: Path) -> bytes:
    """Reads the header of a file."""
    size = path.stat().st_size
    with explaining(path, reading=True), open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            file.seek(0)
            if file.read(23) == b"version https://git-lfs":
                raise CheckpointError(
                    f"{path} is a Git LFS pointer instead of the weights: run `git lfs pull` in its directory."
                )
            raise _damaged(path, "its header is longer than the file")
        return file.read(length)


def _tensors(path: Path, entries: Mapping[str, _Entry], start: int) -> dict[str, StoredTensor]:
    """Finds the tensors, which begin after `start` bytes. They fill the file, without overlaps and gaps."""
    size, place, tensors = path.stat().st_size - start, 0, {}
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        if entry["dtype"] not in _DTYPES:
            raise CheckpointError(
                f"{path} holds {name} as {entry['dtype']}, which is not supported: save the checkpoint as "
                "float32, float16 or bfloat16."
            )
        dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise _damaged(path, f"the sizes of {name} disagree")
        if end > size:
            raise _damaged(path, f"{name} ends beyond the end of the file")
        if begin != place:
            raise _damaged(path, f"{name} overlaps another tensor, or there is a gap before it")
        place = end
        tensors[name] = StoredTensor(path, name, dtype, shape, start + begin)
    if place != size:
        raise _damaged(path, "it has bytes that belong to no tensor")
    return {name: tensors[name] for name in entries}


def _verify(path: Path, tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> bool:
    """Compares tensors with their checksums if that is due, and returns whether the file has checksums."""
    if checksums.METADATA_KEY not in metadata:
        return False
    if not checksums.needs_check(path):
        return True
    try:
        recorded = parse_json(metadata[checksums.METADATA_KEY], "checksums")
    except ValueError as error:
        raise _damaged(path, "its checksums do not parse") from error
    found = {name: checksums.checksum(tensor.read()) for name, tensor in tensors.items()}
    if found != recorded:
        raise _damaged(path, "its tensors do not have the checksums in its header")
    checksums.remember_check(path)
    return True


def _damaged(path: Path, why: str) -> CheckpointError:
    """Builds the error for a truncated or damaged file."""
    return CheckpointError(f"{path} is truncated or damaged ({why}): download or copy it again.")


def write(
    path: Path,
    specs: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    tensors: Iterable[np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a file tensor by tensor, so that readers see all of it or nothing; see `artifacts.replacing`.

    Temporary files that killed processes left in its folder are removed.

    Args:
      path: The file, which is replaced if it exists. Missing folders are created.
      specs: Dtype and shape of every tensor by name, in the order of `tensors`.
      tensors: The values; they are consumed one at a time.
      metadata: Strings for the header; `transformers` expects `{"format": "pt"}`.

    Raises:
      CheckpointError: If the format does not support a dtype.
      ValueError: If a tensor does not have its announced dtype and shape.
      OSError: If the file cannot be written; the message names it and a remedy.

    Example:
      >>> weight = np.arange(6, dtype=np.float32).reshape(2, 3)
      >>> write(Path("w.safetensors"), {"w": (weight.dtype, weight.shape)}, [weight])
      >>> read_header(Path("w.safetensors"))["w"].read().tolist()
      [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata or {})}
    offset = 0
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
    remove_leftovers(path.parent)
    with replacing(path) as file:
        # The checksums are known after the tensors, and stand before them. A pipe cannot go back, and gets none.
        found = dict.fromkeys(specs, "0" * 8) if file.seekable() else {}
        file.write(_encode(header, found))
        for (name, (dtype, shape)), tensor in zip(specs.items(), tensors, strict=True):
            if tensor.shape != tuple(shape) or tensor.dtype != dtype:
                raise ValueError(
                    f"{name} is {tensor.dtype} {tensor.shape}, announced as {dtype} {tuple(shape)}."
                )
            tensor = np.ascontiguousarray(tensor)
            file.write(tensor.reshape(-1).view(np.uint8).data)
            if found:
                found[name] = checksums.checksum(tensor)
        if found:
            file.seek(0)
            file.write(_encode(header, found))
    if found:
        checksums.remember_check(path)


def _encode(header: Mapping[str, Any], found: Mapping[str, str]) -> bytes:
    """Encodes the header with the checksums of the tensors, and its length, which does not depend on their values."""
    metadata = dict(header["__metadata__"])
    if found:
        metadata[checksums.METADATA_KEY] = json.dumps(found, separators=(",", ":"))
    rest = {name: entry for name, entry in header.items() if name != "__metadata__"}
    encoded = json.dumps({"__metadata__": metadata} | rest, separators=(",", ":")).encode()
    # Readers memory-map the tensors, which have to be aligned.
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded


def damaged(path: Path, error: Exception) -> CheckpointError:
    """Builds the error for a checkpoint that cannot be read because of another error."""
    why = " ".join(str(error).split())[:160]  # Orbax's errors can be pages long
    return CheckpointError(
        f"{path} is damaged or incomplete ({why or type(error).__name__}): copy or save it again."
    )
