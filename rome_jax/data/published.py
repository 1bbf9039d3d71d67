"""The data files published by the authors of ROME (Meng et al. 2022), and the checked reading of JSON records."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from rome_jax.data.request import SLOT
from rome_jax.files.artifacts import cache_directory, download

ROOT = "https://rome.baulab.info/data/dsets/"
PUBLISHED = "published"  # given instead of a path to download the file
_LARGE = 10**8  # bytes; hashing more takes seconds


class DataError(ValueError):
    """A data file cannot be read, or one of its records is malformed."""


@dataclasses.dataclass(frozen=True)
class PublishedFile:
    """A file under `ROOT`.

    Attributes:
      name: Name of the file.
      size: Size in bytes, or None if unknown.
      sha256: SHA-256 of the content, or None if unknown.
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
    """Finds a published file in the cache, or downloads it to the cache.

    A download is checked by size and SHA-256 as far as they are known. A file in the cache is checked again, a large
    one only by its size.

    Args:
      file: The published file.

    Returns:
      The path of the file, in the folder `dsets` of `artifacts.cache_directory()`.

    Raises:
      DownloadError: If the file cannot be downloaded, or has the wrong size or content.

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

    Args:
      path: The file.

    Returns:
      The content, and the SHA-256 of its bytes.

    Raises:
      DataError: If there is no such file, or it is not JSON.

    Example:
      >>> _ = Path("records.json").write_text('[{"subject": "Rome"}]')
      >>> records, sha256 = read_json(Path("records.json"))
      >>> records, len(sha256)
      ([{'subject': 'Rome'}], 64)
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}: give the path of a file.")
    content = path.read_bytes()
    try:
        return json.loads(content), hashlib.sha256(content).hexdigest()
    except ValueError as error:  # not JSON, or not UTF-8
        raise DataError(
            f"{path} is not JSON ({error}): it may be truncated; correct it or download it again."
        ) from error


@dataclasses.dataclass(frozen=True)
class Fields:
    """A record of a JSON file, read field by field.

    Every method raises a DataError that names the record, the field and its value if the field is not as requested.

    Attributes:
      values: The record.
      record: Name of the record in errors.
      above: Path to the object within the record, as errors name it; empty for the record itself.

    Example:
      >>> Fields({"subject": "Rome"}, "case 3").text("subject")
      'Rome'
    """

    values: dict[str, Any]
    record: str
    above: str = ""

    @classmethod
    def of(cls, value: Any, record: str, above: str = "") -> Fields:
        """Returns the fields of `value`, which must be an object."""
        if not isinstance(value, dict):
            name = f"{record}: {above.rstrip('.')}" if above else record
            raise DataError(f"{name} is {_shown(value)}; give an object with fields.")
        return cls(value, record, above)

    def error(self, field: str, remedy: str) -> DataError:
        """Builds the error for a field with a wrong value."""
        value = _shown(self.values[field])
        return DataError(f"{self.record}: {self.above}{field} is {value}; {remedy}.")

    def text(self, field: str, *, blank: bool = False) -> str:
        """Reads a text, which must not be blank unless `blank` allows it."""
        self._require(field)
        value = self.values[field]
        if not (_is_text(value) or (blank and isinstance(value, str))):
            raise self.error(field, "give a text" if blank else "give a text that is not empty")
        return value

    def optional_text(self, field: str) -> str | None:
        """Reads a text that is not blank, or returns None if it is missing or null."""
        return None if self.values.get(field) is None else self.text(field)

    def one_text(self, field: str) -> str:
        """Reads a text, or the only text of a list."""
        self._require(field)
        value = self.values[field]
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if not _is_text(value):
            raise self.error(field, "give a text that is not empty, or a list of one")
        return value

    def template(self, field: str, subject: str, *, slot: bool) -> str:
        """Reads a text with the subject's first occurrence replaced by `{}`, which with `slot` it may already have."""
        text = self.text(field)
        if slot and SLOT in text:
            return text
        if subject not in text:
            raise self.error(field, f"give a text with the subject, {subject!r}, in it")
        return text.replace(subject, SLOT, 1)

    def texts(self, field: str, *, optional: bool = False) -> tuple[str, ...]:
        """Reads a list of texts that are not blank; the list may be empty or, if `optional`, missing or null."""
        texts = self._list(field, optional)
        if not all(map(_is_text, texts)):
            raise self.error(field, "give a list of texts that are not empty")
        return tuple(texts)

    def object(self, field: str) -> Fields:
        """Reads an object with fields of its own."""
        self._require(field)
        return Fields.of(self.values[field], self.record, f"{self.above}{field}.")

    def objects(self, field: str, *, optional: bool = False) -> list[Fields]:
        """Reads a list of objects; the list may be empty or, if `optional`, missing or null."""
        return [
            Fields.of(value, self.record, f"{self.above}{field}[{index}].")
            for index, value in enumerate(self._list(field, optional))
        ]

    def _list(self, field: str, optional: bool) -> list[Any]:
        """Reads a list; if `optional`, a missing or null one is empty."""
        if optional and self.values.get(field) is None:
            return []
        self._require(field)
        if not isinstance(self.values[field], list):
            raise self.error(field, "give a list")
        return self.values[field]

    def _require(self, field: str) -> None:
        """Raises a DataError if a field is missing."""
        if field not in self.values:
            found = ", ".join(sorted(self.values)) or "no field"
            raise DataError(f"{self.record}: {self.above}{field} is missing; there is {found}.")


def _is_text(value: Any) -> bool:
    """Returns whether a value is a text that is not blank."""
    return isinstance(value, str) and bool(value.strip())


def _shown(value: Any) -> str:
    """Shows a value in an error, on at most one line."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
