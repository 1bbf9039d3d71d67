"""CounterFact records as requests, and edits scored on them, many at a time.

The records' layout is that of counterfact.json; factworld writes its own facts in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.metrics import Estimate, estimate, harmonic_mean, success
from eval.scoring import target_nlls
from rome_jax.models.interventions import Delta
from rome_jax.models.registry import LanguageModel
from rome_jax.request import EditRequest

Record = Mapping[str, Any]


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


def to_request(record: Record) -> EditRequest:
    """The edit that a record asks for."""
    rewrite = record["requested_rewrite"]
    return EditRequest(
        prompt=rewrite["prompt"],
        subject=rewrite["subject"],
        target_new=rewrite["target_new"]["str"],
        target_true=rewrite["target_true"]["str"],
        case_id=record["case_id"],
    )


def score(model: LanguageModel, records: Sequence[Record], deltas: Delta | None = None) -> Scores:
    """Success of N independent edits on the prompts of their own N records, all in shared forward passes.

    Args:
      model: the unedited model.
      records: N records.
      deltas: N edits with a case axis; None scores the unedited model.
    """
    prompts, kinds, cases = [], [], []
    for case, record in enumerate(records):
        groups = (
            [to_request(record).text],
            record["paraphrase_prompts"],
            record["neighborhood_prompts"],
        )
        for kind, group in enumerate(groups):
            prompts += group
            kinds += [kind] * len(group)
            cases += [case] * len(group)
    kinds, cases = np.array(kinds), np.array(cases)
    new, true = (
        target_nlls(
            model,
            prompts,
            [records[case]["requested_rewrite"][target]["str"] for case in cases],
            deltas=deltas,
            case=cases,
        )
        for target in ("target_new", "target_true")
    )
    successes = np.where(kinds == 2, success(true, new), success(new, true))
    estimates = []
    for kind in range(3):
        of_kind = [successes[(kinds == kind) & (cases == case)] for case in range(len(records))]
        estimates.append(estimate(np.array([values.mean() for values in of_kind if values.size])))
    return Scores(*estimates)
