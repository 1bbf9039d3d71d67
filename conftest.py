"""Fixtures that all tests share: the golden numbers and the two random models that they belong to."""

import functools
import os
import pathlib

import pytest

from tests import quick_compile

# Programs are compiled once for all workers, scripts and notebooks of a run, and for the next one. To be set before jax
# is imported.
_CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Compiling is most of a run.
if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") != "0":
    os.environ.update(quick_compile.variables() | os.environ)

import jax  # noqa: E402

from rome_jax.models.registry import load_model  # noqa: E402
from tests.golden_cases import GOLDEN, read_case  # noqa: E402


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skips what is marked `needs` where a package of an extra is missing."""
    for mark in item.iter_markers("needs"):
        for package in mark.args:
            pytest.importorskip(package)


@pytest.fixture(scope="session")
def golden():
    """golden(name) -> its name, `info` (the .json) and `arrays` (the .npz)."""
    return read_case


@pytest.fixture(scope="session")
def golden_model():
    """golden_model("gpt2" | "gptj") -> the random model whose numbers are golden."""
    return functools.cache(lambda family: load_model(GOLDEN / "ckpt" / family))


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Lets go of a module's compiled programs: their memory maps would otherwise reach what Linux grants a process."""
    yield
    jax.clear_caches()
