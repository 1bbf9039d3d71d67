"""The memory of this machine, with which sizes are compared before work begins."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_memory() -> int | None:
    """Returns the memory of this machine or of its container in bytes, or None if it is unknown."""
    found = []
    with contextlib.suppress(ValueError, OSError, AttributeError):  # not on this system
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in _LIMITS:
        try:
            found.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # no container, or "max"
            continue
    return min((size for size in found if size > 0), default=None)


def available_memory() -> int | None:
    """Returns the memory in bytes that new work on this machine can use, or None if it is unknown.

    It is the smaller of what the system has free, caches of files included, and of the container's limit.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
                return min(free, machine_memory() or free)
    return machine_memory()


def check_memory(needed: int, name: str, *, error: type[Exception] = ValueError) -> None:
    """Refuses work that needs more memory than the machine has.

    Args:
      needed: Estimated memory in bytes.
      name: What needs it, the subject of the message, such as the path of a file.
      error: Exception to raise.

    Raises:
      error: If the machine has less memory.

    Example:
      >>> check_memory(10**15, "data.parquet")
      Traceback (most recent call last):
      ...
      ValueError: data.parquet needs about 1,000,000.0 GB of memory, ...
    """
    have = machine_memory()
    if have is not None and needed > have:
        raise error(
            f"{name} needs about {needed / 1e9:,.1f} GB of memory, and this machine has {have / 1e9:,.1f} GB: "
            "give less, or use a larger machine."
        )
