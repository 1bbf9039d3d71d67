"""What a model with many edits is measured with: numbers of edits, prompts, and texts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from rome_jax.data.request import fill, target_text
from rome_jax.evaluation.datasets import CounterFactRecord, Dataset
from rome_jax.factworld.corpus import documents
from rome_jax.factworld.facts import World
from rome_jax.files.checked import shown

TEXTS = 100  # number of texts over which perplexity is computed


def read_counts(values: Sequence[str], most: int) -> list[int]:
    """Returns the numbers of edits given by --counts, in ascending order.

    Args:
      values: The numbers as texts.
      most: The largest number.

    Raises:
      ValueError: If there is none, or one is not a whole number from 1 to `most`.

    Example:
      >>> read_counts(["100", "10", "10"], 800)
      [10, 100]
    """
    counts = {value: int(value) for value in values if re.fullmatch("[0-9]{1,9}", value)}
    if not values or not all(1 <= counts.get(value, 0) <= most for value in values):
        raise ValueError(
            f"--counts={shown(','.join(values))}: give whole numbers from 1 to {most}."
        )
    return sorted(set(counts.values()))


def unedited_texts(
    world: World | None, records: Sequence[CounterFactRecord], seed: int
) -> list[str]:
    """Returns texts that mention no subject of the records.

    Args:
      world: The world that the texts are about. None takes the neighborhood prompts of the records with their true
        targets, which are true sentences about other subjects.
      records: Edit requests.
      seed: Seed of the texts of a world.

    Returns:
      At most 100 texts.
    """
    subjects = [record.request.subject for record in records]
    if world is None:
        texts = (
            prompt + target_text(record.target_true)
            for record in records
            for prompt in record.neighborhood_prompts
        )
    else:
        texts = (document.text for document in documents(world, seed=seed + 1))
    return list(itertools.islice((t for t in texts if not any(s in t for s in subjects)), TEXTS))


def edited_prompts(world: World | None, records: Sequence[CounterFactRecord]) -> set[str]:
    """Returns the prompts that ask for the facts that the records change.

    Args:
      world: The world of the facts, whose relations have templates for every wording. None takes the prompts and
        paraphrases of the records.
      records: Edit requests.
    """
    if world is None:
        return {p for record in records for p in (record.request.text, *record.paraphrase_prompts)}
    return {
        fill(template, record.request.subject)
        for record in records
        if record.relation_id is not None
        for template in world.relation(record.relation_id).templates
    }


def describe_dataset(dataset: Dataset) -> dict[str, str]:
    """Returns the settings of measurements on records of a file, as plain values.

    Args:
      dataset: The records.
    """
    return {
        "dataset": dataset.source,
        "dataset_sha256": dataset.sha256,
        "perplexity_texts": "neighborhood prompts with their true targets",
    }
