"""The memory of this process's first device."""

from __future__ import annotations

import jax

from rome_jax.files.memory import machine_memory


def memory_figure(name: str) -> int | None:
    """Returns a figure that jax reports about the memory of the first device, or None if it reports none, as for CPUs.

    Args:
      name: Name of the figure in `jax.Device.memory_stats`, such as "bytes_limit" or "peak_bytes_in_use".
    """
    return (jax.local_devices()[0].memory_stats() or {}).get(name)


def device_memory() -> int | None:
    """Returns the memory of the first device in bytes: of the machine if it is a CPU, or None if it is unknown."""
    if jax.local_devices()[0].platform == "cpu":
        return machine_memory()
    return memory_figure("bytes_limit")
