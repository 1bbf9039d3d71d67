"""CounterFact records as examples to train hypernetworks on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from rome_jax.data.request import target_text
from rome_jax.edit.hypernetworks.losses import TrainingExample
from rome_jax.evaluation.datasets import CounterFactRecord

VALIDATION_SHARE = 8  # one record out of so many is for validation


@dataclasses.dataclass(frozen=True)
class RecordExamples:
    """Training examples from records: an edit, a paraphrase of it, and the fact of another record that must not change.

    Attributes:
      records: The records to draw from, at least two.
    """

    records: tuple[CounterFactRecord, ...] = dataclasses.field(repr=False)

    def draw(self, rng: np.random.Generator, count: int) -> list[TrainingExample]:
        """Draws random examples; the prompt itself counts as one of its paraphrases.

        Args:
          rng: Source of randomness.
          count: The number of examples.
        """
        return [self._draw_one(rng) for _ in range(count)]

    def _draw_one(self, rng: np.random.Generator) -> TrainingExample:
        """Draws one example from two different records."""
        first, second = rng.choice(len(self.records), 2, replace=False)
        edited, kept = self.records[first], self.records[second]
        prompts = (edited.request.text, *edited.paraphrase_prompts)
        paraphrase = prompts[int(rng.integers(len(prompts)))]
        locality_target = target_text(kept.target_true)
        return TrainingExample(edited.request, paraphrase, kept.request.text, locality_target)


def split_records(
    records: Sequence[CounterFactRecord], seed: int
) -> tuple[RecordExamples, RecordExamples]:
    """Splits records into examples for training and for validation.

    Args:
      records: The records, at least 16.
      seed: Seed of the random split; one record out of eight is for validation.

    Returns:
      The examples for training and those for validation, from different records.

    Raises:
      ValueError: If there are too few records.
    """
    size = len(records) // VALIDATION_SHARE
    if size < 2:
        raise ValueError(
            f"{len(records)} records are too few to train on: give at least {2 * VALIDATION_SHARE}."
        )
    order = [records[index] for index in np.random.default_rng(seed).permutation(len(records))]
    return RecordExamples(tuple(order[size:])), RecordExamples(tuple(order[:size]))
