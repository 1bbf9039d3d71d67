"""How much of a corpus a collection reads."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import pydantic

from rome_jax.files.checked import PositiveInt, check_fields
from rome_jax.moments.state import Counts


@dataclasses.dataclass(frozen=True)
class Limit:
    """How much of a corpus is read: a number of articles, an exact number of tokens, or everything.

    Attributes:
      articles: Number of articles, at least 1.
      tokens: Number of tokens, at least 1; excludes `articles`.
      error: Error of C at which a collection stops earlier, between 0 and 1; see `rome_jax.moments.error_bar`.

    Raises:
      ValueError: If both numbers are given, one is less than 1, or the error is not between 0 and 1.

    Example:
      >>> str(Limit(articles=1000)), str(Limit())
      ('1000 articles', 'all')
    """

    articles: PositiveInt | None = None
    tokens: PositiveInt | None = None
    error: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = None

    def __post_init__(self):
        check_fields(self)
        if self.articles is not None and self.tokens is not None:
            raise ValueError(
                f"articles={self.articles}, tokens={self.tokens}: give at most one of them."
            )

    def __str__(self) -> str:
        size = "all" if self.articles is None else f"{self.articles} articles"
        if self.tokens is not None:
            size = f"{self.tokens} tokens"
        return size if self.error is None else f"{size} or error {self.error:g}"

    def reached(self, counts: Counts) -> bool:
        """Returns whether a collection that is as far as `counts` reads nothing more."""
        if self.tokens is not None:
            return counts.tokens >= self.tokens
        return self.articles is not None and counts.articles >= self.articles
