"""Texts to collect statistics on, with a name and a revision: Hugging Face datasets, local files, factworld.

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

WIKIPEDIA = ("wikimedia/wikipedia", "20231101.en")  # what "wikipedia" stands for
FACTWORLD_DOCUMENTS = 20_000
HUB_ARTICLES = 100_000  # as the original takes of Wikipedia
SUFFIXES = (".jsonl", ".parquet", ".txt")
_SEPARATORS = {"document": None, "line": "\n", "paragraph": "\n\n"}


class CorpusError(ValueError):
    """A corpus is not there, cannot be read, or is not what it should be."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Articles in a fixed order.

    Attributes:
      name: for people and file names.
      revision: what decides the articles: a commit, or a SHA-256 of the content.
      size: about how many articles there are, for progress bars; None if that is not known.
      read: read(n) gives the articles from the nth on.
      default_articles: how many to take if nobody says; None for all.
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
    """A corpus by its name.

    Args:
      name: "factworld", the corpus of the embedded models; a .txt, .jsonl or .parquet file, or a folder of them;
        "wikipedia"; or a dataset on the Hugging Face hub.
      config, split, revision: of a dataset on the hub, and of nothing else.
      text_key: the field of .jsonl, .parquet and datasets that holds the text.
      sample_by: what one article is in a .txt file: the whole "document", a "paragraph" or a "line".

    Raises:
      CorpusError: nothing goes by that name, or it cannot be read.

    Example:
      >>> next(open_corpus("factworld").read(0)).endswith(".")
      True
    """
    if name == "factworld":
        return factworld()
    if Path(name).exists():
        return local(name, text_key=text_key, sample_by=sample_by)
    if Path(name).suffix in SUFFIXES or name.startswith((".", "/", "~")):
        raise CorpusError(f"there is no {name}: give a file or a folder that exists.")
    if name == "wikipedia":
        name, config = WIKIPEDIA[0], config or WIKIPEDIA[1]
    return hugging_face(name, config=config, split=split, revision=revision, text_key=text_key)


def factworld(seed: int = 0) -> Corpus:
    """20,000 documents about the invented world of the embedded models, which training has not seen."""
    from rome_jax.factworld.corpus import documents
    from rome_jax.factworld.facts import make_world

    generated = documents(make_world(seed), seed=seed + 2_000_003, count=FACTWORLD_DOCUMENTS)
    texts = [document.text for document in generated]
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    return Corpus("factworld", f"sha256:{digest}", len(texts), lambda first: iter(texts[first:]))


def local(path: str | Path, *, text_key: str = "text", sample_by: str = "document") -> Corpus:
    """The articles of a file or of all files in a folder and the folders below it, ordered by their paths.

    The revision is a SHA-256 of all paths and contents, so the files are read once for it.

    Raises:
      CorpusError: no such file, no file of a known kind, or an unknown `sample_by`; and, while it is read, a line or
        table without the text, or one that is damaged.
    """
    path = Path(path).expanduser()
    if sample_by not in _SEPARATORS:
        raise CorpusError(f"sample_by={sample_by!r}: give one of {', '.join(_SEPARATORS)}.")
    if not path.exists():
        raise CorpusError(f"there is no {path}: give a file or a folder that exists.")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    files = [file for file in files if file.suffix in SUFFIXES]
    if not files:
        raise CorpusError(
            f"{path} holds no {', '.join(SUFFIXES)} files: give texts in one of them."
        )
    base = path if path.is_dir() else path.parent
    sha, sizes = hashlib.sha256(f"{text_key}\n{sample_by}\n".encode()), []
    for file in files:
        sha.update(f"{file.relative_to(base).as_posix()}\n{file.stat().st_size}\n".encode())
        sizes.append(_hash_and_count(file, sha, sample_by))
    size = None if None in sizes else sum(sizes)

    def read(first: int) -> Iterator[str]:
        texts = (text for file in files for text in _articles(file, text_key, sample_by))
        return itertools.islice(texts, first, None)

    name = path.resolve()
    return Corpus(
        name.stem if path.is_file() else name.name, f"sha256:{sha.hexdigest()}", size, read
    )


def _hash_and_count(file: Path, sha: Any, sample_by: str) -> int | None:
    """Adds a file's content to the hash; returns about how many articles it has, if that is cheap to know."""
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
        raise CorpusError(f"{file} is not UTF-8 ({error}): convert it.") from error


def _text_of(line: str, text_key: str, where: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise CorpusError(f"{where} is not JSON ({error}): mend or remove it.") from error
    if not isinstance(record, dict) or not isinstance(record.get(text_key), str):
        keys = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise CorpusError(
            f"{where} has no text under {text_key!r} but {keys}: name its key, text_key."
        )
    return record[text_key]


def _parquet(file: Path) -> Any:
    """An opened parquet file."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise _needs_extra(str(file)) from None
    try:
        return pyarrow.parquet.ParquetFile(file)
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise CorpusError(
            f"{file} is damaged or no parquet file ({error}): copy it again."
        ) from error


def _parquet_articles(file: Path, text_key: str) -> Iterator[str]:
    table = _parquet(file)
    if text_key not in table.schema_arrow.names:
        raise CorpusError(
            f"{file} has no column {text_key!r} but {table.schema_arrow.names}: name its column, text_key."
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
    """A dataset on the hub, streamed: nothing but what is read is downloaded.

    The revision is pinned to today's commit of the branch, so that the articles are the same after an interruption.

    Raises:
      CorpusError: the package `datasets` is missing, there is no such dataset, configuration, split or column, or the
        hub cannot be reached.
    """
    try:
        import datasets
    except ImportError:
        raise _needs_extra(name) from None
    try:
        commit = _commit(name, revision)
        stream = datasets.load_dataset(name, config, split=split, revision=commit, streaming=True)
    except (
        Exception
    ) as error:  # the hub's, the network's and the readers' errors have no common class
        raise CorpusError(_explain(name, config, error)) from error
    columns = stream.column_names
    if columns is not None and text_key not in columns:
        raise CorpusError(
            f"dataset {name!r} has no column {text_key!r} but {columns}: name its column, text_key."
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
    """The commit of a dataset's branch, tag or commit on the hub."""
    import huggingface_hub

    return huggingface_hub.HfApi().dataset_info(name, revision=revision).sha


def _explain(name: str, config: str | None, error: Exception) -> str:
    """One sentence on why a dataset does not load."""
    shown = f"dataset {name!r}" + (f", configuration {config!r}," if config else "")
    if "scripts are no longer supported" in str(error):
        return f"{shown} is a script, which no longer loads: give one made of files, such as {WIKIPEDIA[0]}."
    if type(error).__name__ == "RepositoryNotFoundError":
        return f"{shown} is not on the Hugging Face hub, nor a local file: check the name."
    if type(error).__name__ == "RevisionNotFoundError":
        return f"{shown} has no such revision on the Hugging Face hub: check the revision."
    if isinstance(error, ValueError):
        return f"{shown} does not load: {error}"
    part = f" --include '{config}/*'" if config else ""
    return (
        f"{shown} cannot be reached ({type(error).__name__}): where there is a network, run "
        f"`hf download {name} --repo-type=dataset --local-dir DIR{part}`, and give DIR or a folder in it as the "
        "dataset."
    )


def _needs_extra(name: str) -> CorpusError:
    return CorpusError(f'{name} needs the package datasets: pip install "rome_jax[data]".')
