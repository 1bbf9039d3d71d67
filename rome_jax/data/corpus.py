"""Corpora to collect statistics on, each with a name and a revision: Hugging Face datasets, local files, factworld.

A corpus is a sequence of articles in a fixed order, so that an interrupted run can resume.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rome_jax.files import columnar, extras, formats, records
from rome_jax.files.checked import check, shown
from rome_jax.files.places import check_path

WIKIPEDIA = (
    "wikimedia/wikipedia",
    "20231101.en",
)  # the dataset and configuration that "wikipedia" means
FACTWORLD_DOCUMENTS = 20_000
HUB_ARTICLES = 100_000  # as many as the original reads of Wikipedia
SUFFIXES = (".arrow", ".json", ".jsonl", ".parquet", ".txt")
_KEY_REMEDY = "set text_key to the field of the texts"
_SEPARATORS = {"document": None, "line": "\n", "paragraph": "\n\n"}


class CorpusError(ValueError):
    """A corpus does not exist, cannot be read, or has unexpected content."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Articles in a fixed order.

    Attributes:
      name: Name for people and for file names.
      revision: What determines the articles: a commit, or a SHA-256 of the content.
      size: Approximate number of articles, for progress bars; None if it is unknown.
      read: A function; read(n) yields the articles, beginning with index n.
      default_articles: Number of articles to use by default; None means all.
      recipe: How generated articles are made, as JSON values; empty for texts that exist.
      read_ahead: Number of articles to read before the first are used, at most; small if reading is slow.
    """

    name: str
    revision: str
    size: int | None
    read: Callable[[int], Iterator[str]]
    default_articles: int | None = None
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    read_ahead: int = 1024


def open_corpus(
    name: str,
    *,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    text_key: str = "text",
    sample_by: str = "document",
) -> Corpus:
    """Opens a corpus by its name.

    Args:
      name: "factworld", the corpus of the shipped models; "wikipedia"; a .txt, .json, .jsonl, .parquet or .arrow file;
        a folder of such files; or a dataset on the Hugging Face hub.
      config: Configuration of a dataset on the hub.
      split: Split of a dataset on the hub.
      revision: Branch, tag or commit of a dataset on the hub; None means the main branch.
      text_key: The field of records, tables and datasets that holds the text.
      sample_by: What one article of a .txt file is: the whole "document", a "paragraph" or a "line".

    Returns:
      `Corpus`.

    Raises:
      CorpusError: If there is no such corpus, or it cannot be read.
      MissingPackageError: If a package that is needed to read it is not installed.

    Example:
      >>> Path("articles.txt").write_text("Rome is a city. Paris is a city.")
      32
      >>> list(open_corpus("articles.txt").read(0))
      ['Rome is a city. Paris is a city.']
    """
    name = check(records.Text, name, "name", error=CorpusError)
    config = check(str | None, config, "config", error=CorpusError)
    split = check(str, split, "split", error=CorpusError)
    revision = check(str | None, revision, "revision", error=CorpusError)
    if name == "factworld":
        return factworld()
    if os.path.exists(os.path.expanduser(name)):
        return local(name, text_key=text_key, sample_by=sample_by)
    if Path(name).suffix in SUFFIXES or name.startswith((".", "/", "~")):
        raise CorpusError(f"there is no {shown(name)}: give an existing file or folder.")
    if name == "wikipedia":
        name, config = WIKIPEDIA[0], config or WIKIPEDIA[1]
    return hugging_face(name, config=config, split=split, revision=revision, text_key=text_key)


def factworld(seed: int = 0) -> Corpus:
    """Generates 20,000 documents about the invented world of the shipped models that were not used in training.

    Args:
      seed: Seed of the world; the shipped models were trained on seed 0.

    Returns:
      `Corpus`.

    Example:
      >>> next(factworld().read(0)).endswith(".")
      True
    """
    from rome_jax.factworld.corpus import documents
    from rome_jax.factworld.facts import make_world

    generated = documents(make_world(seed), seed=seed + 2_000_003, count=FACTWORLD_DOCUMENTS)
    texts = [document.text for document in generated]
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    return Corpus("factworld", f"sha256:{digest}", len(texts), lambda first: iter(texts[first:]))


def local(path: str | Path, *, text_key: str = "text", sample_by: str = "document") -> Corpus:
    """Opens a file, or all files in a folder and the folders below it, in the order of their paths.

    The revision is a SHA-256 of all paths and contents, for which the files are read once.

    Args:
      path: A .txt, .json, .jsonl, .parquet or .arrow file, or a folder. What is in a file is decided by its content,
        except that a .txt file is text. JSON may be a list or JSON Lines.
      text_key: As in `open_corpus`.
      sample_by: As in `open_corpus`.

    Returns:
      `Corpus`. Reading it raises a CorpusError at a record that is damaged or has no text.

    Raises:
      CorpusError: If there is no such file or folder, it has no file of a known kind, a file is damaged or has no
        column of texts named `text_key`, or `sample_by` is unknown.

    Example:
      >>> Path("articles.txt").write_text("Rome is a city. Paris is a city.")
      32
      >>> local("articles.txt").size
      1
    """
    path = Path(os.path.expanduser(check_path(path, error=CorpusError)))
    text_key = check(records.Text, text_key, "text_key", error=CorpusError)
    if check(str, sample_by, "sample_by", error=CorpusError) not in _SEPARATORS:
        raise CorpusError(f"sample_by={shown(sample_by)}: give one of {', '.join(_SEPARATORS)}.")
    if not path.exists():
        raise CorpusError(f"there is no {path}: give an existing file or folder.")
    files = _files(path)
    base = path if path.is_dir() else path.parent
    sha, sizes = hashlib.sha256(f"{text_key}\n{sample_by}\n".encode()), []
    for file in files:
        sha.update(f"{file.relative_to(base).as_posix()}\n{file.stat().st_size}\n".encode())
        sizes.append(_hash_and_count(file, sha, text_key, sample_by))
    known = [size for size in sizes if size is not None]
    size = sum(known) if len(known) == len(sizes) else None

    def read(first: int) -> Iterator[str]:
        texts = (text for file in files for text in _articles(file, text_key, sample_by))
        return itertools.islice(texts, first, None)

    name = path.resolve()
    return Corpus(
        name.stem if path.is_file() else name.name, f"sha256:{sha.hexdigest()}", size, read
    )


def _files(path: Path) -> list[Path]:
    """Lists the files of a corpus: a file itself, or those of known kinds in a folder."""
    if path.is_file():
        files = [path]
    else:
        # A folder of `Dataset.save_to_disk` has descriptions in JSON next to its tables.
        files = columnar.saved_files(path, CorpusError) or sorted(
            file for file in path.rglob("*") if file.is_file()
        )
    files = [file for file in files if file.suffix in SUFFIXES]
    if not files:
        raise CorpusError(
            f"{path} holds no {', '.join(SUFFIXES)} files: give texts in one of these formats."
        )
    return files


def _hash_and_count(file: Path, sha: Any, text_key: str, sample_by: str) -> int | None:
    """Adds a file's content to the hash and returns the approximate number of its articles, or None if unknown."""
    lines, head = 0, b""
    with open(file, "rb") as opened:
        while block := opened.read(1 << 20):
            head = head or block
            sha.update(block)
            lines += block.count(b"\n")
    if _is_table(file, head):
        table = columnar.open_table(file, CorpusError)
        table.check_texts(text_key, _KEY_REMEDY)
        return table.num_rows
    if what := formats.foreign(head[: formats.HEAD]):
        raise CorpusError(f"{file} {what}")
    if file.suffix == ".txt":
        return {"document": 1, "line": lines}.get(sample_by)
    return lines if _is_lines(file) else None


