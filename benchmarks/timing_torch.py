"""PyTorch's side of the measurements: where it computes, and its ceiling there. Imports no jax."""

from __future__ import annotations

import time

import torch


def torch_device() -> torch.device:
    """The GPU if torch has one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    """Waits for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def torch_ceiling(size: int = 2048, dtype: str = "float32") -> float:
    """GFLOP/s of a large matrix product in torch, on its device.

    Args:
      size: of the square matrices.
      dtype: "float32" (true float32, unless `torch.backends.cuda.matmul.allow_tf32` is set) or "bfloat16".

    Example:
      >>> torch_ceiling() > 0  # doctest: +SKIP
      True
    """
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(size, size, generator=generator)
    matrix = matrix.to(device=torch_device(), dtype=getattr(torch, dtype))
    times = []
    for _ in range(11):  # the first warms up
        synchronize()
        begun = time.perf_counter()
        matrix @ matrix
        synchronize()
        times.append(time.perf_counter() - begun)
    return 2e-9 * size**3 / min(times[1:])
