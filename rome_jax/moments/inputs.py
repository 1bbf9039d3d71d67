"""What `eval.layer_stats` is asked to collect: layers, and how much of a corpus."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rome_jax.data.corpus import Corpus
from rome_jax.models.config import ModelConfig
from rome_jax.moments.collect import Limit

_ALL = "all"


def read_layers(text: str | None, edited: Sequence[int] | None, name: str) -> list[int] | None:
    """The layers that --layers names; None means all.

    Args:
      text: of the flag; None means those that are edited.
      edited: those that ROME edits in this model; None if they are not known.
      name: of the model.

    Raises:
      ValueError: text that names no layers, or no text and a model whose layers are not known.

    Example:
      >>> read_layers("0,2-3", None, "gpt2")
      [0, 2, 3]
    """
    if text is None:
        if edited is None:
            raise ValueError(f"no ROME layer is known for model {name!r}: give --layers.")
        return list(edited)
    if text == _ALL:
        return None
    layers: list[int] = []
    for part in text.split(","):
        if (match := re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())) is None:
            layers = []
            break
        layers += range(int(match[1]), int(match[2] or match[1]) + 1)
    if not layers:
        raise ValueError(f"--layers={text}: give one (17), several (5,6,7), a range (3-8) or all.")
    return layers


def check_layers(layers: Sequence[int] | None, config: ModelConfig) -> list[int]:
    """The layers of `read_layers`, of a model.

    Raises:
      ValueError: a layer that the model does not have.
    """
    if layers is None:
        return list(range(config.num_layers))
    return [config.check_layer(layer, "--layers") for layer in layers]


def read_limit(articles: str | None, tokens: Sequence[str] | None, corpus: Corpus) -> Limit:
    """How much --num_articles and --num_tokens ask for; by default as much as is usual for the corpus.

    Raises:
      ValueError: no numbers, both, or less than nothing.

    Example:
      >>> read_limit(None, ["1000"], None)
      Limit(articles=None, tokens=1000)
    """
    count = _number("--num_articles", articles)
    limit = None if tokens is None else _number("--num_tokens", ",".join(tokens))
    if articles is None and tokens is None:
        count = corpus.default_articles
    return Limit(count or None, limit)


def read_limits(values: Sequence[str]) -> list[Limit | None]:
    """The limits that --num_tokens of `eval.statistics_table` names; None for the identity.

    Raises:
      ValueError: something that is no number of tokens.

    Example:
      >>> read_limits(["0", "1000", "all"])
      [None, Limit(articles=None, tokens=1000), Limit(articles=None, tokens=None)]
    """
    limits: list[Limit | None] = []
    for value in values:
        if value != _ALL and not value.isdecimal():
            raise ValueError(f"--num_tokens has {value!r}: give numbers of tokens, or all.")
        if value == _ALL:
            limits.append(Limit())
        else:
            limits.append(Limit(tokens=int(value)) if int(value) else None)
    return limits


def _number(flag: str, text: str | None) -> int | None:
    """The number of a flag; None for all, and if it is left out."""
    if text is None or text == _ALL:
        return None
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{flag}={text}: give a whole number, or all.") from None
