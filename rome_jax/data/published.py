"""The data files published by the authors of ROME (Meng et al. 2022)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rome_jax.files.artifacts import cache_directory
from rome_jax.files.downloads import download

ROOT = "https://rome.baulab.info/data/dsets/"
PUBLISHED = "published"  # given instead of a path to download the file
_LARGE = 10**8  # bytes; hashing more takes seconds


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


def path_of(file: PublishedFile) -> Path:
    """Returns the path of a published file in the cache; it exists once the file has been fetched.

    Example:
      >>> from rome_jax.data import published
      >>> published.path_of(published.COUNTERFACT).name
      'counterfact.json'
    """
    return cache_directory() / "dsets" / file.name


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
    path = path_of(file)
    skip_hash = path.exists() and path.stat().st_size > _LARGE
    sha256 = None if skip_hash else file.sha256
    return download(ROOT + file.name, path, size=file.size, sha256=sha256)