def _is_table(file: Path, head: bytes) -> bool:
    """Returns whether a file is read as parquet or arrow."""
    return file.suffix in (".parquet", ".arrow") or columnar.is_columnar(head)


def _is_lines(file: Path) -> bool:
    """Returns whether the first line of a file is a JSON value by itself, so that each line is a record."""
    first = next((line for line in records.read_lines(file, error=CorpusError) if line.strip()), "")
    try:
        return not isinstance(records.parse_json(first, str(file)), list)
    except records.DataError:
        return False


def _articles(file: Path, text_key: str, sample_by: str) -> Iterator[str]:
    """Yields the articles of one file."""
    with open(file, "rb") as opened:
        head = opened.read(formats.HEAD)
    if _is_table(file, head):
        rows = columnar.open_table(file, CorpusError).rows([text_key])
        for number, row in enumerate(rows):
            yield _text_of(row, text_key, f"{file}, row {number}")
    elif file.suffix == ".txt" and sample_by == "line":
        yield from records.read_lines(file, error=CorpusError)
    elif file.suffix == ".txt":
        separator = _SEPARATORS[sample_by]
        text = records.decode(file.read_bytes(), file, error=CorpusError)
        text = text.replace("\r\n", "\n")
        yield from text.split(separator) if separator else [text]
    elif _is_lines(file):
        lines = records.read_lines(file, error=CorpusError)
        for number, record in records.parse_lines(lines, str(file), error=CorpusError):
            yield _text_of(record, text_key, f"{file}, line {number}")
    else:
        for number, record in enumerate(records.read_records(file, error=CorpusError)[0]):
            yield _text_of(record, text_key, f"{file}, record {number}")


