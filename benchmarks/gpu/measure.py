"""Timers and memory of the jax side. Timers wait for the device and count compilation separately."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from rome_jax.models.devices import memory_figure

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_THREADS = 8


def median_seconds(function: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """Times a function, waiting for the device after each call.

    Args:
      function: Function without arguments.
      repeats: Number of calls.

    Returns:
      (median seconds per call, result of the last call).
    """
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return statistics.median(times), result


@contextlib.contextmanager
def compile_seconds() -> Iterator[list[float]]:
    """Collects compile times inside a `with` block.

    Yields:
      A list that grows by the seconds of each program that is compiled or read from the compilation cache.

    Example:
      >>> with compile_seconds() as compiled:
      ...     _ = jax.jit(lambda x: x + 1)(1.0)
      >>> sum(compiled) > 0
      True
    """
    found: list[float] = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event == _COMPILE_EVENT:
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def warm_up(functions: Sequence[Callable[[], Any]]) -> tuple[list[Any], float, float]:
    """Calls functions for the first time, in parallel threads, because most of the time is compilation.

    Args:
      functions: Functions without arguments.

    Returns:
      (results, seconds until all functions had returned, sum of the compile times of all programs).
    """
    start = time.perf_counter()
    with compile_seconds() as compiled, ThreadPoolExecutor(_THREADS) as pool:
        results = list(pool.map(lambda function: jax.block_until_ready(function()), functions))
    return results, time.perf_counter() - start, sum(compiled)


def peak_gib() -> float | None:
    """Returns the peak device memory of this process in GiB, or None if jax does not report it."""
    peak = memory_figure("peak_bytes_in_use")
    return None if peak is None else peak / 2**30
