"""One measurement of a model with many edits: what it consists of, and when it is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any

import typing_extensions

from rome_jax.edit.editor_files import ChangedWeight
from rome_jax.evaluation.datasets import (
    FACTWORLD,
    CounterFactRecord,
    Dataset,
    DatasetName,
    Record,
)
from rome_jax.evaluation.scoring import perplexity
from rome_jax.evaluation.sequence import edited_prompts, unedited_texts
from rome_jax.evaluation.sequence_distance import divergence, norm_ratios
from rome_jax.evaluation.sequence_scores import draw_sample, score_groups, split_newest
from rome_jax.factworld.facts import World
from rome_jax.files.checked import Count, check
from rome_jax.models.registry import LanguageModel

BROKEN = "the model gives scores that are not numbers: its weights are damaged"


class Row(typing_extensions.TypedDict):
    """A measurement as JSON values. Numbers that are not finite are None.

    The scores of zsRE are accuracies, and those of CounterFact compare two targets; `GroupScores` defines both.

    Attributes:
      edits: Number of edits in the model; 0 for the unedited one.
      newest, earlier: `GroupScores` of the newest edits and of all earlier ones; None if there are none.
      requests: `GroupScores` of all requests, of the unedited model only.
      perplexity: Perplexity of texts about subjects that are never edited; see `unedited_texts`.
      kl: KL(unedited ‖ edited) on these texts, in nats per token.
      norm_ratios: ‖ΔW‖ / ‖W‖ by layer.
      seconds_per_edit: Mean time of an edit so far, without compilation and measurements, in seconds.
      residual: Largest relative residual of the latest batch's solves, for methods that report it.
      finished: The measurement with what the method does after all edits, at the last one; None if it does nothing.
      stopped: Why the sequence ends here, before all edits were written; otherwise None.
    """

    edits: int
    newest: dict[str, int | float | None] | None
    earlier: dict[str, int | float | None] | None
    requests: dict[str, int | float | None] | None
    perplexity: float | None
    kl: float | None
    norm_ratios: dict[str, float | None]
    seconds_per_edit: float | None
    residual: float | None
    finished: dict[str, Any] | None
    stopped: str | None


def measure_points(
    num_edits: int, batch_size: int, *, every: int = 1, counts: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Returns the numbers of edits after which a model is measured; the last is always among them.

    Args:
      num_edits: Number of all edits.
      batch_size: Number of edits in a batch.
      every: Number of batches between two measurements.
      counts: Numbers of edits to measure at instead; each counts at the end of the batch that reaches it.

    Raises:
      ValueError: If a number is below 1, or a count is above `num_edits`.

    Example:
      >>> measure_points(10, 2, every=2), measure_points(10, 2, counts=[1, 5])
      ((4, 8, 10), (2, 6, 10))
    """
    num_edits, batch_size = check(Count, num_edits, "num_edits"), check(Count, batch_size, "batch")
    every = check(Count, every, "every")
    ends = [min(end, num_edits) for end in range(batch_size, num_edits + batch_size, batch_size)]
    if counts is None:
        found = ends[every - 1 :: every]
    else:
        if wrong := [count for count in counts if not 1 <= count <= num_edits]:
            raise ValueError(
                f"there is no measurement at {wrong[0]} of {num_edits} edits: give counts from 1 to {num_edits}."
            )
        found = [next(end for end in ends if end >= count) for count in sorted(counts)]
    return tuple(dict.fromkeys([*found, num_edits]))


def check_requests(dataset: Dataset) -> tuple[Record, ...]:
    """Returns the records of a data set, each of which must have a true target if they are those of CounterFact.

    Args:
      dataset: The records.

    Raises:
      ValueError: If there are none, a record has no true target, or there are no texts about other subjects.

    Example:
      >>> from rome_jax.evaluation import load_dataset
      >>> len(check_requests(load_dataset("cf", path="sample", limit=3)))
      3
    """
    records: tuple[Record, ...] = dataset.records
    if not records:
        raise ValueError(f"{dataset.source} has no records: give some.")
    for record in records:
        if isinstance(record, CounterFactRecord):
            _ = record.target_true  # which raises the error
    if dataset.source != FACTWORLD and not unedited_texts(None, records, 0):
        missing = {
            DatasetName.CF: "neighborhood prompts",
            DatasetName.ZSRE: "locality questions with answers",
        }
        raise ValueError(
            f"{dataset.source} has no {missing[dataset.name]} about other subjects, over which perplexity is computed: "
            "give records that have."
        )
    return records


def measure(
    unedited: LanguageModel,
    edited: LanguageModel,
    changed: Collection[ChangedWeight],
    records: Sequence[Record],
    done: int,
    *,
    world: World | None,
    texts: Sequence[str],
    batch_size: int,
    sample: int,
    seed: int,
) -> dict[str, Any]:
    """Measures a model that holds the first edits of a sequence.

    Args:
      unedited: The model before all edits.
      edited: The model with the edits so far.
      changed: The weights that they have changed.
      records: All requests of the sequence, in their order.
      done: Number of edits so far. If it is 0, all requests are a group.
      world: The world of the facts; None for records of a file.
      texts: Texts about subjects that are never edited.
      batch_size: Number of edits in a batch, which decides how many are the newest.
      sample: Largest number of records of a group that are scored.
      seed: Seed of the samples.

    Returns:
      The values of a `Row`, of which those that the caller knows are None.

    Raises:
      SequenceTooLongError: If a prompt or text does not fit the context.

    Example:
      >>> from rome_jax.evaluation import load_dataset
      >>> records = load_dataset("cf", model_name=model.name, limit=2).records
      >>> options = {"world": None, "texts": ["It is a city."], "batch_size": 1, "sample": 2, "seed": 0}
      >>> row = measure(model, model, [], records, 0, **options)
      >>> row["requests"]["efficacy"], row["kl"], row["norm_ratios"]
      (0.0, 0.0, {})
    """
    groups: dict[str, Sequence[Record]] = {"requests": records}
    if done:
        newest, earlier = split_newest(records[:done], batch_size)
        groups = {"newest": newest} | ({"earlier": earlier} if earlier else {})
    drawn = {
        name: (draw_sample(group, sample, (seed, done)), len(group))
        for name, group in groups.items()
    }
    prompts = edited_prompts(world, records[:done])
    found = {
        name: dataclasses.asdict(scores)
        for name, scores in score_groups(edited, drawn, prompts).items()
    }
    ratios = {
        str(layer): _finite(ratio)
        for layer, ratio in norm_ratios(unedited.params, edited.params, changed).items()
    }
    row = {
        "edits": done,
        "newest": found.get("newest"),
        "earlier": found.get("earlier"),
        "requests": found.get("requests"),
        "perplexity": _finite(perplexity(edited, texts)),
        "kl": _finite(divergence(unedited, edited, texts)),
        "norm_ratios": ratios,
        "seconds_per_edit": None,
        "residual": None,
        "finished": None,
    }
    broken = None in (row["perplexity"], row["kl"], *ratios.values())
    return row | {"stopped": BROKEN if broken else None}


def _finite(value: float) -> float | None:
    """Returns a number; None, for which JSON has a word, if it is not finite."""
    return value if math.isfinite(value) else None
