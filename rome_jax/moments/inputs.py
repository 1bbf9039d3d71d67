"""Layers and limits, as the flags of `eval.layer_stats` and `eval.statistics_table` name them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import pydantic

from rome_jax.data.corpus import Corpus
from rome_jax.files.checked import check, shown
from rome_jax.models.config import ModelConfig
from rome_jax.moments.collect import Limit

_ALL = "all"


def read_layers(text: str | None, edited: Sequence[int] | None, name: str) -> list[int] | None:
    """Parses the value of --layers.

    Args:
      text: Value of the flag. None means the layers that ROME edits.
      edited: Layers that ROME edits in this model; None if they are unknown.
      name: Name of the model, for the error message.

    Returns:
      The layers; None means all of them.

    Raises:
      ValueError: If `text` names no layers, or `text` and `edited` are both None.

    Example:
      >>> read_layers("0,2-3", None, "gpt2")
      [0, 2, 3]
    """
    if text is None:
        if edited is None:
            raise ValueError(f"no ROME layer is known for model {shown(name)}: give --layers.")
        return list(edited)
    if text == _ALL:
        return None
    layers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part.strip())
        found = range(int(match[1]), int(match[2] or match[1]) + 1) if match else ()
        if not found:
            layers = []
            break
        layers += found
    if not layers:
        raise ValueError(
            f"--layers={shown(text)} names no layers of a model: give one (17), several (5,6,7), a range (3-8), or all."
        )
    return layers


def check_layers(layers: Sequence[int] | None, config: ModelConfig) -> list[int]:
    """Returns the layers that `read_layers` parsed, once the model is known.

    Args:
      layers: Layers; None means all.
      config: The model.

    Raises:
      ValueError: If the model does not have a layer.
    """
    if layers is None:
        return list(range(config.num_layers))
    return [config.check_layer(layer, "--layers") for layer in layers]


def read_limit(articles: str | None, tokens: Sequence[str] | None, corpus: Corpus) -> Limit:
    """Parses the values of --num_articles and --num_tokens.

    Args:
      articles: Value of --num_articles: a number, or "0" or "all" for all articles. None if it is not given.
      tokens: Value of --num_tokens, a list with one number. None if it is not given.
      corpus: The corpus, whose default number of articles applies if neither is given.

    Raises:
      ValueError: If a value is not a number in its range, or both are given.

    Example:
      >>> corpus = Corpus("wikipedia", "a commit", None, read=iter, default_articles=100_000)
      >>> read_limit(None, None, corpus)
      Limit(articles=100000, tokens=None)
      >>> read_limit(None, ["1000"], corpus)
      Limit(articles=None, tokens=1000)
    """
    num_articles = _number("--num_articles", articles, 0)
    num_tokens = None if tokens is None else _number("--num_tokens", ",".join(tokens), 1)
    if num_articles and num_tokens:
        raise ValueError(
            f"--num_articles={num_articles} and --num_tokens={num_tokens} both limit the corpus: leave one out."
        )
    if articles is None and tokens is None:
        num_articles = corpus.default_articles
    return Limit(num_articles or None, num_tokens)


def read_limits(values: Sequence[str]) -> list[Limit | None]:
    """Parses the value of --num_tokens of `eval.statistics_table`.

    Args:
      values: Numbers of tokens, or "all"; "0" stands for the identity in place of C.

    Returns:
      One limit per value; None for the identity.

    Raises:
      ValueError: If a value is neither a number nor "all".

    Example:
      >>> read_limits(["0", "1000", "all"])
      [None, Limit(articles=None, tokens=1000), Limit(articles=None, tokens=None)]
    """
    limits: list[Limit | None] = []
    for value in values:
        number = _number("--num_tokens", value, 0)
        limits.append(None if number == 0 else Limit(tokens=number))
    return limits


def _number(flag: str, text: str | None, least: int) -> int | None:
    """Parses the number of a flag; None if the flag is not given or says "all"."""
    if text is None or text == _ALL:
        return None
    try:
        return check(Annotated[int, pydantic.Field(ge=least)], text, flag)
    except ValueError:
        raise ValueError(
            f"{flag}={shown(text)}: give a whole number of {least} or more, or all."
        ) from None
