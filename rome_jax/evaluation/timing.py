"""Wall time with the compilation of programs measured apart."""

from __future__ import annotations

import threading
import time
from typing import Self

import jax.monitoring

_COMPILE_EVENTS = (
    "/jax/core/compile/"  # tracing, lowering, and compiling or reading the compilation cache
)


class Stopwatch:
    """Measures a block of code, and how much of its wall time jax spent on compiling programs.

    jax reports the duration of every trace, lowering and compilation to listeners. The stopwatch collects them as
    intervals and takes the length of their union: a trace may contain other traces, and threads may compile at the same
    time. Computations that are still running when the block ends are not part of the measurement, so block on results
    first.

    Example:
      >>> with Stopwatch() as watch:
      ...     _ = jax.jit(lambda x: x + 1)(jnp.ones(3)).block_until_ready()
      >>> 0 < watch.compile_seconds < watch.seconds
      True
    """

    def __init__(self) -> None:
        self._begun = self._ended = 0.0
        self._intervals: list[tuple[float, float]] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        self._begun = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = time.monotonic()
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        """Notes a compilation step that has just ended."""
        if event.startswith(_COMPILE_EVENTS):
            now = time.monotonic()
            with self._lock:
                self._intervals.append((max(now - duration_secs, self._begun), now))

    @property
    def seconds(self) -> float:
        """Wall time of the block, compilation included."""
        return self._ended - self._begun

    @property
    def compile_seconds(self) -> float:
        """Wall time of the block during which at least one program was traced, lowered or compiled."""
        total, end = 0.0, self._begun
        for start, stop in sorted(self._intervals):
            total += max(stop - max(start, end), 0.0)
            end = max(end, stop)
        return total

    @property
    def run_seconds(self) -> float:
        """Wall time of the block without compilation."""
        return self.seconds - self.compile_seconds
