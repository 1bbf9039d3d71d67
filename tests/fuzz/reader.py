"""The damage to one file: every way in which its format, its fields and its path can be wrong."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from tests.fuzz import damage, examples, tensors, trees
from tests.fuzz.cases import Attempt, Case, Expect, Verdict, attempt_call, litter, snapshot

_OF_FORM: dict[str, Callable[[bytes, Reader], Iterator[damage.Damage]]] = {
    "json": lambda content, reader: trees.json_damage(
        json.loads(content), reader.required, reader.typed
    ),
    "yaml": lambda content, reader: trees.yaml_damage(
        yaml.safe_load(content), reader.required, reader.typed
    ),
    "jsonl": lambda content, reader: trees.jsonl_damage(
        [json.loads(line) for line in content.splitlines()], reader.required
    ),
    "safetensors": lambda content, reader: tensors.safetensors_damage(
        content, reader.required, reader.typed
    ),
    "npz": lambda content, reader: tensors.npz_damage(content, reader.required),
    "npy": lambda content, reader: tensors.npy_damage(content),
    "parquet": lambda content, reader: tensors.parquet_damage(examples.write_parquet),
    "text": lambda content, reader: iter(()),
    "opaque": lambda content, reader: iter(()),
}


@dataclasses.dataclass(frozen=True)
class Reader:
    """A function that reads a file.

    Attributes:
      name: Name of the reader.
      area: The part of the library that it belongs to.
      form: Format of the file, a key of `_OF_FORM`; "opaque" gets only damage to bytes and path.
      make: Writes a valid example into an empty folder and returns the path of the file to damage.
      read: Reads the file; called with its path, in the folder.
      required: Patterns of fields that a file must have, of the right type: "*.prompt" in JSON, or arrays in .npz.
      typed: Patterns of fields that may be missing but must not have another type.
      checksum: Whether every changed byte of a tensor must be noticed.
      harmless: Patterns of damages that are no damage for this reader, such as "missing" for a file that is optional.
      names: Further words by which a message may name the file, such as the name of its folder.
      whole: Whether the damage to bytes and paths is tried; not for a reader whose format another one covers.
    """

    name: str
    area: str
    form: str
    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    required: Sequence[str] = ()
    typed: Sequence[str] = ()
    checksum: bool = False
    harmless: Sequence[str] = ()
    names: Sequence[str] = ()
    whole: bool = True

    def cases(self) -> Iterator[Case]:
        """Yields one case per damage, and the undamaged file."""
        content = self.example().read_bytes()
        undamaged = damage.Damage("undamaged", "undamaged", Expect.ACCEPT, lambda path: None)
        found = [undamaged, *_OF_FORM[self.form](content, self)]
        if self.whole:
            found += damage.of_bytes(content, self.form, self.checksum)
            found += [*damage.other_formats(self.form), *damage.other_paths()]
        for one in found:
            harmless = any(fnmatchcase(one.name, pattern) for pattern in self.harmless)
            expect = Expect.EITHER if harmless else one.expect
            run = functools.partial(self.attempt, one)
            yield Case(f"file/{self.name}/{one.name}", f"file: {one.kind}", self.area, expect, run)

    @functools.cached_property
    def _template(self) -> tuple[Path, Path]:
        folder = Path(tempfile.mkdtemp(prefix="rome-jax-fuzz-valid-"))
        return folder, self.make(folder).relative_to(folder)

    def example(self) -> Path:
        """Returns the path of the valid file, which is written once."""
        return self._template[0] / self._template[1]

    def attempt(self, one: damage.Damage, folder: Path) -> Attempt:
        """Reads the file after one damage, in an empty folder."""
        template, relative = self._template
        shutil.copytree(template, folder, dirs_exist_ok=True, symlinks=True)
        path = folder / relative
        one.apply(path)
        before = snapshot(folder)
        attempt = attempt_call(lambda: self.read(path), path.name, path.stem, *self.names)
        if left := litter(before, snapshot(folder)):
            return Attempt(None, Verdict.LITTER, ", ".join(left))
        return attempt
