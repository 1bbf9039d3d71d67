"""Causal tracing at the real model size: one complete table per kind of restored state.

`traces_torch` compares the tables with PyTorch.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu import sizes, weights
from benchmarks.gpu.child import Context
from benchmarks.gpu.edits import ceiling
from benchmarks.gpu.measure import median_seconds, peak_gib, warm_up
from benchmarks.trace_case import NOISE, PROMPT, SPAN, count_work, every_place, make_prompt
from rome_jax.models.config import ModelConfig
from rome_jax.models.families import to_hf
from rome_jax.models.registry import LanguageModel
from rome_jax.trace import sweep
from rome_jax.trace.prompt import TracePrompt
from rome_jax.trace.restore import TraceKind

SAMPLES = 10
_CHUNK_COLUMNS = (256, sweep.CHUNK_COLUMNS)  # the one expected to be fastest comes first


def run(context: Context) -> None:
    """Finds the fastest `chunk_columns` for hidden states, then times all kinds with it."""
    config, dtype = sizes.Size.of(context.size, context.tiny).config, context.dtype
    params = weights.random_params(config, dtype)
    jax.block_until_ready(params)
    context.log("weights created")
    model = LanguageModel(context.size, config, params, None, "random weights")
    generator = np.random.default_rng(0)
    prompt = make_prompt(generator.integers(config.vocab_size, size=PROMPT))
    shape = (SAMPLES, SPAN[1] - SPAN[0], config.width)
    noise = NOISE * generator.standard_normal(shape, np.float32)
    on_device, window = jnp.asarray(noise), sweep.default_window(config.num_layers)

    def trace(kind: TraceKind, chunk_columns: int) -> tuple[np.ndarray, float]:
        runs = sweep.start(model, prompt, on_device)
        table = sweep.trace(runs, kind=kind, window=window, chunk_columns=chunk_columns)
        return table, runs.corrupted_score

    columns = _CHUNK_COLUMNS[-1:] if context.tiny else _CHUNK_COLUMNS
    first = [(kind, columns[0]) for kind in TraceKind] + [
        (TraceKind.HIDDEN, n) for n in columns[1:]
    ]
    results, seconds, compiling = warm_up([functools.partial(trace, *which) for which in first])
    _save_for_torch(
        context, config, prompt, noise, window, dict(zip(TraceKind, results, strict=False))
    )
    context.emit(
        f"{context.size}, compiling traces",
        {"dtype": dtype, "s until all had run": seconds, "s of all programs": compiling},
    )
    tried = {}
    for count in columns:
        tried[count], _ = median_seconds(functools.partial(trace, TraceKind.HIDDEN, count))
        row = {"kind": str(TraceKind.HIDDEN), "chunk_columns": count, "s per table": tried[count]}
        context.emit(f"{context.size}, columns per chunk", row)
    best = min(tried, key=tried.get)
    if best != columns[0]:
        warm_up([functools.partial(trace, kind, best) for kind in TraceKind])

    top = ceiling(context, dtype)
    for kind in TraceKind:
        seconds, _ = median_seconds(functools.partial(trace, kind, best))
        work = count_work(config, prompt, SAMPLES, kind, best, window)
        reached = work.rome_jax / seconds / 1e12
        context.emit(
            f"{context.size}, traces",
            {
                "side": "rome_jax",
                "dtype": dtype,
                "kind": str(kind),
                "places": len(every_place(PROMPT, config.num_layers)),
                "chunk_columns": best,
                "s per table": seconds,
                "of the naive work": f"{work.rome_jax / work.torch:.1%}",
                "TFLOP/s": reached,
                "of the ceiling": None if top is None else f"{reached / top:.0%}",
                "peak GiB so far": peak_gib(),
            },
        )


def _save_for_torch(
    context: Context,
    config: ModelConfig,
    prompt: TracePrompt,
    noise: np.ndarray,
    window: int,
    traced: Mapping[TraceKind, tuple[np.ndarray, float]],
) -> None:
    """Saves the inputs of the traces and their tables, from which PyTorch repeats and compares them."""
    tables = {f"table_{kind}": table for kind, (table, _) in traced.items()}
    np.savez(
        context.shared_file(f"trace_{context.size}_{context.dtype}.npz"),
        config=json.dumps(to_hf(config)),
        ids=np.array(prompt.ids),
        span=np.array(SPAN),
        window=window,
        noise=noise,
        places=every_place(PROMPT, config.num_layers),
        corrupted=np.float64(traced[TraceKind.HIDDEN][1]),
        **tables,
    )
