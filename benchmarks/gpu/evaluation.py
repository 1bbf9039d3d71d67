"""CounterFact-shaped cases edited and scored, and texts generated under an edit each, at the real size."""

from __future__ import annotations

import jax
import numpy as np

from benchmarks.edit_case import STEPS
from benchmarks.evaluate_cases import NUM_PROMPTS, make_records, make_templates, word_tokenizer
from benchmarks.gpu import sizes, weights
from benchmarks.gpu.child import Context
from benchmarks.gpu.measure import median_seconds, peak_gib, warm_up
from eval.datasets import DatasetName
from eval.evaluation import evaluate_records
from rome_jax.edit import rome
from rome_jax.edit.config import ROMEConfig
from rome_jax.models.generate import Sampling, generate
from rome_jax.models.interventions import Delta
from rome_jax.models.registry import LanguageModel
from rome_jax.tokens import pad

_CASES, _CHUNK, _TEXTS, _LENGTH = 128, 32, 64, 100
_TINY = (4, 4, 2, 20)
_PROMPT = 8  # tokens of a text's beginning


def run(context: Context) -> None:
    """Writes cases an hour, the first pass with compiling, and tokens a second."""
    size = sizes.Size.of(context.size, context.tiny)
    cases, chunk, texts, length = _TINY if context.tiny else (_CASES, _CHUNK, _TEXTS, _LENGTH)
    params = weights.random_params(size.config, context.dtype)
    tokenizer = word_tokenizer(size.config.vocab_size)
    model = LanguageModel(context.size, size.config, params, tokenizer, "random weights")
    deltas = evaluate_cases(context, model, size.layer, cases, chunk)
    generate_texts(context, model, deltas, texts, length)


def evaluate_cases(
    context: Context, model: LanguageModel, layer: int, cases: int, chunk: int
) -> Delta:
    """Edits and scores N cases twice, first with compiling; returns the edits."""
    config = ROMEConfig((layer,), v_num_grad_steps=STEPS, loss_threshold=0.0)
    moments = {layer: sizes.second_moment(model.config.mlp_width)}
    records = make_records(cases, model.config.vocab_size)
    templates = make_templates(model.config.vocab_size)

    def edit() -> Delta:
        return rome.compute_deltas(
            model,
            [record.request for record in records],
            config,
            covariance=moments,
            templates=templates,
            chunk_size=chunk,
        )

    def score(deltas: Delta | None) -> list:
        return evaluate_records(model, DatasetName.CF, records, deltas)

    for compiling in (True, False):
        editing, deltas = median_seconds(edit, 1)
        before, _ = median_seconds(lambda: score(None), 1)
        after, _ = median_seconds(lambda deltas=deltas: score(deltas), 1)
        total = editing + before + after
        context.emit(
            f"{context.size}, {cases} cases of {NUM_PROMPTS} prompts with two targets",
            {
                "dtype": context.dtype,
                "compiling": "included" if compiling else "done",
                "s of editing": editing,
                "s of scoring, before and after": before + after,
                "cases per hour": round(3600 * cases / total),
                "peak GiB so far": peak_gib(),
            },
        )
        if context.seconds_left < 1.5 * total:
            break
    return deltas


def generate_texts(
    context: Context, model: LanguageModel, deltas: Delta, texts: int, length: int
) -> None:
    """Generates texts side by side, with and without an edit each."""
    ids = np.random.default_rng(2).integers(model.config.vocab_size, size=(texts, _PROMPT))
    batch = pad(ids.tolist())
    edits = deltas.rows(np.arange(texts, dtype=np.int32), texts)
    keys = jax.random.split(jax.random.key(0), texts)
    for label, own in (("one edit per row", edits), ("none", None)):

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
