"""References for generated texts: texts by attribute, and the TF-IDF vocabulary.

The published reference texts are one JSON list of 926 MB. It is never loaded as a whole: one pass finds where its
elements begin and end, and afterwards only the requested elements are read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from typing_extensions import TypedDict

from rome_jax.data import published
from rome_jax.factworld.facts import make_world
from rome_jax.factworld.records import attribute_snippets, biographies, tfidf_vocabulary
from rome_jax.files import formats
from rome_jax.files.artifacts import cache_directory, write_whole
from rome_jax.files.checked import check, shown
from rome_jax.files.progress import tqdm
from rome_jax.files.records import BOM, DataError, Text, find, parse_json, read_json

_CHUNK = 1 << 22  # bytes
_HEAD = 64  # bytes by which other formats are recognized
# A string, a bracket, or the quote of a string that does not end in this chunk. In UTF-8 these bytes have no other use.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{}]', re.DOTALL)
_LIST = re.compile(rb"\[(x(,x)*)?\]")  # the outline of a list of objects

Attribute = tuple[str | None, str | None]  # ids of a relation and of its target


@dataclasses.dataclass(frozen=True)
class Snippet:
    """A text about a subject that has an attribute.

    Attributes:
      name: Name of the subject.
      text: The text.
    """

    name: str
    text: str


@dataclasses.dataclass(frozen=True, eq=False)
class AttributeSnippets:
    """Reference texts by relation and target, in memory or in a file; created by `from_groups` and `open`.

    Attributes:
      places: The places of the groups of snippets, by attribute.
      read: Returns the snippets at a place.
    """

    places: Mapping[Attribute, Sequence[Any]] = dataclasses.field(repr=False)
    read: Callable[[Any], tuple[Snippet, ...]] = dataclasses.field(repr=False)

    def texts(self, relation_id: str | None, target_id: str | None) -> tuple[Snippet, ...]:
        """Returns the snippets of an attribute in the order of the file; an unknown attribute has none.

        Snippets in a file are read at each call.

        Args:
          relation_id, target_id: Ids of the relation and of its target; None is unknown.

        Raises:
          DataError: If the file has changed since it was opened.
        """
        places = self.places.get((relation_id, target_id), ())
        return tuple(snippet for place in places for snippet in self.read(place))

    @classmethod
    def from_groups(cls, groups: Sequence[Any]) -> AttributeSnippets:
        """Creates snippets from parsed groups, which are kept in memory.

        Args:
          groups: Objects of the form {"relation_id", "target_id", "samples": [{"name", "text"}, ...]}.

        Raises:
          DataError: If a group is malformed; the message names its index and field.

        Example:
          >>> group = {"relation_id": "P30", "target_id": "Q46"}
          >>> group["samples"] = [{"name": "Rome", "text": "Rome is old."}]
          >>> AttributeSnippets.from_groups([group]).texts("P30", "Q46")[0].name
          'Rome'
        """
        places: defaultdict[Attribute, list[Any]] = defaultdict(list)
        for index, group in enumerate(groups):
            attribute, snippets = _parse_group(group, f"group {index}")
            places[attribute].append(snippets)
        return cls(dict(places), tuple)

    @classmethod
    def open(cls, path: str | Path, *, chunk_size: int = _CHUNK) -> AttributeSnippets:
        """Opens a JSON list of groups without loading it.

        The first call reads the whole file once, with a progress bar, and writes an index to the folder `dsets` of
        `artifacts.cache_directory()`. Later calls use the index until the size or the time of the file changes.

        Args:
          path: Path of the file.
          chunk_size: Number of bytes read at a time; together with the largest group it determines the memory needed.

        Raises:
          DataError: If the file does not exist, is cut short or not a JSON list, or a group is malformed.

        Example:
          >>> group = {"relation_id": "P30", "target_id": "Q46"}
          >>> group["samples"] = [{"name": "Rome", "text": "Rome is old."}]
          >>> _ = Path("snippets.json").write_text(json.dumps([group]))
          >>> [snippet.text for snippet in AttributeSnippets.open("snippets.json").texts("P30", "Q46")]
          ['Rome is old.']
        """
        path = find(path).resolve()
        if not path.is_file():
            raise DataError(f"{path} is not a file: give the path of attribute snippets.")
        status = path.stat()
        key = {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
        digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
        index = cache_directory() / "dsets" / f"{path.name}.{digest}.index"
        elements = _read_index(index, key)
        if elements is None:
            elements = list(_scan(path, chunk_size))
            # Without a cache folder, the next call reads the whole file again.
            with contextlib.suppress(OSError):
                write_whole(index, json.dumps({"file": key, "elements": elements}).encode())
        places: defaultdict[Attribute, list[Any]] = defaultdict(list)
        for relation_id, target_id, start, stop in elements:
            places[relation_id, target_id].append((start, stop))
        return cls(dict(places), _FileReader(path))


@dataclasses.dataclass(frozen=True)
class _FileReader:
    """Reads the snippets of the group at bytes [start, stop) of a file.

    Attributes:
      path: Path of the file.
    """

    path: Path

    def __call__(self, place: tuple[int, int]) -> tuple[Snippet, ...]:
        try:
            with open(self.path, "rb") as file:
                return _read_group(file, *place)[1]
        except DataError as error:
            raise DataError(
                f"{self.path} has changed while it was in use: start the program again."
            ) from error


def missing_downloads(
    snippets_path: str | Path | None, tfidf_path: str | Path | None, factworld: bool = False
) -> list[published.PublishedFile]:
    """Returns the files that `load_snippets` and `load_tfidf` would download.

    Args:
      snippets_path, tfidf_path, factworld: As in these functions.

    Example:
      >>> missing_downloads(None, None, factworld=True)
      []
    """
    if factworld:
        return []
    files = [] if snippets_path is not None else [published.ATTRIBUTE_SNIPPETS]
    files += [] if tfidf_path is not None else [published.IDF, published.TFIDF_VOCABULARY]
    return [file for file in files if not published.path_of(file).exists()]


def load_snippets(path: str | Path | None = None, factworld: bool = False) -> AttributeSnippets:
    """Loads reference texts: from `path` if given, else factworld's own or the published file.

    Args:
      path: A JSON file in the layout of attribute_snippets.json.
      factworld: Whether to use factworld's biographies instead of the published file.

    Raises:
      DataError: If a file cannot be read.
      DownloadError: If the published file cannot be downloaded.

    Example:
      >>> len(load_snippets(factworld=True).places) > 100
      True
    """
    if path is None and factworld:
        return AttributeSnippets.from_groups(attribute_snippets(make_world(), 0))
    if path is None:
        path = published.fetch(published.ATTRIBUTE_SNIPPETS)
    return AttributeSnippets.open(path)


def load_tfidf(
    path: str | Path | None = None, factworld: bool = False
) -> tuple[np.ndarray, dict[str, int]]:
    """Loads inverse document frequencies: from `path` if given, else factworld's own or the published ones.

    Args:
      path: A folder with idf.npy and tfidf_vocab.json.
      factworld: Whether to use those of factworld's biographies instead of the published ones.

    Returns:
      The frequencies, float64 [V], and the column of each word.

    Raises:
      DataError: If a file cannot be read, or the two files do not belong together.
      DownloadError: If the published files cannot be downloaded.

    Example:
      >>> idf, vocabulary = load_tfidf(factworld=True)
      >>> len(idf) == len(vocabulary)
      True
    """
    if path is None and factworld:
        return tfidf_vocabulary(biographies(make_world(), 0))
    if path is None:
        idf_path = published.fetch(published.IDF)
        vocabulary_path = published.fetch(published.TFIDF_VOCABULARY)
    else:
        folder = find(path)
        idf_path = folder / published.IDF.name
        vocabulary_path = folder / published.TFIDF_VOCABULARY.name
    vocabulary, _ = read_json(vocabulary_path)
    try:
        # A memory-mapped array has its shape checked against the size of the file.
        idf = np.load(find(idf_path), mmap_mode="r")
        if not isinstance(idf, np.ndarray):
            raise ValueError("it is an archive")
    except DataError:
        raise
    except Exception as error:  # a damaged header can raise anything
        raise DataError(f"{idf_path} is not an array of NumPy: download it again.") from error
    if not (idf.ndim == 1 and np.issubdtype(idf.dtype, np.floating) and np.isfinite(idf).all()):
        raise DataError(
            f"{idf_path} holds {idf.dtype} {list(idf.shape)}: it must be finite floats [V]."
        )
    columns = check(dict[str, int], vocabulary, str(vocabulary_path), error=DataError)
    if sorted(columns.values()) != list(range(len(idf))):
        raise DataError(
            f"{vocabulary_path} and {idf_path} do not belong together: the words' columns must be 0 to "
            f"{len(idf) - 1}, each once; download both again."
        )
    return np.array(idf, np.float64), columns


class _Sample(TypedDict):
    """A text about a subject; one blank text among many is no reason to refuse the file."""

    name: str
    text: str


class _Group(TypedDict):
    """The texts of an attribute."""

    relation_id: Text
    target_id: Text
    samples: list[_Sample]


def _parse_group(group: Any, name: str) -> tuple[tuple[str, str], tuple[Snippet, ...]]:
    """Parses a group; returns its attribute and its snippets."""
    fields = check(_Group, group, name, error=DataError)
    snippets = tuple(Snippet(one["name"], one["text"]) for one in fields["samples"])
    return (fields["relation_id"], fields["target_id"]), snippets


def _read_group(
    file: BinaryIO, start: int, stop: int
) -> tuple[tuple[str, str], tuple[Snippet, ...]]:
    """Reads and parses the group at bytes [start, stop)."""
    file.seek(start)
    name = f"the group at byte {start}"
    return _parse_group(parse_json(file.read(stop - start), name), name)


class _Index(TypedDict):
    """Where the groups of a file begin and end: relation, target, first byte, and the byte after the last."""

    file: dict[str, Any]
    elements: list[tuple[str, str, int, int]]


def _read_index(path: Path, key: dict[str, Any]) -> list[tuple[str, str, int, int]] | None:
    """Returns the elements of an index, or None if it is missing, damaged or belongs to another file."""
    try:
        index = check(_Index, parse_json(path.read_bytes(), str(path)), str(path), error=DataError)
    except (OSError, DataError):
        return None
    return index["elements"] if index["file"] == key else None


def _scan(path: Path, chunk_size: int) -> Iterator[tuple[str, str, int, int]]:
    """Yields the attribute and the byte range of each group of a file."""
    size = os.path.getsize(path)
    bar = tqdm(total=size, unit="B", unit_scale=True, desc=f"indexing {path.name}", delay=1)
    with open(path, "rb") as scanned, open(path, "rb") as parsed, bar:
        head = scanned.read(_HEAD)
        if what := formats.foreign(head):
            raise DataError(f"{path} {what}")
        scanned.seek(len(BOM) if head.startswith(BOM) else 0)
        try:
            for start, stop in _elements(scanned, chunk_size):
                attribute, _ = _read_group(parsed, start, stop)
                yield *attribute, start, stop
                bar.update(stop - bar.n)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


def _elements(file: BinaryIO, chunk_size: int) -> Iterator[tuple[int, int]]:
    """Yields the byte ranges [start, stop) of the objects in a JSON list, by counting brackets outside of strings.

    The file is read from its present position. The outline is what is left of the list without white space and with
    "x" for each object; anything else in it would not be read, so it is refused.
    """
    depth = start = 0
    rest, offset = b"", file.tell()  # the unfinished end of the previous chunk, and its position
    outline = bytearray()
    while block := file.read(chunk_size):
        chunk = rest + block
        used, outside = len(chunk), 0
        for match in _TOKEN.finditer(chunk):
            token = match[0]
            if depth <= 1:
                outline += _separators(chunk[outside : match.start()])
                outside = match.end()
            if token.startswith(b'"'):
                if depth <= 1:
                    raise _not_a_list(token)
                if token == b'"':
                    used = match.start()
                    break
            elif token in (b"{", b"["):
                if depth == 0 and token == b"{":
                    raise _not_a_list(token)
                if depth == 0:
                    outline += token
                elif depth == 1:
                    start = offset + match.start()
                depth += 1
            else:
                depth -= 1
                if depth == 1:
                    yield start, offset + match.end()
                    outline += b"x"
                    outside = match.end()
                elif depth < 1:
                    outline += token
                    depth = 0
        if depth <= 1:
            outline += _separators(chunk[outside:used])
        rest, offset = chunk[used:], offset + used
    if rest or depth or not outline:
        raise DataError(
            f"it ends early, after {offset + len(rest)} bytes: remove it and download it again."
        )
    if not _LIST.fullmatch(outline):
        raise DataError(
            "it is not a JSON list of objects with one comma between any two: correct it."
        )


def _separators(text: bytes) -> bytes:
    """Returns the commas of the text between two objects, in which nothing else may be but white space."""
    commas = text.translate(None, b" \t\r\n")
    if commas.strip(b","):
        raise _not_a_list(commas.strip(b","))
    return commas


def _not_a_list(text: bytes) -> DataError:
    """Builds the error for something in a file that is not an object of its list."""
    return DataError(
        f"it is not a JSON list of objects, because it has {shown(text[:40].decode(errors='replace'))} outside of "
        "them: give the file of attribute snippets."
    )
