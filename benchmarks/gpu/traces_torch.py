"""The same traces in PyTorch, at a tenth of the places: first the proof that they are the same, then the time."""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from benchmarks import trace_torch
from benchmarks.gpu.child import Context
from benchmarks.gpu.weights_torch import take_over
from benchmarks.timing_torch import synchronize

_EVERY = 10  # place that PyTorch restores
_KINDS = ("hidden", "mlp", "attn")
_SAME = 1e-3  # largest difference of two tables, as a share of the largest indirect effect
_REPEATS = 3


def run(context: Context) -> None:
    """Writes PyTorch's rows, and the ratios of the kinds whose tables are the same."""
    handed, model = take_over(context, "trace")
    device = model.device
    ids, noise = (torch.tensor(handed[name], device=device) for name in ("ids", "noise"))
    span = tuple(handed["span"].tolist())
    case = trace_torch.Case(ids, span, noise, int(handed["window"]))
    places = handed["places"]
    some = np.arange(0, len(places), _EVERY)
    table = f"{context.size}, traces"
    ours = {row["kind"]: row for row in context.rows(table)}
    for kind in _KINDS:

        def sweep(kind=kind) -> tuple[float, np.ndarray]:
            synchronize()
            begun = time.perf_counter()
            scores = trace_torch.sweep(model, case, kind, places[some].tolist())
            synchronize()
            return time.perf_counter() - begun, scores.numpy()

        _, scores = sweep()
        wanted = handed[f"table_{kind}"]
        difference = float(np.abs(wanted.ravel()[some] - scores).max())
        effect = float(np.abs(wanted - handed["corrupted"]).max())
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
