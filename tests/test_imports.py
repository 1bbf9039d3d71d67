"""The import rules of the project, checked by parsing the sources, and the cost of the import."""

from __future__ import annotations

import ast
import functools
import graphlib
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = "rome_jax"
# From the ground up: a package imports only packages of lower floors. `edit` and `trace` never import each other.
FLOORS = (
    ("files",),
    ("factworld",),
    ("data",),
    ("models",),
    ("moments",),
    ("edit", "trace"),
    ("evaluation",),
    ("scaling",),
    ("plots",),
    ("terminal",),
    ("factworld_training",),
)


@dataclass(frozen=True)
class Rule:
    """A rule that some modules do not import others.

    Attributes:
      name: Name of the rule.
      within: Packages whose modules keep the rule.
      forbidden: Packages that they do not import.
      exempt: Packages and modules inside `within` that the rule does not apply to.
      listings: Packages whose own `__init__.py` is exempt, because it lists names of modules inside.
    """

    name: str
    within: tuple[str, ...]
    forbidden: tuple[str, ...]
    exempt: tuple[str, ...] = ()
    listings: tuple[str, ...] = ()

    def applies(self, module: str) -> bool:
        """Returns whether this rule applies to a module."""
        if module in self.listings:
            return False
        return covers(self.within, module) and not covers(self.exempt, module)


