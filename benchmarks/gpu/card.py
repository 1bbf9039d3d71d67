"""The device of the check: its name, driver, package versions, and peak rates in jax."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess

import jax
import jax.numpy as jnp

from benchmarks.gpu.child import Context
from benchmarks.gpu.measure import median_seconds
from benchmarks.timing import ceiling
from rome_jax.models.devices import memory_figure

CEILINGS = "ceilings"
_PACKAGES = (
    "jax jaxlib jax-cuda12-plugin jax-cuda13-plugin flax optax numpy transformers torch".split()
)
_LAUNCHES = 100


def run(context: Context) -> None:
    """Writes the tables of the device, the versions, and the peak rates."""
    context.emit("device", _device())
    for name in _PACKAGES:
        try:
            context.emit("versions", {"package": name, "version": importlib.metadata.version(name)})
        except importlib.metadata.PackageNotFoundError:
            continue
    size = 256 if context.tiny else 8192
    for what, dtype, precision in (
        ("float32, highest", "float32", jax.lax.Precision.HIGHEST),
        ("bfloat16", "bfloat16", jax.lax.Precision.DEFAULT),
        ("float32, default (TF32 on NVIDIA)", "float32", jax.lax.Precision.DEFAULT),
    ):
        reached = ceiling(size, dtype, precision) / 1e3
        context.emit(CEILINGS, {"side": "jax", "matrix product": what, "TFLOP/s": reached})
    for what, figure in (
        ("copy on the device, bytes read and written", _copy(context.tiny)),
        ("launch of a jitted no-op", _launch()),
    ):
        context.emit("copies and launches", {"what": what, "figure": figure})


def _device() -> dict[str, object]:
    """Describes the device, the driver, and the host."""
    device = jax.local_devices()[0]
    memory = memory_figure("bytes_limit")
    found = {
        "backend": jax.default_backend(),
        "kind": device.device_kind,
        "memory GiB": None if memory is None else memory / 2**30,
        "driver": None,
        "host": f"{platform.machine()}, Python {platform.python_version()}",
    }
    if shutil.which("nvidia-smi"):
        query = [
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total",
            "--format=csv,noheader",
        ]
        done = subprocess.run(query, capture_output=True, text=True, check=False)
        found["driver"] = done.stdout.strip() or None
    return found


def _copy(tiny: bool) -> str:
    """Measures the memory bandwidth of the device."""
    count = 2**16 if tiny else 2**28
    array = jnp.zeros(count, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    add(array).block_until_ready()
    seconds, _ = median_seconds(lambda: add(array), 10)
    return f"{2 * array.nbytes / seconds / 1e9:.0f} GB/s"


def _launch() -> str:
    """Measures the time to launch a small program."""
    same = jax.jit(lambda x: -x)
    value = same(jnp.float32(1)).block_until_ready()

    def chain():
        x = value
        for _ in range(_LAUNCHES):
            x = same(x)
        return x

    chain().block_until_ready()
    seconds, _ = median_seconds(chain)
    return f"{seconds / _LAUNCHES * 1e6:.1f} µs"
