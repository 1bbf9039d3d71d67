"""Evaluation at the real model size: CounterFact-shaped cases, edited and scored, and texts generated under edits."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.edit_case import STEPS
from benchmarks.evaluate_cases import NUM_PROMPTS, make_records, make_templates, word_tokenizer
from benchmarks.gpu import sizes, weights
from benchmarks.gpu.child import Context
from benchmarks.gpu.measure import median_seconds, peak_gib, warm_up
from rome_jax.data.tokens import pad
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.methods import rome
from rome_jax.edit.stages.chunks import length_from_subject
from rome_jax.evaluation.datasets import CounterFactRecord, DatasetName
from rome_jax.evaluation.evaluate import evaluate_records
from rome_jax.models.generate import Sampling, generate
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate
from rome_jax.models.registry import LanguageModel
from rome_jax.moments.second_moment import SecondMoment

_CASES, _CHUNK, _TEXTS, _LENGTH = 128, 32, 64, 100
_TINY = (4, 4, 2, 20)
_PROMPT = 8  # tokens of the prompt of a generated text


def run(context: Context) -> None:
    """Writes generated tokens per second, then evaluated cases per hour, each as soon as it is known."""
    size = sizes.Size.of(context.size, context.tiny)
    cases, chunk, texts, length = _TINY if context.tiny else (_CASES, _CHUNK, _TEXTS, _LENGTH)
    with ThreadPoolExecutor() as pool:
        moment = pool.submit(sizes.second_moment, size.config.mlp_width)
        params = jax.block_until_ready(weights.random_params(size.config, context.dtype))
        context.log("weights created")
        tokenizer = word_tokenizer(size.config.vocab_size)
        model = LanguageModel(context.size, size.config, params, tokenizer, "random weights")
        generate_texts(context, model, no_edits(model, size.layer, texts), length)
        evaluate_cases(context, model, size.layer, moment.result(), cases, chunk)


def no_edits(model: LanguageModel, layer: int, count: int) -> Delta:
    """Builds N edits that have the shapes of ROME's and change nothing."""
    widths = model.config.mlp_width, model.config.width
    left, right = (jnp.zeros((count, width, 1)) for width in widths)
    return Delta((LowRankUpdate(Leaf.MLP_DOWN, jnp.full(count, layer), left, right),))


def evaluate_cases(
    context: Context,
    model: LanguageModel,
    layer: int,
    moment: SecondMoment,
    cases: int,
    chunk: int,
) -> None:
    """Times N cases that are edited in chunks and scored before and after the edit.

    The programs are compiled in parallel before they are timed.

    Args:
      context: Context of the part.
      model: Model to edit.
      layer: Edit layer.
      moment: Second moment of the edit layer.
      cases: Number of cases, N.
      chunk: Number of requests optimized together.
    """
    config = ROMEConfig((layer,), v_num_grad_steps=STEPS, loss_threshold=0.0)
    templates = make_templates(model.config.vocab_size)
    # Sorted as `compute_deltas` sorts its chunks, so that each thread below compiles the shape of one chunk.
    records = sorted(
        make_records(cases, model.config.vocab_size), key=lambda r: length_from_subject(r.request)
    )

    def edit(part: Sequence[CounterFactRecord]) -> Delta:
        return rome.compute_deltas(
            model,
            [record.request for record in part],
            config,
            second_moments={layer: moment},
            templates=templates,
            chunk_size=chunk,
        )

    def score(deltas: Delta | None) -> list:
        return evaluate_records(model, DatasetName.CF, records, deltas)

    parts = [records[start : start + chunk] for start in range(0, cases, chunk)]
    first = [functools.partial(edit, part) for part in parts]
    first += [functools.partial(score, deltas) for deltas in (None, no_edits(model, layer, cases))]
    _, seconds, compiling = warm_up(first)
    row = {"s until all had run": seconds, "s of all programs": compiling}
    context.emit(f"{context.size}, compiling edits and scoring", row)

    editing, deltas = median_seconds(lambda: edit(records), 1)
    _report(context, f"{cases} edits in chunks of {chunk}", editing, cases)
    scoring, _ = median_seconds(lambda: (score(None), score(deltas)), 1)
    label = f"their {NUM_PROMPTS} prompts with two targets each, scored before and after"
    _report(context, label, scoring, cases)
    _report(context, "both", editing + scoring, cases)


def _report(context: Context, what: str, seconds: float, cases: int) -> None:
    """Writes a row of the table of cases."""
    context.emit(
        f"{context.size}, {cases} cases",
        {
            "dtype": context.dtype,
            "what": what,
            "s": seconds,
            "cases per hour": round(3600 * cases / seconds),
            "peak GiB so far": peak_gib(),
        },
    )


def generate_texts(context: Context, model: LanguageModel, deltas: Delta, length: int) -> None:
    """Times the generation of one text per edit in one batch, with the edits and without them.

    Args:
      context: Context of the part.
      model: Model that generates.
      deltas: N edits, one per text.
      length: Length of a text in tokens, including its prompt of 8 tokens.
    """
    texts = len(deltas)
    ids = np.random.default_rng(2).integers(model.config.vocab_size, size=(texts, _PROMPT))
    batch = pad(ids.tolist())
    keys = jax.random.split(jax.random.key(0), texts)
    for label, own in (("one edit per row", deltas), ("none", None)):

        def write(own=own):
            return generate(
                model.params,
                model.config,
                batch,
                max_length=length,
                sampling=Sampling(top_k=5),
                key=keys,
                deltas=own,
            ).ids

        _, cold, _ = warm_up([write])
        seconds, _ = median_seconds(write)
        context.emit(
            f"{context.size}, {texts} texts of {length} tokens at once",
            {
                "edits": label,
                "s": seconds,
                "s of the first call": cold,
                "tokens per s": round(texts * (length - _PROMPT) / seconds),
                "peak GiB so far": peak_gib(),
            },
        )
