"""Environment variables that make jax compile faster and run slower on a CPU, for tests and tiny benchmarks."""

from __future__ import annotations

import jaxlib.version


def variables() -> dict[str, str]:
    """Returns environment variables to set before jax is imported, unless they are already set.

    jax then compiles without most optimizations, as in its own tests, which halves the compile time. It also uses the
    plain code generator on one thread, which saves another third of the processor time.
    """
    found = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    # XLA exits if it does not know a flag.
    if jaxlib.version.__version_info__ < (0, 12):
        found["XLA_FLAGS"] = (
            "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 "
            "--xla_cpu_multi_thread_eigen=false"
        )
    return found
