"""Fixtures that all tests share: the golden numbers and the two random models that they belong to."""

import functools
import os
import pathlib

import jaxlib.version
import pytest

# Programs are compiled once for all workers, scripts and notebooks of a run, and for the next one. To be set before jax
# is imported.
_CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# As jax's own tests do: compiling is most of a run, and takes half the time without the optimizations.
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1":
    # And a third less processor time with the plain code generator. XLA ends a process that has a flag it does not know.
    if jaxlib.version.__version_info__ < (0, 12):
        os.environ.setdefault(
            "XLA_FLAGS",
            "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 "
            "--xla_cpu_multi_thread_eigen=false",
        )

import jax  # noqa: E402

from rome_jax.models.registry import load_model  # noqa: E402
from tests.golden_cases import GOLDEN, read_case  # noqa: E402


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
