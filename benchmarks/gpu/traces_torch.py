"""The traces of `traces` in PyTorch, for a tenth of the restorations.

Checks that the tables agree at those positions, then measures the time.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from benchmarks import trace_torch
from benchmarks.gpu.child import Context
from benchmarks.gpu.weights_torch import load_shared
from benchmarks.timing_torch import synchronize

_EVERY = 10  # PyTorch runs every tenth restoration
_KINDS = ("hidden", "mlp", "attn")
_SAME = 1e-3  # largest difference of equal tables, as a fraction of the largest indirect effect
_REPEATS = 3


def run(context: Context) -> None:
    """Writes the rows of PyTorch, and the ratio of times for each kind whose tables agree."""
    shared, model = load_shared(context, "trace")
    device = model.device
    ids, noise = (torch.tensor(shared[name], device=device) for name in ("ids", "noise"))
    span = tuple(shared["span"].tolist())
    case = trace_torch.Case(ids, span, noise, int(shared["window"]))
    places = shared["places"]
    some = np.arange(0, len(places), _EVERY)
    table = f"{context.size}, traces"
    ours = {row["kind"]: row for row in context.rows(table)}
    for kind in _KINDS:

        def sweep(kind=kind) -> tuple[float, np.ndarray]:
            synchronize()
            start = time.perf_counter()
            scores = trace_torch.sweep(model, case, kind, places[some].tolist())
            synchronize()
            return time.perf_counter() - start, scores.numpy()

        _, scores = sweep()
        expected = shared[f"table_{kind}"]
        difference = float(np.abs(expected.ravel()[some] - scores).max())
        effect = float(np.abs(expected - shared["corrupted"]).max())
        same = difference <= _SAME * effect
        seconds = statistics.median(sweep()[0] for _ in range(_REPEATS))
        seconds *= len(places) / len(some)
        context.emit(
            table,
            {
                "side": f"PyTorch, {len(some)} places scaled",
                "dtype": context.dtype,
                "kind": kind,
                "places": len(places),
                "s per table": seconds,
            },
        )
        context.emit(
            f"{context.size}, traces against PyTorch",
            {
                "kind": kind,
                "largest difference": difference,
                "largest indirect effect": effect,
                "the same table": same,
                "times faster": seconds / ours[kind]["s per table"] if same else None,
            },
        )
