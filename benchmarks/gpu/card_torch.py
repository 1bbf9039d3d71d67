"""Peak rates of the device in PyTorch."""

from __future__ import annotations

import torch

from benchmarks.gpu.child import Context
from benchmarks.timing_torch import torch_ceiling

_TABLE = "ceilings"  # as in card.py, which this module cannot import because it imports jax


def run(context: Context) -> None:
    """Adds the matrix products of torch to the table of peak rates."""
    size = 256 if context.tiny else 8192
    for what, dtype, tf32 in (
        ("float32, highest", "float32", False),
        ("float32, default (TF32 on NVIDIA)", "float32", True),
        ("bfloat16", "bfloat16", False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        reached = torch_ceiling(size, dtype) / 1e3
        context.emit(_TABLE, {"side": "PyTorch", "matrix product": what, "TFLOP/s": reached})
