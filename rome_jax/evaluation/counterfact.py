"""CounterFact: what a record asks a model, and the results in the original's layout."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from rome_jax.evaluation.datasets import CounterFactRecord
from rome_jax.evaluation.metrics import Estimate, exact, harmonic_mean
from rome_jax.evaluation.scoring import Query, TargetScore, make_queries, score_queries
from rome_jax.evaluation.summaries import summarize
from rome_jax.models.interventions import Delta
from rome_jax.models.registry import LanguageModel

# Where success is asked of; on neighborhood prompts the true target is wanted.
_PROBED = ("rewrite", "paraphrase", "neighborhood", "attribute")


def _prompts(record: CounterFactRecord) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(kind, prompt, targets) of everything that is scored of a record."""
    targets = (record.request.target_new, record.request.target_true)
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


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is scored of N records.

    Attributes:
      queries: record i is answered by edit i.
      records: N.
    """

    queries: list[Query]
    records: Sequence[CounterFactRecord]

    def results(self, scores: Sequence[tuple[TargetScore, ...]]) -> list[dict[str, Any]]:
        """The results of the records, from the scores of `queries`.

        Returns:
          For each record, by the original's names, `rewrite_prompts_probs` and so on for paraphrase, neighborhood and
          attribute: {"target_new": NLL, "target_true": NLL} a prompt, means over the target's tokens in nats. Beside
          them, one truth value a prompt, `rewrite_prompts_exact` and `paraphrase_prompts_exact`, whether greedy
          decoding says the new target, and for records that have such prompts `portability_prompts_exact`, whether it
          says what follows.
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
            found.append(result)
        return found


def plan(model: LanguageModel, records: Sequence[CounterFactRecord]) -> Plan:
    """All that is scored of N records.

    Raises:
      ValueError, SequenceTooLongError: a prompt that cannot be scored.
    """
    asked = [(case, *prompt) for case, record in enumerate(records) for prompt in _prompts(record)]
    cases, _, prompts, targets = zip(*asked, strict=True)
    return Plan(make_queries(model, prompts, targets, cases), records)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Success rates × 100 with 95 % intervals; `score` is their harmonic mean S."""

    efficacy: Estimate
    paraphrase: Estimate
    neighborhood: Estimate

    @property
    def score(self) -> float:
        """S of the paper."""
        return harmonic_mean(self.efficacy.mean, self.paraphrase.mean, self.neighborhood.mean)

    def __str__(self) -> str:
        return (
            f"S {self.score:5.1f}   efficacy {self.efficacy}   paraphrase {self.paraphrase}   "
            f"neighborhood {self.neighborhood}"
        )


def score(
    model: LanguageModel, records: Sequence[CounterFactRecord], deltas: Delta | None = None
) -> Scores:
    """Success of N independent edits on the prompts of their own N records, all in shared forward passes.

    Args:
      model: the unedited model.
      records: N records.
      deltas: N edits with a case axis; None scores the unedited model.
    """
    planned = plan(model, records)
    found = planned.results(score_queries(model, planned.queries, deltas))
    metrics = summarize([{"post": result} for result in found]).metrics
    return Scores(*(metrics[f"post_{kind}_success"] for kind in _PROBED[:3]))
