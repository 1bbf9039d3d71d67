"""Public names that are imported on first use (PEP 562), so that `import rome_jax` does not import jax.

A package of this library lists its public names three times: as imports under `TYPE_CHECKING`, for editors; in
`__all__`, by topic; and in a table of the modules that they are imported from. `tests/test_public_names.py` checks that
the three lists agree.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from typing import Any


def attach(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Builds the `__getattr__` and `__dir__` of a package.

    Args:
      package: The package's `__name__`.
      homes: The module that each public name is imported from, as "module", or as "module:name" if the name differs
        there. The package's own modules and packages need no entry: `__getattr__` imports them too.

    Returns:
      `__getattr__`, and `__dir__`, which lists `__all__`.

    Example:
      >>> get, names = attach("rome_jax.models", {"Config": "rome_jax.models.config:ModelConfig"})
      >>> get("Config").__name__
      'ModelConfig'
    """

    def get(name: str) -> Any:
        module = sys.modules[package]
        if name in homes:
            home, _, original = homes[name].partition(":")
            value = import_name(home, original or name)
        elif not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}"):
            value = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(module, name, value)  # the next access does not call `__getattr__`
        return value

    def names() -> list[str]:
        return sorted(sys.modules[package].__all__)

    return get, names


def import_name(module: str, name: str) -> Any:
    """Imports as `from module import name` does: an attribute, or else a module inside.

    Example:
      >>> import_name("rome_jax.data", "tokens").__name__
      'rome_jax.data.tokens'
    """
    home = importlib.import_module(module)
    try:
        return getattr(home, name)
    except AttributeError:
        return importlib.import_module(f"{module}.{name}")
