"""Context templates: beginnings of texts that the model writes itself, behind which the edit is to hold too.

A context template ends in "{}", the place of the whole prompt; the first is always "{}" itself. The others give the
key and the value some generality: the subject does not always open the text (paper, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax

from rome_jax.models.generate import Sampling, clean_text, generate_text
from rome_jax.request import SLOT

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
