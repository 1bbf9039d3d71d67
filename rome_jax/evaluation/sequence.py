"""What a model with many edits is measured with: numbers of edits, prompts, texts, and a plain measurement."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence

import numpy as np

from rome_jax.data.request import fill, target_text
from rome_jax.evaluation.datasets import CounterFactRecord, Dataset
from rome_jax.evaluation.scoring import perplexity, target_nlls
from rome_jax.factworld.corpus import documents
from rome_jax.factworld.facts import World
from rome_jax.files.checked import shown
from rome_jax.models.registry import LanguageModel

TEXTS = 100  # number of texts over which perplexity is computed


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Measurement of a model after some edits; rates are in percent.

    Attributes:
      edits: The number of edits so far.
      retention: Share of the rewrite prompts of all edits so far on which the new target is preferred.
      paraphrase: The same for their paraphrase prompts.
      neighborhood: Share of their neighborhood prompts about unedited facts on which the true target is preferred.
      perplexity: Perplexity of texts about subjects that are never edited.
    """

    edits: int
    retention: float
    paraphrase: float
    neighborhood: float
    perplexity: float


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


def measure(
    model: LanguageModel,
    world: World | None,
    records: Sequence[CounterFactRecord],
    texts: Sequence[str],
) -> Measurement:
    """Measures a model that holds the edits of `records`.

    Args:
      model: The edited model.
      world: The world of the facts; None for records of a file. See `edited_prompts`.
      records: The edits so far, at least one.
      texts: Texts about subjects that are never edited.

    Raises:
      ValueError: If the model gives scores that are not numbers, or the records have no prompts of a kind.
    """
    kinds, prompts, desired, other = zip(*_questions(world, records), strict=True)
    wanted, unwanted = (target_nlls(model, prompts, targets) for targets in (desired, other))
    found = perplexity(model, texts)
    if np.isnan([*wanted, *unwanted, found]).any():
        raise ValueError(
            f"the model with {len(records)} edits gives scores that are not numbers: its weights are damaged."
        )
    success = wanted < unwanted
    rates = {
        kind: 100 * float(success[np.array(kinds) == kind].mean()) for kind in dict.fromkeys(kinds)
    }
    return Measurement(len(records), perplexity=found, **rates)


def _questions(
    world: World | None, records: Sequence[CounterFactRecord]
) -> list[tuple[str, str, str, str]]:
    """Returns the questions of a measurement, each with its kind, prompt, desired target and other target."""
    edited = edited_prompts(world, records)
    asked = []
    for record in records:
        new, true = record.request.target_new, record.target_true
        neighbors = [p for p in record.neighborhood_prompts if p not in edited]
        asked.append(("retention", record.request.text, new, true))
        asked += [("paraphrase", prompt, new, true) for prompt in record.paraphrase_prompts]
        asked += [("neighborhood", prompt, true, new) for prompt in neighbors]
    found = {kind for kind, *_ in asked}
    for kind in ("paraphrase", "neighborhood"):
        if kind not in found:
            raise ValueError(
                f"the first {len(records)} records have no {kind} prompts that are not edited: give records that have."
            )
    return asked


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
