"""The ROME edit of `edits` in PyTorch: checks that both edits are the same, then measures the time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from benchmarks import rome_torch
from benchmarks.gpu.child import Context
from benchmarks.gpu.moment import inverse
from benchmarks.gpu.weights_torch import load_shared
from benchmarks.timing_torch import synchronize

# Largest ‖ΔW − ΔW of PyTorch‖ / ‖ΔW‖ of the same edit. Twenty steps of Adam and C⁻¹ magnify rounding errors: Adam's
# first step depends almost only on the signs of the gradient, and noise flips some of them.
_SAME = {"float32": 1e-3, "bfloat16": 0.3}
_REPEATS = 3


def run(context: Context) -> None:
    """Writes the row of PyTorch, and the ratio of times if both sides found the same ΔW."""
    shared, model = load_shared(context, "edit")
    device = model.device
    case = _case(shared, device)

    def edit() -> tuple[float, tuple[torch.Tensor, torch.Tensor]]:
        synchronize()
        start = time.perf_counter()
        factors = rome_torch.edit(model, case)
        synchronize()
        return time.perf_counter() - start, factors

    _, (left, right) = edit()
    difference = rank_one_difference(
        (shared["left"], shared["right"]), (left.cpu().numpy(), right.cpu().numpy())
    )
    same = difference <= _SAME[context.dtype]
    seconds = statistics.median(edit()[0] for _ in range(_REPEATS))
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    table = f"{context.size}, edits"
    ours = [row for row in context.rows(table) if row["dtype"] == context.dtype]
    context.emit(
        table,
        {
            "side": "PyTorch",
            "dtype": context.dtype,
            "edits": 1,
            "in chunks of": 1,
            "s per edit": seconds,
            "peak GiB so far": peak,
        },
    )
    for row in ours:
        context.emit(
            f"{context.size}, edits against PyTorch",
            {
                "dtype": context.dtype,
                "edits": row["edits"],
                "‖ΔW − ΔW of PyTorch‖ / ‖ΔW‖": difference,
                "the same edit": same,
                "times faster": seconds / row["s per edit"] if same else None,
            },
        )


def _case(shared: Mapping[str, Any], device: torch.device) -> rome_torch.Case:
    """Builds the edit on the device from the saved arrays."""
    parts = {
        name.removeprefix("case_"): value if value.ndim else value.item()
        for name, value in shared.items()
        if name.startswith("case_")
    }
    return rome_torch.Case.of(parts, inverse(shared["root"]), device)


def rank_one_difference(
    ours: tuple[np.ndarray, np.ndarray], theirs: tuple[np.ndarray, np.ndarray]
) -> float:
    """Computes ‖l₁ ⊗ r₁ − l₂ ⊗ r₂‖ / ‖l₂ ⊗ r₂‖ without forming either matrix.

    Args:
      ours: (l₁, r₁), the factors of one matrix.
      theirs: (l₂, r₂), the factors of the reference matrix.

    Example:
      >>> one = np.array([3.0, 4.0]), np.array([1.0, 2.0])
      >>> rank_one_difference(one, (one[0], 2 * one[1]))
      0.5
    """
    (l1, r1), (l2, r2) = ((np.float64(left), np.float64(right)) for left, right in (ours, theirs))
    # l₁ ⊗ r₁ − l₂ ⊗ r₂ = (l₁ − l₂) ⊗ r₁ + l₂ ⊗ (r₁ − r₂), which does not subtract large squares.
    a, b = l1 - l2, r1 - r2
    square = (a @ a) * (r1 @ r1) + 2 * (a @ l2) * (r1 @ b) + (l2 @ l2) * (b @ b)
    return float(np.sqrt(max(square, 0.0) / ((l2 @ l2) * (r2 @ r2))))
