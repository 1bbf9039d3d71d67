"""Environment variables with which jax compiles quickly for a CPU and runs slowly: for tests and tiny benchmarks."""

from __future__ import annotations

import jaxlib.version


def variables() -> dict[str, str]:
    """To be set before jax is imported, where they are not set yet.

    As jax's own tests do, it compiles without most optimizations, which halves the time, and with the plain code
    generator on one thread, which takes a third less processor time again.
    """
    found = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    if jaxlib.version.__version_info__ < (
        0,
        12,
    ):  # XLA ends a process that has a flag it does not know
        found["XLA_FLAGS"] = (
            "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 "
            "--xla_cpu_multi_thread_eigen=false"
        )
    return found
