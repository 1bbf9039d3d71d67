"""What a model with many edits is measured with: numbers of edits, prompts, and texts."""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Sequence

from rome_jax.data.request import fill, target_text
from rome_jax.evaluation.datasets import Dataset, DatasetName, Record, ZsRERecord
from rome_jax.evaluation.sequence_scores import answers_first
from rome_jax.factworld.corpus import documents
from rome_jax.factworld.facts import World
from rome_jax.factworld.records import NQ_PREFIX
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


def unedited_texts(world: World | None, records: Sequence[Record], seed: int) -> list[str]:
    """Returns texts that mention no subject of the records.

    Args:
      world: The world that the texts are about. None takes the neighborhood prompts of the records with their true
        targets, which are true sentences about other subjects; of zsRE, the locality questions with their answers. Many
        of these are in lower case, so a subject counts there as mentioned in any case, as whole words.
      records: Edit requests.
      seed: Seed of the texts of a world.

    Returns:
      At most 100 texts.
    """
    subjects = [record.request.subject for record in records]
    if world is None:
        texts = (text for record in records for text in _other_facts(record))
    else:
        texts = (document.text for document in documents(world, seed=seed + 1))
    asked = world is None and any(isinstance(record, ZsRERecord) for record in records)
    mentions = _names if asked else operator.contains
    found = (t for t in texts if not any(mentions(t, subject) for subject in subjects))
    return list(itertools.islice(found, TEXTS))


def _other_facts(record: Record) -> list[str]:
    """Returns true sentences about other subjects than that of a record."""
    if isinstance(record, ZsRERecord):
        return [question + target_text(answer) for question, answer in record.unrelated]
    true = target_text(record.target_true)
    return [prompt + true for prompt in record.neighborhood_prompts]


def _names(text: str, subject: str) -> bool:
    """Returns whether a text holds a subject as whole words in any case."""
    return subject.casefold() in text.casefold() and answers_first(text, subject)


def edited_prompts(world: World | None, records: Sequence[Record]) -> set[str]:
    """Returns the prompts that ask for the facts that the records change.

    Args:
      world: The world of the facts, whose relations have templates for every wording. None takes the prompts and
        paraphrases of the records.
      records: Edit requests. Of zsRE, the questions and paraphrases are taken, also as zsRE asks unrelated questions.
    """
    found: set[str] = set()
    for record in records:
        own = (record.request.text, *record.paraphrase_prompts)
        if isinstance(record, ZsRERecord):
            found.update(own)
            found.update(NQ_PREFIX + question[:1].lower() + question[1:] for question in own)
        elif world is None:
            found.update(own)
        elif record.relation_id is not None:
            templates = world.relation(record.relation_id).templates
            found.update(fill(template, record.request.subject) for template in templates)
    return found


def describe_dataset(dataset: Dataset) -> dict[str, str]:
    """Returns the settings of measurements on records of a file, as plain values.

    Args:
      dataset: The records.
    """
    texts = {
        DatasetName.CF: "neighborhood prompts with their true targets",
        DatasetName.ZSRE: "locality questions with their answers",
    }
    return {
        "dataset": dataset.source,
        "dataset_sha256": dataset.sha256,
        "perplexity_texts": texts[dataset.name],
    }
