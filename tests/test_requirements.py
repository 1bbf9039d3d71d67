"""The requirements in setup.cfg: no torch and no CUDA unless asked for, and all that the library imports."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_imports import LIBRARY, ROOT, covers, imported, packages, sources


def requirements(extra: str | None = None) -> list[Requirement]:
    """Reads the requirements in setup.cfg, of the base install or of an extra."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    text = (
        config["options"]["install_requires"]
        if extra is None
        else config["options.extras_require"][extra]
    )
    return [Requirement(line) for line in text.split("\n") if line and not line.startswith("#")]


def closure(wanted: list[Requirement]) -> set[str]:
    """Lists the names of everything that requirements install, as far as it is installed here."""
    seen: set[tuple[str, frozenset[str]]] = set()
    stack = list(wanted)
    while stack:
        requirement = stack.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for need in map(Requirement, needs):
            environments = [{"extra": chosen} for chosen in extras or {""}]
            if need.marker is None or any(map(need.marker.evaluate, environments)):
                stack.append(need)
    return {name for name, _ in seen}


def gpu_or_torch(names: set[str]) -> list[str]:
    """Selects the names of packages that contain torch or a GPU's libraries."""
    marks = ("torch", "cuda", "nvidia", "rocm", "triton")
    return sorted(name for name in names if any(mark in name for mark in marks))


@pytest.mark.parametrize("extra", [None, "eval", "gguf", "notebooks", "plot", "test"])
def test_plain_installs_include_no_torch_and_no_cuda(extra):
    wanted = requirements() + (requirements(extra) if extra else [])
    assert not any(need.extras for need in wanted)
    assert gpu_or_torch(closure(wanted)) == []


def test_torch_and_cuda_are_seen_where_they_are():
    assert gpu_or_torch(closure(requirements("parity"))) != []
    assert gpu_or_torch({"jax-cuda12-plugin", "numpy"}) == ["jax-cuda12-plugin"]
    assert [need.name for need in requirements("cuda")] == ["jax"]
    assert requirements("cuda")[0].extras == {"cuda"}


def test_base_install_names_what_the_library_imports():
    """The base install requires what library modules import at the top."""
    distributions = importlib.metadata.packages_distributions()
    allowed = {canonicalize_name(need.name) for need in requirements()}
    missing = {}
    for module, path in sources():
        if not covers((LIBRARY,), module) or covers(packages(["plots"]), module):
            continue  # plots need matplotlib, from the extra `plot`
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            for name in imported(ast.unparse(node), module, path.name == "__init__.py"):
                top = name.split(".")[0]
                if top in sys.stdlib_module_names or top == LIBRARY:
                    continue
                if not {canonicalize_name(d) for d in distributions.get(top, [top])} & allowed:
                    missing[module] = top
    assert not missing
