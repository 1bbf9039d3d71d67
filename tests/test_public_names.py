"""The public names of the library: listed by topic, imported when first used, and the same for type checkers."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path

import pytest

import rome_jax
from tests.test_imports import LIBRARY, ROOT, packages, run_python

PUBLIC = (LIBRARY, *packages(["edit", "evaluation", "models", "moments", "trace"]))


@dataclass(frozen=True)
class Listing:
    """The public names in the source of a package.

    Attributes:
      sections: The parts of `__all__`, by topic.
      imports: The module that type checkers import each name from, as "module" or "module:name there".
    """

    sections: list[list[str]]
    imports: dict[str, str]

    @classmethod
    def of(cls, package: str) -> Listing:
        """Parses the source of a package."""
        path = ROOT / Path(*package.split("."), "__init__.py")
        sections, imports = [], {}
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                for statement in node.body:
                    for alias in statement.names:
                        original = f":{alias.name}" if alias.asname else ""
                        imports[alias.asname or alias.name] = f"{statement.module}{original}"
            elif isinstance(node, (ast.Assign, ast.AugAssign)):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                if ast.unparse(target) == "__all__":
                    sections.append(ast.literal_eval(node.value))
        return cls(sections, imports)


def sort_key(name: str) -> tuple[int, str]:
    """Sorts constants, then classes, then functions and modules, each in alphabetical order."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_are_listed_once_and_sorted_by_topic(package):
    module, listing = importlib.import_module(package), Listing.of(package)
    assert len(listing.sections) > 2
    for section in listing.sections:
        assert section == sorted(section, key=sort_key)
    assert len(set(module.__all__)) == len(module.__all__)
    own = {name for name, home in listing.imports.items() if home == package}  # its own packages
    assert set(listing.imports) == set(module.__all__) - {"__version__"}
    assert listing.imports == module._HOMES | dict.fromkeys(own, package)


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_resolve_to_what_type_checkers_see(package):
    module, listing = importlib.import_module(package), Listing.of(package)
    inside = {found.name for found in pkgutil.iter_modules(module.__path__)}
    for name, home in listing.imports.items():
        home, _, original = home.partition(":")
        scope: dict[str, object] = {}
        exec(f"from {home} import {original or name} as value", scope)
        assert getattr(module, name) is scope["value"], name
        # A module of that name would replace the public name as soon as it is imported.
        assert home == package or name not in inside, name
    assert dir(module) == sorted(module.__all__)


def test_names_that_are_not_there_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'rome_jax' has no attribute 'memitt'"):
        _ = rome_jax.memitt
    with pytest.raises(ImportError, match=r"cannot import name 'nothing' from 'rome_jax\.models'"):
        exec("from rome_jax.models import nothing")


def test_modules_are_attributes_without_an_import():
    output = run_python("import rome_jax\nprint(rome_jax.models.sharding.MODEL_AXIS)")
    assert output == "model\n"


def test_the_old_name_of_the_second_moments_files_warns():
    with pytest.warns(DeprecationWarning, match=r"rome_jax\.moments"):
        from rome_jax import covariance
    assert covariance is rome_jax.moments
    assert rome_jax.rome is rome_jax.edit.methods.rome
