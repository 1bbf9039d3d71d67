"""The second moments that come with the package: all layers of the factworld models, and the layers that ROME and MEMIT
edit in a pretrained model.
"""

from __future__ import annotations

import importlib.resources
from importlib.resources.abc import Traversable

from rome_jax.files.checked import check, shown
from rome_jax.models.registry import SHIPPED
from rome_jax.moments import files
from rome_jax.moments.second_moment import SecondMoment

# Pretrained models, and the folders of their second moments. Each file records the command that made it.
PRETRAINED = {"smollm2-135m": "smollm2_135m"}


def is_shipped(name: str) -> bool:
    """Returns whether second moments come with a model.

    Example:
      >>> is_shipped("smollm2-135m"), is_shipped("gpt2-xl")
      (True, False)
    """
    return name in SHIPPED or name in PRETRAINED


def layers_of(name: str) -> frozenset[int]:
    """Returns the layers whose second moments come with a model; none for an unknown model.

    Example:
      >>> from rome_jax.moments import shipped
      >>> sorted(shipped.layers_of("smollm2-135m")), len(shipped.layers_of("gpt2-xl"))
      ([2, 3, 4], 0)
    """
    return frozenset(files.files_in(str(_folder(name)))) if is_shipped(name) else frozenset()


def load_shipped(name: str) -> dict[int, SecondMoment]:
    """Reads the second moments that come with a model.

    Args:
      name: Name of the model, such as "factworld-gpt2".

    Returns:
      The second moment of each layer of a factworld model, or of the layers that ROME and MEMIT edit in another model.

    Raises:
      ValueError: If no second moments come with the model.

    Example:
      >>> sorted(load_shipped("factworld-gpt2"))[:2]
      [0, 1]
    """
    return files.load(str(_folder(check(str, name, "name"))))


def _folder(name: str) -> Traversable:
    """Returns the folder of a model's second moments."""
    package = importlib.resources.files("rome_jax")
    if name in SHIPPED:
        return package / "factworld" / "assets" / f"second_moments_{SHIPPED[name]}"
    if name in PRETRAINED:
        return package / "moments" / "assets" / PRETRAINED[name]
    known = ", ".join((*SHIPPED, *PRETRAINED))
    raise ValueError(
        f"no second moments come with model {shown(name)} (only with {known}): collect them with "
        "`python -m eval.layer_stats`, or edit with mom2_adjustment=False."
    )
