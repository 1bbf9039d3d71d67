"""The memory of one device: one that a user describes, or the first one of this machine."""

from __future__ import annotations

import dataclasses
import os
from typing import Self

import jax

from rome_jax.models import devices
from rome_jax.scaling.setup import Platform

PROCESS = (
    200_000_000  # bytes of Python, its libraries, and compiled programs, which share a CPU's memory
)
_PREALLOCATED = 0.75  # jax's share of a GPU's memory, unless one of these variables sets another
_FRACTIONS = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


@dataclasses.dataclass(frozen=True)
class Device:
    """A device and its memory.

    Attributes:
      platform: Kind of the device.
      memory: Bytes that it has.
      usable: Bytes that jax uses of them.
    """

    platform: Platform
    memory: int
    usable: int

    @classmethod
    def of(cls, platform: Platform, memory: int) -> Self:
        """Returns a device that is described by its memory.

        Of a GPU, jax uses 75 %, or the share that XLA_CLIENT_MEM_FRACTION sets in the environment. Of a CPU's memory,
        the process itself takes 0.2 GB.

        Args:
          platform: Kind of the device.
          memory: Bytes that it has.

        Raises:
          ValueError: If the environment variable is not a number between 0 and 1.

        Example:
          >>> Device.of(Platform.CPU, 10**9).usable
          800000000
        """
        if platform is Platform.CPU:
            return cls(platform, memory, max(0, memory - PROCESS))
        return cls(
            platform, memory, int(memory * (_gpu_share() if platform is Platform.GPU else 1))
        )

    @classmethod
    def here(cls) -> Self:
        """Returns the first device of this machine.

        Raises:
          ValueError: If its memory is unknown.

        Example:
          >>> Device.here().platform == jax.local_devices()[0].platform
          True
        """
        platform, memory = platform_here(), devices.device_memory()
        if memory is None:
            raise ValueError(
                "the memory of this machine's device is unknown: give --device_memory, such as 80GB."
            )
        if platform is Platform.CPU:
            return cls.of(platform, memory)
        return cls(platform, memory, memory)  # the limit of a GPU is the share that jax uses


def platform_here() -> Platform:
    """Returns the platform of this machine's first device; another kind of accelerator counts as a GPU."""
    name = jax.local_devices()[0].platform
    return Platform(name) if name in list(Platform) else Platform.GPU


def _gpu_share() -> float:
    """Returns the share of a GPU's memory that jax uses."""
    for name in _FRACTIONS:
        if text := os.environ.get(name):
            try:
                share = float(text)
            except ValueError:
                share = 0.0
            if not 0 < share <= 1:
                raise ValueError(f"{name}={text!r}: set it to a number between 0 and 1.")
            return share
    return _PREALLOCATED
