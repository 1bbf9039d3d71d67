"""What `eval.layer_stats` prints of the second moments that it collected."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rome_jax.models.provenance import Match
from rome_jax.moments.second_moment import SecondMoment


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
