"""Edits of factworld's facts to train hypernetworks on. No example involves a fact of the held-out requests."""

from __future__ import annotations

import dataclasses

import numpy as np

from rome_jax.data.request import EditRequest, fill, target_text
from rome_jax.edit.hypernetworks.losses import Examples, TrainingExample
from rome_jax.evaluation.datasets import CounterFactRecord, DatasetName, load_dataset
from rome_jax.evaluation.hypernetwork_examples import split_records
from rome_jax.factworld.corpus import FILLERS
from rome_jax.factworld.facts import Fact, World, make_world
from rome_jax.factworld.records import Role, edit_requests, pick
from rome_jax.models.registry import SHIPPED

VALIDATION_SHARE = 8  # One of so many facts is kept for validation.


@dataclasses.dataclass(frozen=True)
class FactExamples:
    """Random examples about some facts.

    Attributes:
      world: The world of the facts.
      facts: Facts that are edited, each to another object of its relation, and that must not change when another fact
        is edited.
    """

    world: World = dataclasses.field(repr=False)
    facts: tuple[Fact, ...] = dataclasses.field(repr=False)

    def draw(self, rng: np.random.Generator, count: int) -> list[TrainingExample]:
        """Draws examples with random facts, new targets, and phrasings.

        Half of the edits use the first template of the relation.

        Args:
          rng: Decides the examples.
          count: Number of examples.

        Example:
          >>> training, _ = split_examples(make_world(), 0)
          >>> (example,) = training.draw(np.random.default_rng(0), 1)
          >>> example.request.text, example.request.target_new
          ('Tilmock Flalmmark was born in the city of', 'Lornholm')
        """
        return [self._draw_one(rng) for _ in range(count)]

    def _draw_one(self, rng: np.random.Generator) -> TrainingExample:
        """Draws one example."""
        fact, other = (pick(rng, self.facts) for _ in range(2))
        while other.subject == fact.subject:
            other = pick(rng, self.facts)
        templates = self.world.relation(fact.relation_id).templates
        prompt = templates[0] if rng.random() < 0.5 else pick(rng, templates)
        objects = [o for o in self.world.objects(fact.relation_id) if o != fact.target]
        filler = f"{pick(rng, FILLERS)} " if rng.random() < 0.5 else ""
        other_template = pick(rng, self.world.relation(other.relation_id).templates)
        return TrainingExample(
            EditRequest(prompt, fact.subject, pick(rng, objects), fact.target),
            filler + fill(pick(rng, templates), fact.subject),
            fill(other_template, other.subject),
            target_text(other.target),
        )


def split_examples(world: World, seed: int) -> tuple[FactExamples, FactExamples]:
    """Returns examples for training and for validation, about different facts of the tuning role.

    The roles are those of seed 0, which all programs evaluate with; `seed` only divides the tuning facts.

    Args:
      world: The facts.
      seed: Decides which tuning facts are kept for validation.
    """
    requests = edit_requests(world, 0, Role.TUNING)
    order = np.random.default_rng(seed).permutation(len(requests))
    facts = [requests[index].fact for index in order]
    size = len(facts) // VALIDATION_SHARE
    return FactExamples(world, tuple(facts[size:])), FactExamples(world, tuple(facts[:size]))


def read_examples(
    model_name: str, path: str | None = None, seed: int = 0
) -> tuple[Examples, Examples, dict[str, str]]:
    """Returns examples for training and for validation, and a description of their source.

    Args:
      model_name: Name of the model that is edited.
      path: File of CounterFact records. None means the facts of factworld, for a model that comes with the package.
      seed: Decides which examples are kept for validation.

    Raises:
      ValueError: If no examples come with the model, or the file has another format.
      OSError: If the file cannot be read.

    Example:
      >>> read_examples("factworld-gpt2")[2]
      {'source': 'factworld, tuning facts'}
    """
    if path is not None:
        dataset = load_dataset(DatasetName.CF, path=path)
        records = [record for record in dataset.records if isinstance(record, CounterFactRecord)]
        data = {"source": dataset.source, "sha256": dataset.sha256}
        return *split_records(records, seed), data
    if model_name not in SHIPPED:
        raise ValueError(
            f"no examples come with model {model_name!r}: give --data_path, a file of CounterFact records that you "
            "will not evaluate on."
        )
    return *split_examples(make_world(), seed), {"source": "factworld, tuning facts"}
