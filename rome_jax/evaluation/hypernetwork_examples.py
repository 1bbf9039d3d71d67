"""CounterFact records as examples to train hypernetworks on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from rome_jax.data.request import target_text
from rome_jax.edit.hypernetworks.losses import TrainingExample
from rome_jax.evaluation.datasets import CounterFactRecord

VALIDATION_SHARE = 8  # one record of so many


@dataclasses.dataclass(frozen=True)
class RecordExamples:
    """Examples of some records: each edit with a paraphrase of its own, and the fact of another record."""

    records: tuple[CounterFactRecord, ...] = dataclasses.field(repr=False)

    def draw(self, rng: np.random.Generator, count: int) -> list[TrainingExample]:
        """Random records; the prompt itself counts as one of its paraphrases."""
        return [self._draw_one(rng) for _ in range(count)]

    def _draw_one(self, rng: np.random.Generator) -> TrainingExample:
        first, second = rng.choice(len(self.records), 2, replace=False)
        request, other = self.records[first].request, self.records[second].request
        prompts = (request.text, *self.records[first].paraphrase_prompts)
        paraphrase = prompts[int(rng.integers(len(prompts)))]
        return TrainingExample(request, paraphrase, other.text, target_text(other.target_true))


def split_records(
    records: Sequence[CounterFactRecord], seed: int
) -> tuple[RecordExamples, RecordExamples]:
    """Examples for training and for validation, of different records.

    Raises:
      ValueError: too few records to divide.
    """
    size = len(records) // VALIDATION_SHARE
    if size < 2:
        raise ValueError(
            f"{len(records)} records are too few to train on: give at least {2 * VALIDATION_SHARE}."
        )
    order = [records[index] for index in np.random.default_rng(seed).permutation(len(records))]
    return RecordExamples(tuple(order[size:])), RecordExamples(tuple(order[:size]))
