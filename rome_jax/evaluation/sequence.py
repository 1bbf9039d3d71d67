"""What a model with many edits keeps, and what they cost: ROME edits that go into it one after another."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from rome_jax.data.request import fill
from rome_jax.edit.config import KeyMode, ROMEConfig
from rome_jax.edit.methods import rome
from rome_jax.edit.stages.contexts import sample_templates
from rome_jax.evaluation.datasets import CounterFactRecord, parse_counterfact
from rome_jax.evaluation.scoring import perplexity, target_nlls
from rome_jax.factworld.corpus import documents
from rome_jax.factworld.facts import World, make_world
from rome_jax.factworld.records import Role, counterfact_records
from rome_jax.files.progress import tqdm
from rome_jax.models.registry import LanguageModel
from rome_jax.moments import files as moment_files
from rome_jax.version import __version__

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


def run_modes(
    model: LanguageModel, config: ROMEConfig, *, num_edits: int, every: int = 10, seed: int = 0
) -> dict[str, Any]:
    """Sequences of factworld's held-out edits into an embedded model, with either key that the update divides by.

    Args:
      model: an embedded one.
      config: of the edits, but for the key mode.
      num_edits: requests.
      every: edits between two measurements.
      seed: of the context templates and the requests.

    Returns:
      Settings, versions and, by key mode, what `run` yields; JSON values.

    Raises:
      ValueError: a configuration that the model cannot be edited with.
    """
    world = make_world()
    records = parse_counterfact(counterfact_records(world, seed, Role.HELD_OUT, num_edits))
    key = jax.random.key(seed)
    templates = sample_templates(model, key, config.context_template_length_params)
    texts = unedited_texts(world, records, seed)
    found = {}
    for mode in KeyMode:
        varied = dataclasses.replace(config, key_mode=mode)
        steps = run(model, world, records, varied, templates, texts, every)
        found[mode.value] = list(tqdm(steps, total=len(records), unit="edit", desc=mode.value))
    return {
        "model": model.name,
        "fingerprint": model.fingerprint(),
        "configuration": config.to_dict(),
        "templates": list(templates),
        "seed": seed,
        "versions": {"rome_jax": __version__, "jax": jax.__version__},
        "perplexity_before": perplexity(model, texts),
        "runs": found,
    }
