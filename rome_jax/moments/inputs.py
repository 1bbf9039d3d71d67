"""Layers and limits, as the flags of `eval.layer_stats` and `eval.statistics_table` name them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import pydantic

from rome_jax.files.checked import check, shown
from rome_jax.models.config import ModelConfig
from rome_jax.moments.limits import Limit

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


def read_limit(
    articles: str | None,
    tokens: Sequence[str] | None,
    default_articles: int | None,
    error: float | None = None,
) -> Limit:
    """Parses the values of --num_articles, --num_tokens, and --until_error.

    Args:
      articles: Value of --num_articles: a number, or "0" or "all" for all articles. None if it is not given.
      tokens: Value of --num_tokens, a list with one number. None if it is not given.
      default_articles: Number of articles of the corpus that are read if neither is given; None means all.
      error: Value of --until_error. None if it is not given.

    Raises:
      ValueError: If a value is not a number in its range, both limits are given, or the error is not between 0 and 1.

    Example:
      >>> str(read_limit(None, None, 100_000))
      '100000 articles'
      >>> str(read_limit(None, ["1000"], 100_000, error=0.05))
      '1000 tokens or error 0.05'
    """
    num_articles = _number("--num_articles", articles, 0)
    num_tokens = None if tokens is None else _number("--num_tokens", ",".join(tokens), 1)
    if num_articles and num_tokens:
        raise ValueError(
            f"--num_articles={num_articles} and --num_tokens={num_tokens} both limit the corpus: leave one out."
        )
    if error is not None and not 0 < error < 1:
        raise ValueError(f"--until_error={error}: give a number between 0 and 1.")
    if articles is None and tokens is None:
        num_articles = default_articles
    return Limit(num_articles or None, num_tokens, error)


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
      [None, Limit(articles=None, tokens=1000, error=None), Limit(articles=None, tokens=None, error=None)]
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
