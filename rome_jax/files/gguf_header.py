"""The header of a GGUF file, the format of llama.cpp: its metadata, and where its tensors are.

The package `gguf` reads headers too, but takes seconds for the vocabulary of one model, and programs open the file of a
model before anything else. The tensors themselves are dequantized by the package; see `rome_jax.models.gguf_files`.
"""

from __future__ import annotations

import dataclasses
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rome_jax.files.safetensors_io import CheckpointError

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
# Codes of the struct module for the format's types of numbers, by their ids.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_NUMBERS |= {12: "d"}
_TEXT, _LIST = 8, 9
_ALIGNMENT = "general.alignment"
_MAX_DIMENSIONS = 4


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """What a header says about a tensor.

    Attributes:
      name: Its name.
      shape: Its shape in the order of numpy, the rows first.
      kind: The format's id of how its numbers are stored.
      offset: Offset of its first byte in the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclasses.dataclass(frozen=True)
class Header:
    """The header of one file.

    Attributes:
      path: The file.
      size: Its size in bytes.
      metadata: Numbers, texts, and lists of either, by key.
      tensors: The tensors in the order of the file.
    """

    path: Path
    size: int
    metadata: Mapping[str, Any]
    tensors: tuple[TensorEntry, ...]


def read_header(path: Path) -> Header:
    """Reads the header of a file. Tensors are not read.

    Raises:
      CheckpointError: If the file is not a GGUF file of version 2 or 3, or its header is damaged.
      OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise CheckpointError(f"{path} is not a GGUF file: download or copy it again.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _parse(path, _Cursor(content, len(_MAGIC)))
            except (struct.error, ValueError, KeyError, OverflowError, MemoryError) as error:
                raise CheckpointError(
                    f"{path} has a damaged header ({error}): download or copy it again."
                ) from error


def _parse(path: Path, cursor: _Cursor) -> Header:
    """Parses everything after the magic number.

    Raises:
      ValueError, KeyError, struct.error: If the header is damaged.
    """
    version = cursor.number("I")
    if version not in _VERSIONS:
        raise ValueError(f"version {version} is not supported")
    num_tensors, num_values = cursor.number("Q"), cursor.number("Q")
    metadata = {}
    for _ in range(num_values):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.number("I"))
    entries = []
    for _ in range(num_tensors):
        name, num_dimensions = cursor.text(), cursor.number("I")
        if num_dimensions > _MAX_DIMENSIONS:
            raise ValueError(f"the tensor {name!r} has {num_dimensions} dimensions")
        shape = tuple(cursor.numbers("Q", num_dimensions))[::-1]
        entries.append(TensorEntry(name, shape, cursor.number("I"), cursor.number("Q")))
    alignment = metadata.get(_ALIGNMENT, 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"{_ALIGNMENT} is {alignment!r}")
    start = -(-cursor.position // alignment) * alignment
    placed = tuple(dataclasses.replace(entry, offset=start + entry.offset) for entry in entries)
    return Header(path, len(cursor.content), metadata, placed)


@dataclasses.dataclass
class _Cursor:
    """A position in the content of a file, which moves as values are read. All numbers are little-endian."""

    content: mmap.mmap
    position: int

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        """Reads numbers of one type."""
        form = f"<{count}{code}"
        found = struct.unpack_from(form, self.content, self.position)
        self.position += struct.calcsize(form)
        return found

    def number(self, code: str) -> Any:
        """Reads one number."""
        return self.numbers(code, 1)[0]

    def text(self) -> str:
        """Reads a text: its length in bytes, then UTF-8."""
        length = self.number("Q")
        end = self.position + length
        if end > len(self.content):
            raise ValueError(f"a text of {length} bytes goes beyond the end of the file")
        found = self.content[self.position : end].decode()
        self.position = end
        return found

    def value(self, kind: int) -> Any:
        """Reads a value of any type but a list of lists."""
        if kind == _TEXT:
            return self.text()
        if kind != _LIST:
            return self.number(_NUMBERS[kind])
        inner, count = self.number("I"), self.number("Q")
        if inner == _TEXT:
            return [self.text() for _ in range(count)]
        return list(self.numbers(_NUMBERS[inner], count))
