"""Optional packages: one sentence where one is missing."""

from __future__ import annotations

import importlib.util

# Names for pip, where they are not those for import.
_DISTRIBUTIONS = {"sklearn": "scikit-learn"}


class MissingPackageError(ImportError, ValueError):
    """A package of an extra is not installed."""


def check(package: str, extra: str, purpose: str) -> None:
    """Refuses what needs a package that is not installed, without importing it.

    Args:
      package: as it is imported.
      extra: of rome_jax that brings it.
      purpose: what needs it, such as "the figure".

    Raises:
      MissingPackageError: it is not installed; the sentence says how to install it.

    Example:
      >>> check("json", "eval", "the figure")
    """
    try:
        found = importlib.util.find_spec(package) is not None
    except ValueError:  # it stands in sys.modules as None, or without a specification
        found = False
    if not found:
        name = _DISTRIBUTIONS.get(package, package)
        raise MissingPackageError(f"{purpose} needs {name}: pip install 'rome_jax[{extra}]'.")
