"""The data files that the authors of ROME publish (Meng et al. 2022), and how records of JSON are read and checked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from rome_jax.data.request import SLOT
from rome_jax.files.artifacts import cache_directory, download

ROOT = "https://rome.baulab.info/data/dsets/"
PUBLISHED = "published"  # instead of a path: download the file
_LARGE = 10**8  # bytes; hashing more takes seconds


class DataError(ValueError):
    """A data file that cannot be read, or a record of it that is not what it should be."""


@dataclasses.dataclass(frozen=True)
class PublishedFile:
    """A file under `ROOT`.

    Attributes:
      name: of the file.
      size: in bytes, if known.
      sha256: of its content, if known.
    """

    name: str
    size: int | None = None
    sha256: str | None = None


COUNTERFACT = PublishedFile(
    "counterfact.json",
    45_108_470,
    "d017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f",
)
ZSRE = PublishedFile("zsre_mend_eval.json")
KNOWN_FACTS = PublishedFile("known_1000.json")
ATTRIBUTE_SNIPPETS = PublishedFile(
    "attribute_snippets.json",
    926_285_719,
    "10b5c1cd105e54d5983c72de1b45bfc88bc7af786f7b99def2557886ff23385b",
)
IDF = PublishedFile(
    "idf.npy",
    11_042_168,
    "c073d642589d4ac6432f467230329b36364a01e72de63a77a3624b745b923dda",
)
TFIDF_VOCABULARY = PublishedFile(
    "tfidf_vocab.json",
    31_639_072,
    "8a78c4f20d8d85dadfd14e283d71af255482ff18aa0eb8a81716024c05ff888b",
)


def fetch(file: PublishedFile) -> Path:
    """Finds a published file in the cache, or downloads it there.

    A download is checked by size and SHA-256 as far as they are known. A file that is there is checked again, but a
    large one by its size alone.

    Returns:
      Its path, in the folder `dsets` of `artifacts.cache_directory()`.

    Raises:
      DownloadError: it cannot be fetched, or is not what it should be.

    Example:
      >>> fetch(COUNTERFACT).name  # doctest: +SKIP
      'counterfact.json'
    """
    path = cache_directory() / "dsets" / file.name
    skip_hash = path.exists() and path.stat().st_size > _LARGE
    sha256 = None if skip_hash else file.sha256
    return download(ROOT + file.name, path, size=file.size, sha256=sha256)


def read_json(path: Path) -> tuple[Any, str]:
    """Reads a JSON file.

    Returns:
      What it holds, and the SHA-256 of its bytes.

    Raises:
      DataError: there is no such file, or it is not JSON.

    Example:
      >>> records, sha256 = read_json(Path("counterfact.json"))  # doctest: +SKIP
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}: give the path of one.")
    content = path.read_bytes()
    try:
        return json.loads(content), hashlib.sha256(content).hexdigest()
    except ValueError as error:  # no JSON, or no UTF-8
        raise DataError(
            f"{path} is not JSON ({error}): it may be cut short; mend it or download it again."
        ) from error


@dataclasses.dataclass(frozen=True)
class Fields:
    """A record of a JSON file, read field by field.

    Every method raises a DataError that names the record, the field and its value.

    Attributes:
      values: the record.
      record: how errors name it.
      above: what leads to it within the record, as errors name it.

    Example:
      >>> Fields({"subject": "Rome"}, "case 3").text("subject")
      'Rome'
    """

    values: dict[str, Any]
    record: str
    above: str = ""

    @classmethod
    def of(cls, value: Any, record: str, above: str = "") -> Fields:
        """The fields of `value`, which must be an object."""
        if not isinstance(value, dict):
            name = f"{record}: {above.rstrip('.')}" if above else record
            raise DataError(f"{name} is {_shown(value)}; give an object with fields.")
        return cls(value, record, above)

    def error(self, field: str, remedy: str) -> DataError:
        """What to raise for a field of a wrong value."""
        value = _shown(self.values[field])
        return DataError(f"{self.record}: {self.above}{field} is {value}; {remedy}.")

    def text(self, field: str, *, blank: bool = False) -> str:
        """A text that is not blank, unless it may be."""
        self._require(field)
        value = self.values[field]
        if not (_is_text(value) or (blank and isinstance(value, str))):
            raise self.error(field, "give a text" if blank else "give a text that is not empty")
        return value

    def optional_text(self, field: str) -> str | None:
        """The same; None if it is missing or null."""
        return None if self.values.get(field) is None else self.text(field)

    def one_text(self, field: str) -> str:
        """A text, or the only one of a list."""
        self._require(field)
        value = self.values[field]
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if not _is_text(value):
            raise self.error(field, "give a text that is not empty, or a list of one")
        return value

    def template(self, field: str, subject: str, *, slot: bool) -> str:
        """A text with the first occurrence of the subject as `{}`; with `slot`, `{}` may stand there already."""
        text = self.text(field)
        if slot and SLOT in text:
            return text
        if subject not in text:
            raise self.error(field, f"give a text with the subject, {subject!r}, in it")
        return text.replace(subject, SLOT, 1)

    def texts(self, field: str, *, optional: bool = False) -> tuple[str, ...]:
        """A list of texts that are not blank, maybe an empty one; if it is optional, it may be missing or null."""
        texts = self._list(field, optional)
        if not all(map(_is_text, texts)):
            raise self.error(field, "give a list of texts that are not empty")
        return tuple(texts)

    def object(self, field: str) -> Fields:
        """An object with fields of its own."""
        self._require(field)
        return Fields.of(self.values[field], self.record, f"{self.above}{field}.")

    def objects(self, field: str, *, optional: bool = False) -> list[Fields]:
        """A list of objects, maybe an empty one; if it is optional, it may be missing or null."""
        return [
            Fields.of(value, self.record, f"{self.above}{field}[{index}].")
            for index, value in enumerate(self._list(field, optional))
        ]

    def _list(self, field: str, optional: bool) -> list[Any]:
        if optional and self.values.get(field) is None:
            return []
        self._require(field)
        if not isinstance(self.values[field], list):
            raise self.error(field, "give a list")
        return self.values[field]

    def _require(self, field: str) -> None:
        if field not in self.values:
            found = ", ".join(sorted(self.values)) or "no field"
            raise DataError(f"{self.record}: {self.above}{field} is missing; there is {found}.")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _shown(value: Any) -> str:
    """A value as an error shows it, not longer than a line."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
