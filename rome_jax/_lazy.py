"""Public names that are imported when they are first asked for (PEP 562).

A package of this library lists its names three times: for editors as imports under `TYPE_CHECKING`, for everybody in
`__all__`, by topic, and for the running program in a table that says where each name lives. `import rome_jax` so loads
no jax. `tests/test_public_names.py` keeps the three lists equal.
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
    """The `__getattr__` and `__dir__` of a package.

    Args:
      package: its `__name__`.
      homes: public name -> the module that it is imported from, as "module", or "module:name" where it has another
        name there. The package's own modules and packages need no entry: `__getattr__` imports them too.

    Returns:
      `__getattr__`, and `__dir__`, which lists `__all__`.
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
        setattr(module, name, value)  # the next time it is there
        return value

    def names() -> list[str]:
        return sorted(sys.modules[package].__all__)

    return get, names


def import_name(module: str, name: str) -> Any:
    """What `from module import name` gives: an attribute, or else a module inside."""
    home = importlib.import_module(module)
    try:
        return getattr(home, name)
    except AttributeError:
        return importlib.import_module(f"{module}.{name}")
