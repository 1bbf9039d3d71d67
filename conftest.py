"""Fixtures that all tests and docstring examples share: the golden numbers, the random models, the shipped one."""

import functools
import gc
import os
import pathlib

import pytest

from tests import quick_compile

# All workers, scripts, and notebooks of a run share one compilation cache, and so does the next run. This has to be set
# before jax is imported.
_CACHE = pathlib.Path(__file__).parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Most of a run is compilation.
if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") != "0":
    os.environ.update(quick_compile.variables() | os.environ)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import rome_jax  # noqa: E402
from tests.golden_cases import GOLDEN, read_case  # noqa: E402

# Linux grants a process 65,530 memory maps by default, and each compiled program takes several.
_MOST_MEMORY_MAPS = 30_000

# Traced and compiled programs are millions of objects that stay, and each garbage collection looks at them again: with
# the default thresholds, a tenth of a run.
_GARBAGE_THRESHOLDS = (100_000, 10, 10)


def pytest_collection_finish():
    """Makes garbage collections rare, and spares them the objects of imported modules and collected tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GARBAGE_THRESHOLDS)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skips a test marked `needs` if a package of an extra is missing."""
    for mark in item.iter_markers("needs"):
        for package in mark.args:
            pytest.importorskip(package)


@pytest.fixture(scope="session")
def golden():
    """golden(name) -> its name, `info` (the .json) and `arrays` (the .npz)."""
    return read_case


@pytest.fixture(scope="session")
def golden_model():
    """golden_model("gpt2" | "gptj") -> the random model that the golden numbers belong to.

    With ROME_JAX_TEST_MESH=data:2,model:4 it is on that mesh; tests/test_mesh.py runs some tests in this way.
    """
    text = os.environ.get("ROME_JAX_TEST_MESH")
    mesh = rome_jax.models.parse_mesh(text) if text else None
    return functools.cache(lambda family: rome_jax.load_model(GOLDEN / "ckpt" / family, mesh=mesh))


@pytest.fixture(scope="session")
def shipped_model():
    """shipped_model("factworld-gpt2" | "factworld-gptj") -> the model in the package, loaded once per process."""
    return functools.cache(rome_jax.load_model)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Drops compiled programs when the process nears the limit on its memory maps."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > _MOST_MEMORY_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def names_in_examples(request):
    """The names that docstring examples may use without defining them; files they write go to a temporary folder."""
    if not isinstance(request.node, pytest.DoctestItem):
        return
    request.getfixturevalue("monkeypatch").chdir(request.getfixturevalue("tmp_path"))
    model = request.getfixturevalue("shipped_model")("factworld-gpt2")
    request.getfixturevalue("doctest_namespace").update(
        jax=jax,
        jnp=jnp,
        np=np,
        rome_jax=rome_jax,
        model=model,
        key=jax.random.key(0),
        request=rome_jax.EditRequest("{} plays the sport of", "Gothulf Punby", "tennis"),
        config=rome_jax.ROMEConfig.for_model("factworld-gpt2"),
        moments=rome_jax.load_shipped("factworld-gpt2"),
    )
