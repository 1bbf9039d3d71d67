"""What a model with many edits keeps, and what they cost: ROME edits that go into it one after another."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rome_jax.data.request import fill
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.methods import rome
from rome_jax.evaluation.datasets import CounterFactRecord
from rome_jax.evaluation.scoring import perplexity, target_nlls
from rome_jax.factworld.corpus import documents
from rome_jax.factworld.facts import World
from rome_jax.models.registry import LanguageModel
from rome_jax.moments import files as moment_files

TEXTS = 100  # behind the perplexity


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A model after some edits; rates in percent.

    Attributes:
      edits: how many so far.
      retention: rewrite prompts of all edits so far that prefer the new target.
      paraphrase: their paraphrase prompts that do.
      neighborhood: their neighborhood prompts about unedited facts that prefer the true target.
      perplexity: of texts about subjects that are never edited.
    """

    edits: int
    retention: float
    paraphrase: float
    neighborhood: float
    perplexity: float


def unedited_texts(world: World, records: Sequence[CounterFactRecord], seed: int) -> list[str]:
    """Texts of the world that mention no subject of the records."""
    subjects = [record.request.subject for record in records]
    texts = (document.text for document in documents(world, seed=seed + 1))
    return list(itertools.islice((t for t in texts if not any(s in t for s in subjects)), TEXTS))


def edited_prompts(world: World, records: Sequence[CounterFactRecord]) -> set[str]:
    """Every wording of the facts that the records change."""
    return {
        fill(template, record.request.subject)
        for record in records
        for template in world.relation(record.relation_id).templates
    }


def measure(
    model: LanguageModel,
    world: World,
    records: Sequence[CounterFactRecord],
    texts: Sequence[str],
) -> Measurement:
    """Looks at a model that holds the edits of `records`, one or more."""
    edited = edited_prompts(world, records)
    asked: list[tuple[str, str, str, str]] = []  # what of, prompt, the target wanted, the other
    for record in records:
        new, true = record.request.target_new, record.request.target_true
        neighbors = [p for p in record.neighborhood_prompts if p not in edited]
        asked.append(("retention", record.request.text, new, true))
        asked += [("paraphrase", prompt, new, true) for prompt in record.paraphrase_prompts]
        asked += [("neighborhood", prompt, true, new) for prompt in neighbors]
    kinds, prompts, wanted, other = zip(*asked, strict=True)
    success = target_nlls(model, prompts, wanted) < target_nlls(model, prompts, other)
    rates = {
        kind: 100 * float(success[np.array(kinds) == kind].mean()) for kind in dict.fromkeys(kinds)
    }
    return Measurement(len(records), perplexity=perplexity(model, texts), **rates)


def run(
    model: LanguageModel,
    world: World,
    records: Sequence[CounterFactRecord],
    config: ROMEConfig,
    templates: Sequence[str],
    texts: Sequence[str],
    every: int,
) -> Iterator[dict[str, Any]]:
    """After each edit, how it came about; with every `every`-th one a measurement."""
    moments = moment_files.load_shipped(model.name)
    requests = [record.request for record in records]
    sequence = rome.compute_sequence(
        model, requests, config, second_moments=moments, templates=templates
    )
    for count, (edited, result) in enumerate(sequence, 1):
        (edit,) = result.layers
        names = ("division_factor", "norm", "norm_ratio")
        entry = {"edit": count} | {name: float(getattr(edit, name)[0]) for name in names}
        if count % every == 0 or count == len(records):
            entry["after"] = dataclasses.asdict(measure(edited, world, records[:count], texts))
        yield entry
