"""Context templates: prefixes under which an edit must also hold.

A context template ends in "{}", which stands for the whole prompt. The first template is always "{}", the bare prompt.
The others put a short text that the model wrote itself in front of the prompt, so that k* and v* do not depend on the
subject being the first word of the text (Meng et al., 2022, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax

from rome_jax.data.request import SLOT
from rome_jax.edit.config import Hyperparameters
from rome_jax.models.generate import Sampling, clean_text, generate_text
from rome_jax.models.registry import LanguageModel

_SAMPLING = Sampling(top_k=5)


def sample_templates(
    model: LanguageModel,
    key: jax.Array,
    lengths: Sequence[tuple[int, int]] = ((5, 10), (10, 10)),
) -> tuple[str, ...]:
    """Samples templates with prefixes that the model writes after its begin-of-text token.

    Args:
      model: Model to sample from.
      key: PRNG key. The same key gives the same templates.
      lengths: (tokens, count) pairs. `tokens` includes the begin-of-text token, as in the published code.

    Returns:
      "{}" followed by one template per prefix. The default `lengths` are the published ones and give 21 templates.

    Raises:
      ValueError: If the tokenizer has neither a begin-of-text nor an end-of-text token.

    Example:
      >>> templates = sample_templates(model, key)
      >>> len(templates), templates[0], templates[1].endswith(". {}")
      (21, '{}', True)
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


def templates_for(model: LanguageModel, config: Hyperparameters, seed: int = 0) -> tuple[str, ...]:
    """Samples the templates that a method's configuration asks for.

    Args:
      model: Model to sample from.
      config: Hyperparameters of the method. `config.template_lengths` gives the prefix lengths and counts.
      seed: Seed of the PRNG key.

    Returns:
      The templates, as in `sample_templates`. Empty if the method does not use templates.

    Example:
      >>> len(templates_for(model, config))
      21
    """
    if config.template_lengths is None:
        return ()
    return sample_templates(model, jax.random.key(seed), config.template_lengths)


def given_or_sampled(
    model: LanguageModel,
    templates: Sequence[str] | None,
    key: jax.Array | None,
    lengths: Sequence[tuple[int, int]],
) -> Sequence[str]:
    """Returns the given templates, or samples them if there are none.

    Args:
      model: Model to sample from.
      templates: Context templates. Each ends in "{}", and the first is "{}". None samples them.
      key: PRNG key of the sampling. Only used if `templates` is None.
      lengths: As in `sample_templates`.

    Raises:
      ValueError: If templates and key are both None, or the first template is not "{}".
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
