"""Time, work, and memory of ROME edits at the real model size, alone and in chunks.

`edits_torch` compares the first edit with PyTorch.
"""

from __future__ import annotations

import functools
import json
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from benchmarks.edit_case import STEPS, count_work, first_case, make_inputs
from benchmarks.gpu import sizes, weights
from benchmarks.gpu.card import CEILINGS
from benchmarks.gpu.child import Context
from benchmarks.gpu.measure import median_seconds, peak_gib, warm_up
from benchmarks.gpu.moment import moment_root
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.methods import rome
from rome_jax.edit.result import EditResult
from rome_jax.edit.stages.inputs import EditInputs
from rome_jax.models.config import ModelConfig
from rome_jax.models.families import to_hf

# (number of edits, chunk size) by round. The programs of one round are compiled in parallel.
_ROUNDS = {
    "float32": [[(1, 1)], [(8, 8)], [(32, 32)]],
    "bfloat16": [[(1, 1)], [(8, 8)], [(32, 32), (128, 32)]],
}
_TINY_ROUNDS = {"float32": [[(1, 1), (2, 1)]], "bfloat16": [[(1, 1)]]}


def run(context: Context) -> None:
    """Saves the first edit for PyTorch, then times edits."""
    size, dtype = sizes.Size.of(context.size, context.tiny), context.dtype
    config = ROMEConfig((size.layer,), v_num_grad_steps=STEPS, loss_threshold=0.0)
    with ThreadPoolExecutor() as pool:  # factors C on the host while the device creates the weights
        moment = pool.submit(sizes.second_moment, size.config.mlp_width)
        params = jax.block_until_ready(weights.random_params(size.config, dtype))
        context.log("weights created")
        moments = {size.layer: moment.result()}
    context.log("second moment factored")

    def edit(inputs: EditInputs) -> EditResult:
        return rome.compute_from_inputs(params, size.config, inputs, config, moments)

    solving, _ = median_seconds(lambda: moments[size.layer].solve(np.ones(size.config.mlp_width)))
    context.emit(
        f"{context.size}, on the host", {"dtype": dtype, "what": "C⁻¹ k of one edit", "s": solving}
    )
    top, longest, each, warm = ceiling(context, dtype), 0.0, 0.0, set()
    for number, counts in enumerate((_TINY_ROUNDS if context.tiny else _ROUNDS)[dtype]):
        batches = {
            (edits, chunk): [
                make_inputs(chunk, size.config.vocab_size, seed) for seed in range(edits // chunk)
            ]
            for edits, chunk in counts
        }
        new = {chunk: batch[0] for (_, chunk), batch in batches.items() if chunk not in warm}
        # A new chunk size runs four times, including the first run.
        if new and context.seconds_left < longest + 4 * max(new) * each:
            print(f"Skipped chunks of {sorted(new)}: no time left to compile them.")
            return
        results, longest, compiling = warm_up([functools.partial(edit, x) for x in new.values()])
        warm |= set(new)
        context.log(f"chunks of {sorted(new)} compiled")
        if number == 0:
            _save_for_torch(context, new[1], config, size.config, results[0])
        if new:
            context.emit(
                f"{context.size}, compiling",
                {
                    "dtype": dtype,
                    "chunks of": ", ".join(map(str, new)),
                    "s until all had run": longest,
                    "s of all programs": compiling,
                },
            )
        for (edits, chunk), batch in batches.items():
            total, _ = median_seconds(lambda batch=batch: [edit(inputs).deltas for inputs in batch])
            each = total / edits
            work = count_work(size.config, batch[0], size.layer).rome_jax * edits
            reached = work / total / 1e12
            context.emit(
                f"{context.size}, edits",
                {
                    "side": "rome_jax",
                    "dtype": dtype,
                    "edits": edits,
                    "in chunks of": chunk,
                    "s per edit": each,
                    "TFLOP per edit": work / edits / 1e12,
                    "TFLOP/s": reached,
                    "of the ceiling": None if top is None else f"{reached / top:.0%}",
                    "peak GiB so far": peak_gib(),
                },
            )


def ceiling(context: Context, dtype: str) -> float | None:
    """Returns the measured rate of jax's matrix product for a dtype, in TFLOP/s, or None if it was not measured."""
    what = "float32, highest" if dtype == "float32" else dtype
    found = [
        row["TFLOP/s"]
        for row in context.rows(CEILINGS)
        if (row["side"], row["matrix product"]) == ("jax", what)
    ]
    return found[0] if found else None


def _save_for_torch(
    context: Context,
    inputs: EditInputs,
    config: ROMEConfig,
    model_config: ModelConfig,
    result: EditResult,
) -> None:
    """Saves the inputs of an edit and its result, from which PyTorch repeats and compares the edit."""
    (update,) = result.deltas.updates
    arrays = {
        "left": np.asarray(update.left[0, :, 0]),
        "right": np.asarray(update.right[0, :, 0]),
        "root": moment_root(model_config.mlp_width),
    }
    parts = first_case(inputs, config)
    arrays |= {f"case_{name}": np.asarray(value) for name, value in parts.items()}
    np.savez(
        context.shared_file(f"edit_{context.size}_{context.dtype}.npz"),
        config=json.dumps(to_hf(model_config)),
        **arrays,
    )
