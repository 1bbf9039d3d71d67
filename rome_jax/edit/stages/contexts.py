"""Context templates: beginnings of texts that the model writes itself, behind which the edit is to hold too.

A context template ends in "{}", the place of the whole prompt; the first is always "{}" itself. The others give the
key and the value some generality: the subject does not always open the text (paper, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax

from rome_jax.data.request import SLOT
from rome_jax.models.generate import Sampling, clean_text, generate_text

_SAMPLING = Sampling(top_k=5)


def sample_templates(
    model, key: jax.Array, lengths: Sequence[tuple[int, int]] = ((5, 10), (10, 10))
) -> tuple[str, ...]:
    """Templates with prefixes that the model writes itself, after its begin-of-text token.

    Args:
      model: `LanguageModel`.
      key: PRNG key; the same key gives the same templates.
      lengths: (tokens, count) pairs; the tokens include the begin-of-text token, as in the original.

    Returns:
      "{}" and one template for each prefix: 21 with the published lengths.

    Example:
      >>> sample_templates(model, jax.random.key(0))[1]  # doctest: +SKIP
      'The first thing. {}'
    """
    start = model.tokenizer.bos_token or model.tokenizer.eos_token
    if start is None:
        raise ValueError(
            f"the tokenizer of {model.name} has no begin-of-text token to sample from: pass templates=."
        )
    templates = [SLOT]
    for index, (length, count) in enumerate(lengths):
        texts = generate_text(
            model,
            [start] * count,
            max_length=length,
            sampling=_SAMPLING,
            key=jax.random.fold_in(key, index),
        )
        templates += [f"{clean_text(text.replace(start, ''))}. {SLOT}" for text in texts]
    return tuple(templates)


def given_or_sampled(
    model,
    templates: Sequence[str] | None,
    key: jax.Array | None,
    lengths: Sequence[tuple[int, int]],
) -> Sequence[str]:
    """The templates that are given, or else those that a key samples.

    Args:
      model: `LanguageModel`.
      templates: end in "{}", the first of them "{}"; None to sample them.
      key, lengths: as for `sample_templates`.

    Raises:
      ValueError: neither templates nor key, or templates that do not start with "{}".
    """
    if templates is None:
        if key is None:
            raise ValueError("templates and key are both None: give one of them.")
        templates = sample_templates(model, key, lengths)
    if not templates or templates[0] != SLOT:
        raise ValueError(
            f"templates={list(templates)[:1]} must start with '{{}}', the bare prompt."
        )
    return templates
