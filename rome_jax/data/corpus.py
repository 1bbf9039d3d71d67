"""Corpora to collect statistics on, each with a name and a revision: Hugging Face datasets, local files, factworld.

A corpus is a sequence of articles in a fixed order, so that an interrupted run can resume.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rome_jax.files import extras

WIKIPEDIA = (
    "wikimedia/wikipedia",
    "20231101.en",
)  # the dataset and configuration that "wikipedia" means
FACTWORLD_DOCUMENTS = 20_000
HUB_ARTICLES = 100_000  # as many as the original reads of Wikipedia
SUFFIXES = (".jsonl", ".parquet", ".txt")
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
    """

    name: str
    revision: str
    size: int | None
    read: Callable[[int], Iterator[str]]
    default_articles: int | None = None


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
      name: "factworld", the corpus of the shipped models; a .txt, .jsonl or .parquet file, or a folder of them;
        "wikipedia"; or a dataset on the Hugging Face hub.
      config: Configuration of a dataset on the hub.
      split: Split of a dataset on the hub.
      revision: Branch, tag or commit of a dataset on the hub; None means the main branch.
      text_key: The field of .jsonl files, .parquet files and datasets that holds the text.
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
    if name == "factworld":
        return factworld()
    if Path(name).exists():
        return local(name, text_key=text_key, sample_by=sample_by)
    if Path(name).suffix in SUFFIXES or name.startswith((".", "/", "~")):
        raise CorpusError(f"there is no {name}: give an existing file or folder.")
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
      path: A .txt, .jsonl or .parquet file, or a folder.
      text_key: As in `open_corpus`.
      sample_by: As in `open_corpus`.

    Returns:
      `Corpus`. Reading it raises a CorpusError at a line or table that is damaged or has no text.

    Raises:
      CorpusError: If there is no such file or folder, it has no file of a known kind, a file is damaged, or `sample_by`
        is unknown.

    Example:
      >>> Path("articles.txt").write_text("Rome is a city. Paris is a city.")
      32
      >>> local("articles.txt").size
      1
    """
    path = Path(path).expanduser()
    if sample_by not in _SEPARATORS:
        raise CorpusError(f"sample_by={sample_by!r}: give one of {', '.join(_SEPARATORS)}.")
    if not path.exists():
        raise CorpusError(f"there is no {path}: give an existing file or folder.")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    files = [file for file in files if file.suffix in SUFFIXES]
    if not files:
        raise CorpusError(
            f"{path} holds no {', '.join(SUFFIXES)} files: give texts in one of these formats."
        )
    base = path if path.is_dir() else path.parent
    sha, sizes = hashlib.sha256(f"{text_key}\n{sample_by}\n".encode()), []
    for file in files:
        sha.update(f"{file.relative_to(base).as_posix()}\n{file.stat().st_size}\n".encode())
        sizes.append(_hash_and_count(file, sha, sample_by))
    known = [size for size in sizes if size is not None]
    size = sum(known) if len(known) == len(sizes) else None

    def read(first: int) -> Iterator[str]:
        texts = (text for file in files for text in _articles(file, text_key, sample_by))
        return itertools.islice(texts, first, None)

    name = path.resolve()
    return Corpus(
        name.stem if path.is_file() else name.name, f"sha256:{sha.hexdigest()}", size, read
    )


def _hash_and_count(file: Path, sha: Any, sample_by: str) -> int | None:
    """Adds a file's content to the hash and returns the approximate number of its articles, or None if unknown."""
    lines = 0
    with open(file, "rb") as opened:
        while block := opened.read(1 << 20):
            sha.update(block)
            lines += block.count(b"\n")
    if file.suffix == ".parquet":
        return _parquet(file).metadata.num_rows
    if file.suffix == ".txt" and sample_by != "line":
        return 1 if sample_by == "document" else None
    return lines


