"""Results of N records in the original's layout, all from one scored batch.

Independent edits are scored together as factored deltas: each row of a batch sees its own edit, and no weight is
copied. A dense delta cannot be factored. It is merged into a model of its own, whose record is scored alone by the same
functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from rome_jax.edit.delta import apply_delta
from rome_jax.evaluation import counterfact, zsre
from rome_jax.evaluation.generation import GenerationTests
from rome_jax.evaluation.record_types import CounterFactRecord, DatasetName, Record, ZsRERecord
from rome_jax.evaluation.scoring import MAX_TOKENS, prompt_ids, score_queries
from rome_jax.files.checked import Count, check
from rome_jax.models.interventions import Delta
from rome_jax.models.registry import LanguageModel

_Kind = TypeVar("_Kind", CounterFactRecord, ZsRERecord)


def evaluate_records(
    model: LanguageModel,
    name: DatasetName,
    records: Sequence[Record],
    deltas: Delta | None = None,
    *,
    generation: GenerationTests | None = None,
    max_tokens: int = MAX_TOKENS,
) -> list[dict[str, Any]]:
    """Scores a model on N records: `pre` of the case files without deltas, `post` with them.

    Args:
      model: The unedited model.
      name: The data set of the records.
      records: N records.
      deltas: N independent edits, one per record; None scores the unedited model.
      generation: Tests of generated texts; None generates no texts. zsRE has none.
      max_tokens: Token columns in one forward pass, or in the cache of one generation; bounds the memory.

    Returns:
      One dictionary per record; see `counterfact.Plan.results`, `zsre.Plan.results` and `GenerationTests.results`.

    Raises:
      ValueError: If a prompt has no tokens, the records belong to the other data set, the number of edits is not that
        of the records, or `max_tokens` is not a whole number of at least 1.
      SequenceTooLongError: If a prompt does not fit the model's context.

    Example:
      >>> from rome_jax.evaluation import load_dataset
      >>> records = load_dataset(DatasetName.CF, model_name="factworld-gpt2", limit=2).records
      >>> results = evaluate_records(model, DatasetName.CF, records)
      >>> [result["rewrite_prompts_exact"] for result in results]
      [[False], [False]]
    """
    name, max_tokens = check(DatasetName, name, "name"), check(Count, max_tokens, "max_tokens")
    if deltas is not None and len(deltas) != len(records):
        raise ValueError(f"{len(deltas)} deltas for {len(records)} records: give one per record.")
    if deltas is not None and not deltas.factored:
        return [
            evaluate_records(
                model.replace(params=apply_delta(model.params, deltas[case])),
                name,
                [record],
                generation=generation,
                max_tokens=max_tokens,
            )[0]
            for case, record in enumerate(records)
        ]
    if name is DatasetName.ZSRE:
        questions = zsre.plan(model, _of_kind(records, ZsRERecord))
        scores = score_queries(model, questions.queries, deltas, max_tokens=max_tokens)
        return questions.results(scores)
    facts = _of_kind(records, CounterFactRecord)
    plan = counterfact.plan(model, facts)
    essences = generation.essence_queries(model, facts) if generation else {}
    # The essence texts are scored in the same pass as the prompts.
    queries = [*plan.queries, *(query for _, query in essences.values())]
    scores = score_queries(model, queries, deltas, max_tokens=max_tokens)
    results = plan.results(scores[: len(plan.queries)])
    if generation:
        scored = {
            case: (text, score)
            for (case, (text, _)), (score,) in zip(
                essences.items(), scores[len(plan.queries) :], strict=True
            )
        }
        texts = generation.results(model, facts, deltas, scored, max_tokens)
        results = [result | more for result, more in zip(results, texts, strict=True)]
    return results


def check_record(
    model: LanguageModel,
    name: DatasetName,
    record: Record,
    generation: GenerationTests | None = None,
) -> None:
    """Checks whether a record can be scored, by tokenizing its prompts.

    Args:
      model: The unedited model.
      name: The data set of the record.
      record: The record.
      generation: Tests of generated texts; None generates no texts.

    Raises:
      RequestError: If a prompt has no tokens.
      SequenceTooLongError: If a prompt does not fit the model's context.
    """
    if name is DatasetName.ZSRE:
        zsre.plan(model, _of_kind([record], ZsRERecord))
        return
    (fact,) = _of_kind([record], CounterFactRecord)
    counterfact.plan(model, [fact])
    if generation:
        prompt_ids(model, fact.generation_prompts)


def _of_kind(records: Sequence[Record], kind: type[_Kind]) -> list[_Kind]:
    """Returns the records, all of which must be of one kind."""
    found = [record for record in records if isinstance(record, kind)]
    if len(found) != len(records):
        raise ValueError(
            f"not all records are of type {kind.__name__}: give the name of their data set."
        )
    return found
