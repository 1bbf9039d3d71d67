"""Context templates: prefixes under which an edit must also hold.

A context template ends in "{}", which stands for the whole prompt. The first template is always "{}", the bare prompt.
The others put a short text that the model wrote itself in front of the prompt, so that k* and v* do not depend on the
subject being the first word of the text (Meng et al., 2022, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax

from rome_jax.data.request import SLOT
from rome_jax.data.tokenization import begin_ids
from rome_jax.edit.config import Hyperparameters, TemplateLengths
from rome_jax.files.checked import Seed, check, shown
from rome_jax.files.records import DataError, read_json, read_text
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
      ValueError: If `lengths` is something else, or the tokenizer has neither a begin-of-text nor an end-of-text token.

    Example:
      >>> templates = sample_templates(model, key)
      >>> len(templates), templates[0], templates[1].endswith(". {}")
      (21, '{}', True)
    """
    lengths = check(TemplateLengths, lengths, "lengths")
    tokenizer = model.tokenizer
    start = tokenizer.bos_token or tokenizer.eos_token
    if start is None:
        raise ValueError(
            f"the tokenizer of {model.name} has no begin-of-text token to sample from: pass templates=."
        )
    if begin_ids(tokenizer):  # each prompt begins with them already
        start = ""
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


def read_templates(path: str | Path) -> tuple[str, ...]:
    """Reads the context templates of an earlier run, so that it can be repeated.

    Args:
      path: A .json file with a list of templates, or a text file with one template per line. MEMIT's lists of lists are
        read too.

    Returns:
      The templates.

    Raises:
      DataError: If there is no such file, or it holds no templates, a template does not end in "{}" or has more than
        one, or the first template is not "{}".

    Example:
      >>> _ = Path("templates.json").write_text('["{}", "The file is open. {}"]')
      >>> read_templates("templates.json")
      ('{}', 'The file is open. {}')
    """
    if Path(path).suffix.lower() == ".json":
        content, _ = read_json(path)
        groups = content if isinstance(content, list) else [content]
        found = [one for group in groups for one in (group if isinstance(group, list) else [group])]
    else:
        found = [line.rstrip("\r") for line in read_text(path).split("\n") if line.strip()]
    templates = check_templates(found, str(path), error=DataError)
    for template in templates:
        if template.count(SLOT) != 1:
            raise DataError(
                f"{path}: the template {shown(template)} must have one '{{}}', at its end, and have no other."
            )
    return templates


def check_templates(
    templates: Sequence[str], name: str = "templates", *, error: type[ValueError] = ValueError
) -> tuple[str, ...]:
    """Checks context templates, and returns them.

    Args:
      templates: The templates.
      name: Name of the templates in messages.
      error: Exception to raise.

    Raises:
      error: If one is no text or does not end in "{}", or the first is not "{}".

    Example:
      >>> check_templates(["The file is open. {}"])
      Traceback (most recent call last):
      ValueError: templates: the first template must be '{}', the bare prompt: add it.
    """
    checked = check(tuple[str, ...], templates, name, error=error)
    for template in checked:
        if not template.endswith(SLOT):
            raise error(
                f"{name}: the template {shown(template)} must end in '{{}}', where the prompt goes."
            )
    if not checked or checked[0] != SLOT:
        raise error(f"{name}: the first template must be '{{}}', the bare prompt: add it.")
    return checked


def templates_for(model: LanguageModel, config: Hyperparameters, seed: int = 0) -> tuple[str, ...]:
    """Samples the templates that a method's configuration asks for.

    Args:
      model: Model to sample from.
      config: Hyperparameters of the method. `config.template_lengths` gives the prefix lengths and counts.
      seed: Seed of the PRNG key.

    Returns:
      The templates, as in `sample_templates`. Empty if the method does not use templates.

    Raises:
      ValueError: If the seed is not an integer from 0 to 2**32 - 1.

    Example:
      >>> len(templates_for(model, config))
      21
    """
    if config.template_lengths is None:
        return ()
    key = jax.random.key(check(Seed, seed, "seed"))
    return sample_templates(model, key, config.template_lengths)


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
      ValueError: If templates and key are both None, a template does not end in "{}", or the first is not "{}".
    """
    if templates is None:
        if key is None:
            raise ValueError("templates and key are both None: give one of them.")
        templates = sample_templates(model, key, lengths)
    return check_templates(templates)
