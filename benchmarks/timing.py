"""Helpers of the benchmarks: a timer, the peak rate of jax on this machine, and the difference of two results."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def timed(function: Callable, repeats: int = 1) -> tuple[float, object]:
    """Times a function.

    Args:
      function: Function without arguments. It must wait for its own asynchronous work.
      repeats: Number of calls.

    Returns:
      (seconds of the fastest call, result of the last call).

    Example:
      >>> seconds, total = timed(lambda: sum(range(10)), repeats=3)
      >>> total
      45
    """
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return min(times), result


def ceiling(
    size: int = 2048,
    dtype: str = "float32",
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
) -> float:
    """Measures the rate of a large matrix product in jax, in GFLOP/s.

    Args:
      size: Rows and columns of the matrices. A GPU needs several thousand to reach its peak rate.
      dtype: "float32" or "bfloat16".
      precision: Precision of the product; `HIGHEST` computes in full float32.
    """
    on_device = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    product = jax.jit(lambda x: jnp.matmul(x, x, precision=precision))
    product(on_device).block_until_ready()
    seconds, _ = timed(lambda: product(on_device).block_until_ready(), 10)
    return 2e-9 * size**3 / seconds


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Computes ‖actual − expected‖ / ‖expected‖.

    Example:
      >>> round(relative_error(np.array([1.0, 0.1]), np.array([1.0, 0.0])), 6)
      0.1
    """
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
