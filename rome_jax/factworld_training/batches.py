"""Batches of packed sequences about a world, equal for equal settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import jax
import numpy as np

from rome_jax.factworld.corpus import documents
from rome_jax.factworld.facts import World
from rome_jax.factworld.relations import EntityKind
from rome_jax.factworld_training.packing import pack_documents
from rome_jax.factworld_training.settings import TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FIELDS = ("ids", "mention", "mention_last", "object", "loss_mask")

# Every fifth row is restored. All shipped batches have a multiple of 5 rows.
RESTORED_EVERY = 5


@dataclasses.dataclass(frozen=True)
class TrainingBatch:
    """The sequences of one step, and what training does to each of them.

    A row runs under the attention bottleneck, or is restored after noise that is drawn from its seed, or neither.

    Attributes:
      ids, mention, mention_last, object, loss_mask: [B, T], as in `packing.Packed`.
      bottleneck: bool [B], whether a row runs under the bottleneck.
      restored: bool [B], whether a row is restored.
      seed: int64 [B], seed of a row's noise.
    """

    ids: np.ndarray
    mention: np.ndarray
    mention_last: np.ndarray
    object: np.ndarray
    loss_mask: np.ndarray
    bottleneck: np.ndarray
    restored: np.ndarray
    seed: np.ndarray


jax.tree_util.register_dataclass(
    TrainingBatch, [field.name for field in dataclasses.fields(TrainingBatch)], meta_fields=[]
)


def part_of(world: World, share: float, seed: int) -> World:
    """Returns a world with some of its people, landmarks, and products, and all of its places and companies.

    Args:
      world: The whole world.
      share: Share of the people, landmarks, and products, between 0 and 1.
      seed: Decides which are kept.
    """
    rng = np.random.default_rng(seed)
    kept = {
        entity.name
        for entity in world.entities
        if entity.kind in (EntityKind.COMPANY, EntityKind.CITY, EntityKind.COUNTRY)
        or rng.random() < share
    }
    return dataclasses.replace(
        world,
        entities=tuple(entity for entity in world.entities if entity.name in kept),
        facts=tuple(fact for fact in world.facts if fact.subject in kept),
    )


def batches(
    world: World, tokenizer: PreTrainedTokenizerFast, config: TrainConfig
) -> Iterator[TrainingBatch]:
    """Yields the batches of all steps.

    Args:
      world: The facts; the first steps only see a part of them.
      tokenizer: As in `packing.pack_documents`.
      config: Decides the batches; equal configs give equal batches.
    """
    part = part_of(world, config.first_share, config.seed)
    rng = np.random.default_rng(config.seed)
    first = min(config.first_steps, config.steps)
    for stage, (known, steps) in enumerate(((part, first), (world, config.steps - first))):
        streams = {
            length: pack_documents(
                documents(known, seed=config.seed + stage + length), tokenizer, length
            )
            for length in (config.short_length, config.model.context_length)
        }
        for step in range(steps):
            long = step % config.long_every == config.long_every - 1
            length = config.model.context_length if long else config.short_length
            rows = [next(streams[length]) for _ in range(config.tokens_per_step // length)]
            restored = np.arange(len(rows)) % RESTORED_EVERY == 0
            arrays = {name: np.stack([getattr(row, name) for row in rows]) for name in _FIELDS}
            batch = TrainingBatch(
                bottleneck=~restored & (rng.random(len(rows)) < config.bottleneck_fraction),
                restored=restored,
                seed=rng.integers(2**31, size=len(rows)),
                **arrays,
            )
            yield _prepend_separator(batch, rng.random(len(rows)) < config.separator_fraction)


def _prepend_separator(batch: TrainingBatch, chosen: np.ndarray) -> TrainingBatch:
    """Shifts the chosen rows [B] right by one, so that they begin with <|endoftext|> (id 0) as sampled texts do."""

    def shift(array):
        moved = np.pad(array, ((0, 0), (1, 0)))[:, :-1]
        return np.where(chosen[:, None], moved, array)

    return dataclasses.replace(batch, **{name: shift(getattr(batch, name)) for name in _FIELDS})
