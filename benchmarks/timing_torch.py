"""Helpers of the PyTorch side: its device and its peak rate. This module does not import jax."""

from __future__ import annotations

import time

import torch


def torch_device() -> torch.device:
    """Returns the GPU if torch has one, or else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    """Waits until the GPU is idle. Does nothing on a CPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def torch_ceiling(size: int = 2048, dtype: str = "float32") -> float:
    """Measures the rate of a large matrix product in torch, in GFLOP/s.

    Args:
      size: Rows and columns of the matrices.
      dtype: "float32" (full float32, unless `torch.backends.cuda.matmul.allow_tf32` is set) or "bfloat16".
    """
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(size, size, generator=generator)
    matrix = matrix.to(device=torch_device(), dtype=getattr(torch, dtype))
    times = []
    for _ in range(11):  # the first product only warms up
        synchronize()
        start = time.perf_counter()
        matrix @ matrix
        synchronize()
        times.append(time.perf_counter() - start)
    return 2e-9 * size**3 / min(times[1:])
