"""Optional packages: one check and one error message for those that are not installed."""

from __future__ import annotations

import importlib.util

# Names of packages for pip that differ from their names for import.
_DISTRIBUTIONS = {"sklearn": "scikit-learn"}


class MissingPackageError(ImportError, ValueError):
    """An optional package is needed and not installed."""


def is_installed(package: str) -> bool:
    """Returns whether a package is installed, without importing it.

    Example:
      >>> from rome_jax.files import extras
      >>> extras.is_installed("numpy"), extras.is_installed("no_such_package")
      (True, False)
    """
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # sys.modules holds None, or a module without a specification
        return False


def check(package: str, extra: str, purpose: str) -> None:
    """Checks that an optional package is installed, without importing it.

    Call it before work that needs the package begins, so that the user learns at once what to install.

    Args:
      package: Name of the package for import.
      extra: The extra of rome_jax that installs it.
      purpose: What needs the package, such as "the figure"; the subject of the message.

    Raises:
      MissingPackageError: If the package is not installed; the message says how to install it.

    Example:
      >>> check("no_such_package", "plot", "the figure")
      Traceback (most recent call last):
      ...
      rome_jax.files.extras.MissingPackageError: the figure needs no_such_package: pip install 'rome_jax[plot]'.
    """
    if not is_installed(package):
        name = _DISTRIBUTIONS.get(package, package)
        raise MissingPackageError(f"{purpose} needs {name}: pip install 'rome_jax[{extra}]'.")
