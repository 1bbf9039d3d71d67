"""Edits, a trace, and scoring of GPT-J at its real size in one process, with bfloat16 weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.edit_case import STEPS, count_work, make_inputs
from benchmarks.evaluate_cases import make_records, word_tokenizer
from benchmarks.gpu import sizes, weights
from benchmarks.gpu.child import Context
from benchmarks.gpu.edits import ceiling
from benchmarks.gpu.measure import median_seconds, peak_gib, warm_up
from benchmarks.trace_case import NOISE, PROMPT, SPAN, make_prompt
from benchmarks.trace_case import count_work as count_trace_work
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.methods import rome
from rome_jax.edit.stages.inputs import EditInputs
from rome_jax.evaluation.datasets import DatasetName
from rome_jax.evaluation.evaluate import evaluate_records
from rome_jax.models.interventions import Delta
from rome_jax.models.registry import LanguageModel
from rome_jax.trace import sweep
from rome_jax.trace.restore import TraceKind

_EDITS, _CHUNK, _COLUMNS, _SAMPLES = 16, 8, 256, 10


def run(context: Context) -> None:
    """Writes one row per job, as soon as the job is done."""
    size = sizes.Size.of(context.size, context.tiny)
    edits, chunk = (2, 1) if context.tiny else (_EDITS, _CHUNK)
    config = ROMEConfig((size.layer,), v_num_grad_steps=STEPS, loss_threshold=0.0)
    with ThreadPoolExecutor() as pool:  # factoring C takes several seconds on the host
        moment = pool.submit(sizes.second_moment, size.config.mlp_width)
        params = jax.block_until_ready(weights.random_params(size.config, context.dtype))
        tokenizer = word_tokenizer(size.config.vocab_size)
        model = LanguageModel(context.size, size.config, params, tokenizer, "random weights")
        report(context, "weights made", None, None)
        _, seconds, _ = warm_up([lambda: trace(model)])
        report(context, "first trace, with compiling", seconds, None)
        seconds, work = median_seconds(lambda: trace(model))
        report(context, f"trace of {PROMPT} tokens, hidden states", seconds, work)
        moments = {size.layer: moment.result()}

    def edit(inputs: EditInputs) -> Delta:
        return rome.compute_from_inputs(params, size.config, inputs, config, moments).deltas

    one = make_inputs(1, size.config.vocab_size)
    chunks = [make_inputs(chunk, size.config.vocab_size, seed) for seed in range(edits // chunk)]
    _, seconds, _ = warm_up([lambda: edit(one), lambda: edit(chunks[0])])
    report(context, "first edits, with compiling", seconds, None)

    seconds, _ = median_seconds(lambda: edit(one))
    work = count_work(size.config, one, size.layer).rome_jax
    report(context, "one edit", seconds, work)
    seconds, found = median_seconds(lambda: [edit(inputs) for inputs in chunks])
    work = count_work(size.config, chunks[0], size.layer).rome_jax * edits
    report(context, f"{edits} edits in chunks of {chunk}", seconds, work)
    score(context, model, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *found))


def report(context: Context, job: str, seconds: float | None, work: float | None) -> None:
    """Writes the row of a job.

    Args:
      context: Context of the part.
      job: Name of the job.
      seconds: Time of the job, or None if it was not timed.
      work: Floating-point operations of the job, or None if they were not counted.
    """
    top = ceiling(context, context.dtype)
    reached = None if work is None else work / seconds / 1e12
    context.emit(
        f"{context.size}, {context.dtype} weights",
        {
            "job": job,
            "s": seconds,
            "TFLOP/s": reached,
            "of the ceiling": None if None in (top, reached) else f"{reached / top:.0%}",
            "peak GiB so far": peak_gib(),
        },
    )


def trace(model: LanguageModel) -> float:
    """Computes a table of restored hidden states and returns its floating-point operations."""
    generator = np.random.default_rng(0)
    prompt = make_prompt(generator.integers(model.config.vocab_size, size=PROMPT))
    shape = (_SAMPLES, SPAN[1] - SPAN[0], model.config.width)
    noise = jnp.asarray(NOISE * generator.standard_normal(shape, np.float32))
    runs = sweep.start(model, prompt, noise)
    sweep.trace(runs, chunk_columns=_COLUMNS)
    return count_trace_work(model.config, prompt, _SAMPLES, TraceKind.HIDDEN, _COLUMNS).rome_jax


def score(context: Context, model: LanguageModel, deltas: Delta) -> None:
    """Times the scoring of one case per edit, each case under its own edit."""
    cases = len(deltas)
    records = make_records(cases, model.config.vocab_size)

    def scored():
        return evaluate_records(model, DatasetName.CF, records, deltas)

    first, _ = median_seconds(scored, 1)
    report(context, f"scoring of {cases} cases, compiling included", first, None)
    if context.seconds_left > first:
        report(context, f"scoring of {cases} cases", median_seconds(scored)[0], None)
