"""CounterFact: the prompts of a record, and the results in the original's layout."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from rome_jax.evaluation.metrics import Estimate, exact, harmonic_mean
from rome_jax.evaluation.record_types import CounterFactRecord
from rome_jax.evaluation.scoring import Query, TargetScore, make_queries, score_queries
from rome_jax.evaluation.summaries import summarize
from rome_jax.models.interventions import Delta
from rome_jax.models.registry import LanguageModel

# The kinds of prompts on which success is measured. On neighborhood prompts the true target is the desired one.
_PROBED = ("rewrite", "paraphrase", "neighborhood", "attribute")


def _prompts(record: CounterFactRecord) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yields (kind, prompt, targets) of everything that is scored for a record."""
    targets = (record.request.target_new, record.target_true)
    groups = (
        (record.request.text,),
        record.paraphrase_prompts,
        record.neighborhood_prompts,
        record.attribute_prompts,
    )
    for kind, group in zip(_PROBED, groups, strict=True):
        for prompt in group:
            yield kind, prompt, targets
    for prompt, target in record.portability_prompts:
        yield "portability", prompt, (target,)
    for prompt, target in record.locality_prompts:
        yield "locality", prompt, (target,)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The queries of N records, and how to turn their scores into results.

    Attributes:
      queries: The queries of all records; those of record i are scored under edit i.
      records: N records.
    """

    queries: list[Query]
    records: Sequence[CounterFactRecord]

    def results(self, scores: Sequence[tuple[TargetScore, ...]]) -> list[dict[str, Any]]:
        """Turns the scores of `queries` into the results of the records.

        Args:
          scores: The scores of each query, as returned by `score_queries`.

        Returns:
          One dictionary per record. Under the original's names `rewrite_prompts_probs`, `paraphrase_prompts_probs`,
          `neighborhood_prompts_probs` and `attribute_prompts_probs` it has one {"target_new": NLL, "target_true": NLL}
          per prompt, where NLL is the mean over the target's tokens in nats. In addition, `rewrite_prompts_exact` and
          `paraphrase_prompts_exact` have one Boolean per prompt: whether greedy decoding produces the new target.
          `portability_prompts_exact`, for records with such prompts, is the same for the targets that follow from the
          edit. `neighborhood_prompts_correct`, for records with locality prompts, has one Boolean per token of their
          targets: whether it is the most likely one.
        """
        remaining = iter(scores)
        found = []
        for record in self.records:
            by_kind = collections.defaultdict(list)
            for kind, *_ in _prompts(record):
                by_kind[kind].append(next(remaining))
            result: dict[str, Any] = {
                f"{kind}_prompts_probs": [
                    {"target_new": new.nll, "target_true": true.nll} for new, true in by_kind[kind]
                ]
                for kind in _PROBED
            }
            for kind in ("rewrite", "paraphrase", "portability"):
                if kind in by_kind:
                    result[f"{kind}_prompts_exact"] = [exact(of[0].hits) for of in by_kind[kind]]
            if "locality" in by_kind:
                result["neighborhood_prompts_correct"] = [
                    bool(hit) for of in by_kind["locality"] for hit in of[0].hits
                ]
            found.append(result)
        return found


def plan(model: LanguageModel, records: Sequence[CounterFactRecord]) -> Plan:
    """Plans the scoring of N records.

    Args:
      model: The model to score.
      records: N records.

    Raises:
      ValueError: If a prompt has no tokens.
      SequenceTooLongError: If a prompt does not fit the model's context.
    """
    asked = [(case, *prompt) for case, record in enumerate(records) for prompt in _prompts(record)]
    cases, _, prompts, targets = zip(*asked, strict=True)
    return Plan(make_queries(model, prompts, targets, cases), records)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Success rates in percent with 95 % intervals; `score` is their harmonic mean S.

    Attributes:
      efficacy, paraphrase, neighborhood: The rates on rewrite, paraphrase and neighborhood prompts.
    """

    efficacy: Estimate
    paraphrase: Estimate
    neighborhood: Estimate

    @property
    def score(self) -> float:
        """The paper's score S."""
        return harmonic_mean(self.efficacy.mean, self.paraphrase.mean, self.neighborhood.mean)

    def __str__(self) -> str:
        return (
            f"S {self.score:5.1f}   efficacy {self.efficacy!s:19}   paraphrase {self.paraphrase!s:19}   "
            f"neighborhood {self.neighborhood}"
        )


def score(
    model: LanguageModel, records: Sequence[CounterFactRecord], deltas: Delta | None = None
) -> Scores:
    """Computes the success rates of N independent edits on the prompts of their own records.

    All records share forward passes.

    Args:
      model: The unedited model.
      records: N records.
      deltas: N edits with a case axis, one per record; None scores the unedited model.

    Example:
      >>> from rome_jax.evaluation import DatasetName, load_dataset
      >>> records = load_dataset(DatasetName.CF, model_name="factworld-gpt2", limit=2).records
      >>> scores = score(model, records)
      >>> scores.efficacy.mean, scores.neighborhood.mean
      (0.0, 100.0)
    """
    planned = plan(model, records)
    found = planned.results(score_queries(model, planned.queries, deltas))
    metrics = summarize([{"post": result} for result in found]).metrics
    return Scores(*(metrics[f"post_{kind}_success"] for kind in _PROBED[:3]))
