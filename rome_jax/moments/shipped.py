"""The second moments that come with the package: those of the factworld models over factworld's corpus."""

from __future__ import annotations

import importlib.resources

from rome_jax.files.checked import check, shown
from rome_jax.models.registry import SHIPPED
from rome_jax.moments import files
from rome_jax.moments.second_moment import SecondMoment


def load_shipped(name: str) -> dict[int, SecondMoment]:
    """Reads the second moments of all layers of a model that comes with the package.

    Args:
      name: Name of the model, such as "factworld-gpt2".

    Returns:
      The second moment of each layer.

    Raises:
      ValueError: If no second moments come with the model.

    Example:
      >>> sorted(load_shipped("factworld-gpt2"))[:2]
      [0, 1]
    """
    if check(str, name, "name") not in SHIPPED:
        raise ValueError(
            f"no second moments come with model {shown(name)} (only with {', '.join(SHIPPED)}): collect them with "
            "`python -m eval.layer_stats`, or edit with mom2_adjustment=False."
        )
    assets = importlib.resources.files("rome_jax") / "factworld" / "assets"
    return files.load(str(assets / f"second_moments_{SHIPPED[name]}"))
