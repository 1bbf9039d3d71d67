"""Results of N records in the original's layout, all from one scored batch.

Independent edits are scored side by side as factored deltas: each row of a batch sees its own, no weight is copied.
A dense delta cannot be factored: it is merged, and its record is scored alone, through the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rome_jax.edit.delta import apply_delta
from rome_jax.evaluation import counterfact, zsre
from rome_jax.evaluation.datasets import DatasetName, Record
from rome_jax.evaluation.generation import GenerationTests
from rome_jax.evaluation.scoring import MAX_TOKENS, score_queries
from rome_jax.models.interventions import Delta
from rome_jax.models.registry import LanguageModel

_PLANS = {DatasetName.CF: counterfact.plan, DatasetName.ZSRE: zsre.plan}


def evaluate_records(
    model: LanguageModel,
    name: DatasetName,
    records: Sequence[Record],
    deltas: Delta | None = None,
    *,
    generation: GenerationTests | None = None,
    max_tokens: int = MAX_TOKENS,
) -> list[dict[str, Any]]:
    """What a model says to N records: `pre` of the case files without deltas, `post` with them.

    Args:
      model: the unedited model.
      name: whose records.
      records: N records.
      deltas: N independent edits, one a record; None scores the model as it is.
      generation: generate texts and judge them too.
      max_tokens: token columns in one forward pass, or in the cache of one generation; bounds the memory.

    Returns:
      One dictionary a record; see `counterfact.Plan.results`, `zsre.Plan.results` and `GenerationTests.results`.

    Raises:
      ValueError, SequenceTooLongError: a prompt that cannot be scored, named; as many edits as records are needed.

    Example:
      >>> evaluate_records(model, DatasetName.CF, dataset.records, deltas)[0]["rewrite_prompts_exact"]  # doctest: +SKIP
      [True]
    """
    options = {"generation": generation, "max_tokens": max_tokens}
    if deltas is not None and len(deltas) != len(records):
        raise ValueError(f"{len(deltas)} deltas for {len(records)} records: give one a record.")
    if deltas is not None and not deltas.factored:
        return [
            evaluate_records(
                model.replace(params=apply_delta(model.params, deltas[case])),
                name,
                [record],
                **options,
            )[0]
            for case, record in enumerate(records)
        ]
    plan = _PLANS[name](model, records)
    # zsRE asks for no texts.
    tests = generation if name is DatasetName.CF else None
    essences = tests.essence_queries(model, records) if tests else {}
    queries = [*plan.queries, *(query for _, query in essences.values())]
    scores = score_queries(model, queries, deltas, max_tokens=max_tokens)
    results = plan.results(scores[: len(plan.queries)])
    if tests:
        rest = scores[len(plan.queries) :]
        scored = {
            case: (text, score)
            for (case, (text, _)), (score,) in zip(essences.items(), rest, strict=True)
        }
        texts = tests.results(model, records, deltas, scored, max_tokens)
        results = [result | more for result, more in zip(results, texts, strict=True)]
    return results
