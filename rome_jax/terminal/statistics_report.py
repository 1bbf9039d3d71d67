"""What `eval.layer_stats` prints of the second moments that it collected."""

from __future__ import annotations

import math

from rome_jax.moments.second_moment import SecondMoment


def moment_line(layer: int, moment: SecondMoment) -> str:
    """Returns a line on one layer: the condition number of C, and how many tokens it was averaged over.

    Args:
      layer: Index of the layer.
      moment: The second moment of the layer.

    Example:
      >>> moment_line(5, rome_jax.SecondMoment(np.eye(4), count=100))
      'layer  5   width 4   condition number 1.00e+00   100 tokens of 0 articles'
    """
    try:
        condition = f"{moment.condition_number():8.2e}"
    except ValueError:
        condition = "not positive definite"
    fill = "" if math.isnan(moment.fill_rate) else f"   rows filled {100 * moment.fill_rate:.2f} %"
    return (
        f"layer {layer:2d}   width {moment.mean.shape[0]}   condition number {condition}   "
        f"{moment.count:,} tokens of {moment.provenance.articles:,} articles{fill}"
    )