def packages(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the full names of packages of the library."""
    return tuple(f"{LIBRARY}.{name}" for name in names)


def floor_rule(number: int) -> Rule:
    """Builds the rule that the packages of a floor do not import the floors above."""
    above = [name for floor in FLOORS[number + 1 :] for name in floor]
    return Rule(f"floor {number}", packages(FLOORS[number]), packages(above))


RULES = (
    *(floor_rule(number) for number in range(len(FLOORS))),
    Rule("edit does not know trace", packages(["edit"]), packages(["trace"])),
    Rule("trace does not know edit", packages(["trace"]), packages(["edit"])),
    Rule(
        "the library works without the checkout",
        within=(LIBRARY,),
        forbidden=("eval", "configs", "tests", "benchmarks"),
    ),
    Rule("nothing imports eval", within=("configs",), forbidden=("eval",)),
    Rule(
        "command-line flags belong to programs",
        within=(LIBRARY, "configs"),
        forbidden=("absl.flags", "absl.app"),
    ),
    Rule(
        "plots are drawn in one place",
        within=(LIBRARY, "configs", "eval"),
        forbidden=("matplotlib",),
        exempt=packages(["plots"]),
    ),
    Rule(
        "torch only converts old checkpoints",
        within=(LIBRARY, "configs", "eval"),
        forbidden=("torch",),
        exempt=("rome_jax.models.convert_torch",),
    ),
    Rule(
        "data about the world and requests need no jax",
        within=packages(["files", "factworld", "data.request", "data.positions", "data.corpus"]),
        forbidden=("jax", "jaxlib", "flax", "optax"),
    ),
    Rule(
        "inside edit only the methods, their registry, and their editors import the stages",
        within=packages(["edit"]),
        forbidden=packages(["edit.stages"]),
        exempt=packages(
            ["edit.stages", "edit.methods", "edit.hypernetworks", "edit.method", "edit.sequential"]
        ),
        listings=packages(["edit"]),
    ),
)

# One breach of every rule, and a similar import that keeps it.
BREACHES = {
    "floor 3": (
        ("rome_jax.models.forward", "from rome_jax.edit import delta"),
        ("rome_jax.models.forward", "from rome_jax.models import edit_free_zone"),
    ),
    "edit does not know trace": (
        ("rome_jax.edit.delta", "def f():\n    import rome_jax.trace.noise as noise"),
        ("rome_jax.eval_notes", "import rome_jax.trace"),
    ),
    "trace does not know edit": (
        ("rome_jax.trace.sweep", "from ..edit.stages.key import compute_key"),
        ("rome_jax.trace.sweep", "from .noise import draw"),
    ),
    "the library works without the checkout": (
        ("rome_jax.data.tokens", "import eval.metrics"),
        ("rome_jax.data.tokens", "import evaluation"),
    ),
    "nothing imports eval": (
        ("configs.rome", "from eval import flags"),
        ("eval.edit", "from eval import flags"),
    ),
    "command-line flags belong to programs": (
        ("rome_jax.models.registry", "from absl import flags, logging"),
        ("rome_jax.models.registry", "from absl import logging"),
    ),
    "plots are drawn in one place": (
        ("rome_jax.trace.result", "import matplotlib.pyplot as plt"),
        ("rome_jax.plots.tracing", "import matplotlib.pyplot as plt"),
    ),
    "torch only converts old checkpoints": (
        ("rome_jax.models.huggingface", "import importlib\nimportlib.import_module('torch.nn')"),
        ("rome_jax.models.convert_torch", "import torch"),
    ),
    "data about the world and requests need no jax": (
        ("rome_jax.data.positions", "import jax.numpy as jnp"),
        ("rome_jax.data.positions", "import numpy as np"),
    ),
    "inside edit only the methods, their registry, and their editors import the stages": (
        ("rome_jax.edit.delta", "from rome_jax.edit.stages.key import compute_key"),
        ("rome_jax.edit.methods.rome", "from rome_jax.edit.stages import contexts, key, value"),
    ),
}


def covers(packages: tuple[str, ...], module: str) -> bool:
    """Returns whether a module is one of some packages or inside one."""
    return any(module == package or module.startswith(package + ".") for package in packages)


@functools.cache
def imported(source: str, module: str, is_package: bool = False) -> frozenset[str]:
    """Lists every module that a source may import, anywhere in it, by absolute name.

    `from a import b` counts as `a` and as `a.b`, since `b` may be a module.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                package = parts[: len(parts) - node.level + is_package]
                base = ".".join([*package, *filter(None, [node.module])])
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            function = node.func
            called = function.attr if isinstance(function, ast.Attribute) else None
            called = function.id if isinstance(function, ast.Name) else called
            argument = node.args[0]
            if called in ("import_module", "__import__") and isinstance(argument, ast.Constant):
                names.add(str(argument.value))
    return frozenset(names)


def breaches(rule: Rule, module: str, source: str, is_package: bool = False) -> list[str]:
    """Lists what a module imports against a rule."""
    if not rule.applies(module):
        return []
    names = imported(source, module, is_package)
    return sorted(name for name in names if covers(rule.forbidden, name))


def sources() -> Iterator[tuple[str, Path]]:
    """Yields the modules that the rules apply to, with their files."""
    for top in (LIBRARY, "eval", "configs"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_is_kept(rule):
    found = {
        str(path.relative_to(ROOT)): bad
        for module, path in sources()
        if (bad := breaches(rule, module, path.read_text(), path.name == "__init__.py"))
    }
    assert not found, f"{rule.name}: {found}"


def test_sources_are_found():
    modules = {module for module, _ in sources()}
    assert {"rome_jax", "rome_jax.models", "rome_jax.edit", "rome_jax.trace"} <= modules


def needed_modules(source: str, module: str, is_package: bool, known: set[str]) -> set[str]:
    """Lists the library's modules that importing a module imports, except those imported for type checkers."""
    top = [
        ast.unparse(node)
        for node in ast.parse(source).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    names = imported("\n".join(top), module, is_package)
    parents = {name for name in names if any(other.startswith(f"{name}.") for other in names)}
    return (names - parents) & known - {module}


def test_no_module_imports_itself_in_a_circle():
    found = {module: path for module, path in sources() if covers((LIBRARY,), module)}
    graph = {
        module: needed_modules(path.read_text(), module, path.name == "__init__.py", set(found))
        for module, path in found.items()
    }
    assert "rome_jax.models.forward" in graph["rome_jax.edit.methods.rome"]
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_a_circle_is_seen():
    circle = {"a.b": "from a import c", "a.c": "import a.b"}
    graph = {name: needed_modules(text, name, False, set(circle)) for name, text in circle.items()}
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph).prepare()


def test_every_package_has_a_floor():
    found = {path.parent.name for path in (ROOT / LIBRARY).glob("*/__init__.py")}
    assert found == {name for floor in FLOORS for name in floor}


def test_contributing_draws_these_floors():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    drawn = [
        tuple(cell.strip() for cell in line.split("│")[1:-1])
        for line in text.splitlines()
        if line.startswith("│")
    ]
    assert tuple(reversed(drawn)) == FLOORS


@pytest.mark.parametrize(
    "rule", [rule for rule in RULES if rule.name in BREACHES], ids=lambda rule: rule.name
)
def test_rule_can_fail(rule):
    breach, fine = BREACHES[rule.name]
    assert breaches(rule, *breach)
    assert not breaches(rule, *fine)


@pytest.mark.parametrize(
    ("source", "module", "is_package", "expected"),
    [
        ("import a.b as c, d", "m", False, {"a.b", "d"}),
        ("from a import b", "m", False, {"a", "a.b"}),
        ("from . import b", "p.q.m", False, {"p.q", "p.q.b"}),
        ("from .a import b", "p.q", True, {"p.q.a", "p.q.a.b"}),
        ("from ..a import b", "p.q.m", False, {"p.a", "p.a.b"}),
        ("def f():\n    if x:\n        import a", "m", False, {"a"}),
        ("import_module('a.b')\n__import__('c')\nprint('d')", "m", False, {"a.b", "c"}),
        ("'''import a'''  # import b", "m", False, set()),
    ],
)
def test_imported(source, module, is_package, expected):
    assert imported(source, module, is_package) == expected


def run_python(program: str) -> str:
    """Runs a program in a new interpreter at the root of the project, and returns its standard output."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_nothing_but_a_list_of_names():
    output = run_python(
        "import sys, rome_jax\n"
        "print([name for name in ('jax', 'flax', 'numpy', 'absl') if name in sys.modules])\n"
        "print(sorted(name for name in sys.modules if name.startswith('rome_jax')))\n"
    )
    assert output.splitlines() == ["[]", "['rome_jax', 'rome_jax._lazy', 'rome_jax.version']"]


def test_what_the_package_offers_is_lean():
    """The public names of `rome_jax` load no heavy package and define no command-line flag.

    flax logs through absl, which loads `absl.flags`, so the test checks that rome_jax defines no flag.
    """
    output = run_python(
        "import sys\n"
        "from rome_jax import *\n"
        "heavy = 'torch', 'matplotlib', 'transformers', 'absl.app', 'datasets', 'orbax.checkpoint', 'nltk', 'sklearn'\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "defined = sys.modules['absl.flags'].FLAGS.flags_by_module_dict()\n"
        "print([name for name in defined if name.startswith(('rome_jax', 'eval'))])\n"
    )
    assert output.splitlines() == ["[]", "[]"]


def test_import_is_fast():
    """The import takes at most 2 s of processor time, which does not depend on other programs on the machine."""
    program = "import time, rome_jax\nprint(time.process_time())"
    best = float("inf")
    for _ in range(3):
        best = min(best, float(run_python(program)))
        if best <= 2:
            return
    pytest.fail(f"import rome_jax takes {best:.1f} s of processor time, more than 2 s")
