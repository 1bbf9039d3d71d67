"""Sequences of ROME edits in one model: what the model keeps of each edit, and what they cost it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rome_jax.data.request import fill, target_text
from rome_jax.edit import edit_warnings
from rome_jax.edit.config import KeyMode, ROMEConfig
from rome_jax.edit.methods import rome
from rome_jax.edit.resources import read_second_moments
from rome_jax.edit.stages.contexts import sample_templates
from rome_jax.evaluation.datasets import CounterFactRecord, Dataset, parse_counterfact
from rome_jax.evaluation.scoring import perplexity, target_nlls
from rome_jax.factworld.corpus import documents
from rome_jax.factworld.facts import World, make_world
from rome_jax.factworld.records import Role, counterfact_records
from rome_jax.files.progress import tqdm
from rome_jax.models.registry import LanguageModel
from rome_jax.moments.second_moment import SecondMoment
from rome_jax.version import __version__

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


def check_records(dataset: Dataset, smallest: int) -> tuple[CounterFactRecord, ...]:
    """Returns the records of a data set, if a measurement after `smallest` edits can be made with them.

    Args:
      dataset: Records in the layout of CounterFact.
      smallest: The number of edits at the first measurement.

    Raises:
      ValueError: If there are no paraphrase or neighborhood prompts among them, or a record has no true target.
    """
    records = tuple(r for r in dataset.records if isinstance(r, CounterFactRecord))
    _questions(None, records[:smallest])
    return records


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


def run(
    model: LanguageModel,
    world: World | None,
    records: Sequence[CounterFactRecord],
    config: ROMEConfig,
    templates: Sequence[str],
    texts: Sequence[str],
    every: int,
    second_moments: Mapping[int, SecondMoment] | None,
) -> Iterator[dict[str, Any]]:
    """Yields a record of each edit; every `every`-th one, and the last, include a measurement.

    Args:
      model: The unedited model.
      world: The world of the facts; None for records of a file.
      records: The edit requests, in their order.
      config: Hyperparameters of the edits.
      templates: Context templates.
      texts: Texts about subjects that are never edited.
      every: Number of edits between two measurements.
      second_moments: The second moment of the edited layer.

    Yields:
      The number of the edit, its division factor, its norm and its norm relative to the weight; under `after`, if
      measured, a `Measurement` as a dictionary.
    """
    requests = [record.request for record in records]
    sequence = rome.compute_sequence(
        model,
        requests,
        config,
        second_moments=second_moments,
        templates=templates,
        check_answers=False,
        donate=True,
    )
    for count, (edited, result) in enumerate(sequence, 1):
        (edit,) = result.layers
        names = ("division_factor", "norm", "norm_ratio")
        entry: dict[str, Any] = {"edit": count}
        entry |= {name: float(getattr(edit, name)[0]) for name in names}
        if count % every == 0 or count == len(records):
            entry["after"] = dataclasses.asdict(measure(edited, world, records[:count], texts))
        yield entry


def run_modes(
    model: LanguageModel,
    config: ROMEConfig,
    *,
    num_edits: int,
    every: int = 10,
    seed: int = 0,
    dataset: Dataset | None = None,
    moments_source: str | None = None,
) -> dict[str, Any]:
    """Runs a sequence of edits in a model, once for each key mode.

    The key mode decides which key the update divides by; see `KeyMode`.

    Args:
      model: The unedited model.
      config: Hyperparameters of the edits, which change one layer; the key mode is replaced.
      num_edits: The number of edits.
      every: Number of edits between two measurements.
      seed: Seed of the context templates and of factworld's requests.
      dataset: Records to edit, in their order. None takes factworld's held-out requests.
      moments_source: Value of the flag --second_moments. None reads those that come with the model.

    Returns:
      Settings, versions and, by key mode, the records that `run` yields, as JSON values.

    Raises:
      ValueError: If the model cannot be edited with this configuration, or the records cannot be measured with.
      OSError: If the second moments cannot be read.
    """
    if len(config.layers) != 1:
        raise ValueError(f"layers={config.layers}: give one layer, whose norms are recorded.")
    if dataset is None:
        world = make_world()
        records = parse_counterfact(counterfact_records(world, seed, Role.HELD_OUT, num_edits))
    else:
        world, records = None, check_records(dataset, min(every, num_edits))[:num_edits]
    moments = read_second_moments(moments_source, model, config)
    key = jax.random.key(seed)
    templates = sample_templates(model, key, config.context_template_length_params)
    texts = unedited_texts(world, records, seed)
    found = {}
    for mode in KeyMode:
        varied = dataclasses.replace(config, key_mode=mode)
        steps = run(model, world, records, varied, templates, texts, every, moments)
        with (
            edit_warnings.summarized(len(records)),
            tqdm(steps, total=len(records), unit="edit", desc=mode.value) as bar,
        ):
            found[mode.value] = list(bar)
    return {
        "model": model.name,
        "fingerprint": model.fingerprint(),
        "configuration": config.to_dict(),
        "covariance": (moments_source or "shipped") if config.needs_second_moments else None,
        "templates": list(templates),
        "seed": seed,
        **({} if dataset is None else describe_dataset(dataset)),
        "versions": {"rome_jax": __version__, "jax": jax.__version__},
        "perplexity_before": perplexity(model, texts),
        "runs": found,
    }
