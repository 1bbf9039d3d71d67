"""The device that a plan is made for."""

from __future__ import annotations

from absl import flags

from eval.flags import model
from rome_jax.models.sharding import mesh_sizes
from rome_jax.scaling.device import Device
from rome_jax.scaling.setup import Platform
from rome_jax.scaling.sizes import parse_bytes

MEMORY = flags.DEFINE_string(
    "device_memory",
    None,
    "Memory of one device, such as 80GB or 24GiB. Default: that of this machine's first device.",
)
PLATFORM = flags.DEFINE_enum_class(
    "platform",
    None,
    Platform,
    "Kind of the device. A GPU gives jax 75% of its memory unless XLA_CLIENT_MEM_FRACTION is set. Default: gpu with "
    "--device_memory, otherwise that of this machine.",
)
SECONDS = flags.DEFINE_bool(
    "seconds",
    False,
    "Print instead the work of the usual jobs, and their estimated seconds on one and on eight H100 GPUs.",
)


def device() -> Device:
    """Returns the device of --device_memory and --platform, or the first one of this machine.

    Raises:
      ValueError: If the memory is not a size, or is unknown.
    """
    if MEMORY.value is not None:
        size = parse_bytes(MEMORY.value, "--device_memory")
        return Device.of(PLATFORM.value or Platform.GPU, size)
    if PLATFORM.value is not None:
        raise ValueError(f"--platform={PLATFORM.value}: give --device_memory with it.")
    return Device.here()


def mesh() -> dict[str, int]:
    """Returns the sizes of the axes of --mesh, which need no devices here.

    Raises:
      ValueError: If it is not a mesh, or does not give the number of devices.
    """
    if model.MESH.value is None:
        return {}
    sizes = dict(mesh_sizes(model.MESH.value))
    if -1 in sizes.values():
        raise ValueError(
            f"--mesh={model.MESH.value}: a plan knows no devices, give their number instead of -1."
        )
    return sizes
