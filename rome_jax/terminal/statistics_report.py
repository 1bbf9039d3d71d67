"""What `eval.layer_stats` prints of the second moments that it collected."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rome_jax.models.provenance import Match
from rome_jax.moments.own_texts import DOCUMENT_TOKENS
from rome_jax.moments.second_moment import SecondMoment
from rome_jax.moments.sources import Choice, Source


def moment_line(layer: int, moment: SecondMoment) -> str:
    """Returns a line on one layer: the condition number of C, its number of tokens, and its error if that is known.

    Args:
      layer: Index of the layer.
      moment: The second moment of the layer.

    Example:
      >>> moment_line(5, rome_jax.SecondMoment(np.eye(4), count=100))
      'layer  5   width 4   condition number 1.00e+00   100 tokens of 0 articles   unverified'
    """
    try:
        condition = f"{moment.condition_number():8.2e}"
    except ValueError:
        condition = "not positive definite"
    known = moment.provenance.error
    error = "" if known is None else f"   error {known:.4f}"
    fill = "" if math.isnan(moment.fill_rate) else f"   rows filled {100 * moment.fill_rate:.2f} %"
    match = "" if moment.match is Match.SAME else f"   {moment.match.value}"
    return (
        f"layer {layer:2d}   width {moment.mean.shape[0]}   condition number {condition}   "
        f"{moment.count:,} tokens of {moment.provenance.articles:,} articles{error}{fill}{match}"
    )


def not_usable_line(layers: Sequence[int], width: int) -> str:
    """Returns the advice in place of a command if second moments are not positive definite.

    Args:
      layers: The layers.
      width: Width of the second moments.

    Example:
      >>> print(not_usable_line([0, 2], 512))
      Edits cannot use layers 0, 2: collect more than 512 tokens (--num_tokens), into another --output_dir.
    """
    named = f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
    return f"Edits cannot use {named}: collect more than {width} tokens (--num_tokens), into another --output_dir."


def source_line(choice: Choice, given: bool) -> str:
    """Returns a line on where second moments come from.

    Args:
      choice: The choice.
      given: Whether the user named the source; otherwise the line says how to choose another.

    Example:
      >>> from rome_jax.moments.sources import Choice, Source
      >>> print(source_line(Choice(Source.SHIPPED, None), given=True))
      Statistics  shipped: second moments in the package
    """
    about = f"second moments in {choice.place or 'the package'}"
    if choice.source is Source.PUBLISHED:
        about = "the original's second moments, over Wikipedia"
    if choice.documents:
        tokens = choice.documents * DOCUMENT_TOKENS
        about = (
            f"samples {choice.documents:,} texts, up to {tokens:,} tokens, and keeps their {about}"
        )
    parts = [f"Statistics  {choice.source or 'given'}: {about}"]
    if choice.reason:
        parts.append(choice.reason)
    if not given:
        others = [source.value for source in Source if source is not choice.source]
        parts.append(f"--second_moments={'|'.join(others)}|PATH takes others")
    return "; ".join(parts)