def _articles(file: Path, text_key: str, sample_by: str) -> Iterator[str]:
    """Yields the articles of one file."""
    if file.suffix == ".parquet":
        yield from _parquet_articles(file, text_key)
        return
    try:
        with open(file, encoding="utf-8") as opened:
            if file.suffix == ".jsonl":
                for number, line in enumerate(opened, start=1):
                    if line.strip():
                        yield _text_of(line, text_key, f"{file}, line {number},")
            elif sample_by == "line":
                yield from (line.rstrip("\n") for line in opened)
            else:
                separator, text = _SEPARATORS[sample_by], opened.read()
                yield from text.split(separator) if separator else [text]
    except UnicodeDecodeError as error:
        raise CorpusError(f"{file} is not UTF-8 ({error}): convert it to UTF-8.") from error


def _text_of(line: str, text_key: str, where: str) -> str:
    """Reads the text of one line of a .jsonl file; `where` names the line in errors."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise CorpusError(f"{where} is not JSON ({error}): correct or remove it.") from error
    if not isinstance(record, dict) or not isinstance(record.get(text_key), str):
        is_object = isinstance(record, dict)
        found = (
            f"its keys are {sorted(record)}" if is_object else f"it is a {type(record).__name__}"
        )
        raise CorpusError(
            f"{where} has no text under {text_key!r} ({found}): set text_key to the key of the text."
        )
    return record[text_key]


def _parquet(file: Path) -> Any:
    """Opens a parquet file."""
    extras.check("pyarrow", "data", str(file))
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(file)
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise CorpusError(
            f"{file} is damaged or is not a parquet file ({error}): copy it again."
        ) from error


def _parquet_articles(file: Path, text_key: str) -> Iterator[str]:
    """Yields the articles of a parquet file."""
    table = _parquet(file)
    if text_key not in table.schema_arrow.names:
        raise CorpusError(
            f"{file} has no column {text_key!r}, only {table.schema_arrow.names}: set text_key to the text's column."
        )
    for batch in table.iter_batches(1024, columns=[text_key]):
        yield from (text or "" for text in batch.column(0).to_pylist())


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
    extras.check("datasets", "data", f"dataset {name!r}")
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
            f"dataset {name!r} has no column {text_key!r}, only {columns}: set text_key to the text's column."
        )
    splits = stream.info.splits or {}
    size = splits[split].num_examples if split in splits else None

    def read(first: int) -> Iterator[str]:
        for record in stream.select_columns(text_key).skip(first):
            yield record[text_key] or ""

    shown = name if config is None else f"{name} {config}"
    shown = shown if split == "train" else f"{shown} {split}"
    return Corpus(shown, commit, size, read, HUB_ARTICLES)


def _commit(name: str, revision: str | None) -> str:
    """Looks up the commit of a dataset's branch, tag or commit on the hub."""
    import huggingface_hub

    commit = huggingface_hub.HfApi().dataset_info(name, revision=revision).sha
    if commit is None:
        raise ValueError("the hub did not name its commit.")
    return commit


def _explain(name: str, config: str | None, error: Exception) -> str:
    """Explains in one sentence why a dataset does not load."""
    shown = f"dataset {name!r}" + (f", configuration {config!r}," if config else "")
    if "scripts are no longer supported" in str(error):
        return f"{shown} is a script, which no longer loads: give a dataset made of files, such as {WIKIPEDIA[0]}."
    if type(error).__name__ == "RepositoryNotFoundError":
        return f"{shown} is neither on the Hugging Face hub nor a local file: check the name."
    if type(error).__name__ == "RevisionNotFoundError":
        return f"{shown} has no such revision on the Hugging Face hub: check the revision."
    if isinstance(error, ValueError):
        return f"{shown} does not load: {error}"
    part = f" --include '{config}/*'" if config else ""
    return (
        f"{shown} cannot be reached ({type(error).__name__}): on a machine with a network, run "
        f"`hf download {name} --repo-type=dataset --local-dir DIR{part}`, then give DIR or a folder in it as "
        "the dataset."
    )
