"""Clock and memory of jax's side: synchronized, warm, compiling apart."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_THREADS = 8


def median_seconds(function: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """(median seconds of one call, what the last one returned); waits for the device."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        result = jax.block_until_ready(function())
        times.append(time.perf_counter() - begun)
    return statistics.median(times), result


@contextlib.contextmanager
def compile_seconds() -> Iterator[list[float]]:
    """Collects the seconds of each program that is compiled, or read from the compilation cache, meanwhile.

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
    """Calls functions for the first time, in parallel threads, since what they compile is what takes the time.

    Returns:
      (results, seconds until all were done, sum of their compile seconds)
    """
    begun = time.perf_counter()
    with compile_seconds() as compiled, ThreadPoolExecutor(_THREADS) as pool:
        results = list(pool.map(lambda function: jax.block_until_ready(function()), functions))
    return results, time.perf_counter() - begun, sum(compiled)


def peak_gib() -> float | None:
    """GiB of the device that this process has held at once, at most; None where jax does not know."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / 2**30 if "peak_bytes_in_use" in stats else None
