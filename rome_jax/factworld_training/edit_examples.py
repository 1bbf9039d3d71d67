"""Edits of factworld's facts to train hypernetworks on: no fact of the held-out requests is edited or asked for."""

from __future__ import annotations

import dataclasses

import numpy as np

from rome_jax.data.request import EditRequest, fill, target_text
from rome_jax.edit.hypernetworks.losses import Examples, TrainingExample
from rome_jax.evaluation.datasets import DatasetName, load_dataset
from rome_jax.evaluation.hypernetwork_examples import split_records
from rome_jax.factworld.corpus import FILLERS
from rome_jax.factworld.facts import Fact, World, make_world
from rome_jax.factworld.records import Role, edit_requests
from rome_jax.models.registry import SHIPPED

VALIDATION_SHARE = 8  # one fact of so many


@dataclasses.dataclass(frozen=True)
class FactExamples:
    """Examples about some facts.

    Attributes:
      world: of the facts.
      facts: that are edited, each to any other object of its relation, and that must stay where another is edited.
    """

    world: World = dataclasses.field(repr=False)
    facts: tuple[Fact, ...] = dataclasses.field(repr=False)

    def draw(self, rng: np.random.Generator, count: int) -> list[TrainingExample]:
        """Random facts, new targets and phrasings; half of the edits use the relation's first template."""
        return [self._draw_one(rng) for _ in range(count)]

    def _draw_one(self, rng: np.random.Generator) -> TrainingExample:
        fact, other = (_pick(rng, self.facts) for _ in range(2))
        while other.subject == fact.subject:
            other = _pick(rng, self.facts)
        templates = self.world.relation(fact.relation_id).templates
        prompt = templates[0] if rng.random() < 0.5 else _pick(rng, templates)
        objects = [o for o in self.world.objects(fact.relation_id) if o != fact.target]
        filler = f"{_pick(rng, FILLERS)} " if rng.random() < 0.5 else ""
        other_template = _pick(rng, self.world.relation(other.relation_id).templates)
        return TrainingExample(
            EditRequest(prompt, fact.subject, _pick(rng, objects), fact.target),
            filler + fill(_pick(rng, templates), fact.subject),
            fill(other_template, other.subject),
            target_text(other.target),
        )


def split_examples(world: World, seed: int) -> tuple[FactExamples, FactExamples]:
    """Examples for training and for validation, of different facts, all of them of the tuning role.

    The roles are those of seed 0, by which programs evaluate; `seed` only divides the tuning facts.
    """
    requests = edit_requests(world, 0, Role.TUNING)
    order = np.random.default_rng(seed).permutation(len(requests))
    facts = [requests[index].fact for index in order]
    size = len(facts) // VALIDATION_SHARE
    return FactExamples(world, tuple(facts[size:])), FactExamples(world, tuple(facts[:size]))


def read_examples(
    model_name: str, path: str | None = None, seed: int = 0
) -> tuple[Examples, Examples, dict[str, str]]:
    """Examples for training and validation, and where they come from.

    Args:
      model_name: of the model that is edited.
      path: of CounterFact records; None means factworld's facts, for an embedded model.
      seed: of the division.

    Raises:
      ValueError, OSError: none are known for the model, or a file that cannot be read.
    """
    if path is not None:
        dataset = load_dataset(DatasetName.CF, path=path)
        data = {"source": dataset.source, "sha256": dataset.sha256}
        return *split_records(dataset.records, seed), data
    if model_name not in SHIPPED:
        raise ValueError(
            f"no examples come with model {model_name!r}: give --data_path, a file of CounterFact records that you "
            "will not evaluate on."
        )
    return *split_examples(make_world(), seed), {"source": "factworld, tuning facts"}


def _pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]
