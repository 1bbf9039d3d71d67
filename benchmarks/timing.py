"""What the benchmarks share: the clock, jax's ceiling on this machine, and how far two results are apart."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def timed(function: Callable, repeats: int = 1) -> tuple[float, object]:
    """(least seconds of one call, what it returned).

    Example:
      >>> seconds, total = timed(lambda: sum(range(10)), repeats=3)
      >>> total
      45
    """
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - begun)
    return min(times), result


def ceiling(
    size: int = 2048,
    dtype: str = "float32",
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
) -> float:
    """GFLOP/s of a large matrix product in jax.

    Args:
      size: of the square matrices; a GPU needs some thousands to be busy.
      dtype: "float32" or "bfloat16".
      precision: of the product; `HIGHEST` is true float32.

    Example:
      >>> ceiling() > 0  # doctest: +SKIP
      True
    """
    on_device = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    product = jax.jit(lambda x: jnp.matmul(x, x, precision=precision))
    product(on_device).block_until_ready()
    seconds, _ = timed(lambda: product(on_device).block_until_ready(), 10)
    return 2e-9 * size**3 / seconds


def relative_error(actual: np.ndarray, wanted: np.ndarray) -> float:
    """‖actual − wanted‖ / ‖wanted‖.

    Example:
      >>> round(relative_error(np.array([1.0, 0.1]), np.array([1.0, 0.0])), 6)
      0.1
    """
    return float(np.linalg.norm(actual - wanted) / np.linalg.norm(wanted))