def _text_of(record: Any, text_key: str, where: str) -> str:
    """Returns the text of a record; `where` names the record in errors."""
    if not isinstance(record, dict):
        raise CorpusError(
            f"{where}, is {shown(record)}: give an object with the field {shown(text_key)}."
        )
    if text_key not in record:
        raise CorpusError(
            f"{where}, has no field {shown(text_key)}, only {sorted(record)}: {_KEY_REMEDY}."
        )
    return check(str, record[text_key], f"{where}: {text_key}", error=CorpusError)


def hugging_face(
    name: str,
    *,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    text_key: str = "text",
) -> Corpus:
    """Opens a dataset on the hub as a stream, so that only what is read is downloaded.

    The revision is pinned to the branch's present commit, so that the articles are the same after an interruption.

    Args:
      name: Name of the dataset.
      config, split, revision, text_key: As in `open_corpus`.

    Returns:
      `Corpus`.

    Raises:
      CorpusError: If there is no such dataset, configuration, split or column, or the hub cannot be reached.
      MissingPackageError: If the package `datasets` is not installed.
    """
    extras.check("datasets", "data", f"dataset {shown(name)}")
    import datasets

    try:
        commit = _commit(name, revision)
        stream = datasets.load_dataset(name, config, split=split, revision=commit, streaming=True)
    except (
        Exception
    ) as error:  # errors of the hub, the network and the readers have no common class
        raise CorpusError(_explain(name, config, error)) from error
    columns = stream.column_names
    if columns is not None and text_key not in columns:
        raise CorpusError(
            f"dataset {shown(name)} has no column {shown(text_key)}, only {columns}: set text_key to the text's column."
        )
    splits = stream.info.splits or {}
    size = splits[split].num_examples if split in splits else None
    full_name = name if config is None else f"{name} {config}"
    full_name = full_name if split == "train" else f"{full_name} {split}"

    def read(first: int) -> Iterator[str]:
        for number, record in enumerate(stream.select_columns(text_key).skip(first), first):
            yield _text_of(record, text_key, f"dataset {shown(full_name)}, row {number}")

    return Corpus(full_name, commit, size, read, HUB_ARTICLES)


def _commit(name: str, revision: str | None) -> str:
    """Looks up the commit of a dataset's branch, tag or commit on the hub."""
    import huggingface_hub

    commit = huggingface_hub.HfApi().dataset_info(name, revision=revision).sha
    if commit is None:
        raise ValueError("the hub did not name its commit.")
    return commit


def _explain(name: str, config: str | None, error: Exception) -> str:
    """Explains in one sentence why a dataset does not load."""
    what = f"dataset {shown(name)}" + (f", configuration {shown(config)}," if config else "")
    if "scripts are no longer supported" in str(error):
        return f"{what} is a script, which no longer loads: give a dataset made of files, such as {WIKIPEDIA[0]}."
    if type(error).__name__ == "RepositoryNotFoundError":
        return f"{what} is neither on the Hugging Face hub nor a local file: check the name."
    if type(error).__name__ == "RevisionNotFoundError":
        return f"{what} has no such revision on the Hugging Face hub: check the revision."
    if isinstance(error, ValueError):
        return f"{what} does not load: {' '.join(str(error).split())[:300].rstrip('.')}."
    part = f" --include '{config}/*'" if config else ""
    return (
        f"{what} cannot be reached ({type(error).__name__}): on a machine with a network, run "
        f"`hf download {name} --repo-type=dataset --local-dir DIR{part}`, then give DIR or a folder in it as "
        "the dataset."
    )
