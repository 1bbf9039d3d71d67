"""From the world to batches of packed sequences, the same for the same settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from tokenizers import Tokenizer

from rome_jax.factworld.corpus import documents
from rome_jax.factworld.facts import World
from rome_jax.factworld.relations import EntityKind
from rome_jax.factworld_training.packing import pack_documents
from rome_jax.factworld_training.settings import TrainConfig

_FIELDS = ("ids", "mention", "mention_last", "object", "loss_mask")

RESTORED_EVERY = 5  # every fifth row; it divides the rows of all shipped batches


@dataclasses.dataclass(frozen=True)
class TrainingBatch:
    """One step's sequences: [B, T] arrays of `packing.pack_documents`, and for each row [B] what training does to it.

    A row may run under the attention bottleneck, or be restored after noise drawn from its seed, or neither.
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
    """The world with a random `share` of its people, landmarks and products, and all of its places and companies."""
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


def batches(world: World, tokenizer: Tokenizer, config: TrainConfig) -> Iterator[TrainingBatch]:
    """The batches of all steps, the same for the same config."""
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
            batch = TrainingBatch(
                *(np.stack([getattr(row, name) for row in rows]) for name in _FIELDS),
                bottleneck=~restored & (rng.random(len(rows)) < config.bottleneck_fraction),
                restored=restored,
                seed=rng.integers(2**31, size=len(rows)),
            )
            yield _prepend_separator(batch, rng.random(len(rows)) < config.separator_fraction)


def _prepend_separator(batch: TrainingBatch, chosen: np.ndarray) -> TrainingBatch:
    """Shifts the chosen rows [B] right by one and begins them with <|endoftext|>, id 0, as sampling does."""

    def shift(array):
        moved = np.pad(array, ((0, 0), (1, 0)))[:, :-1]
        return np.where(chosen[:, None], moved, array)

    return dataclasses.replace(batch, **{name: shift(getattr(batch, name)) for name in _FIELDS})
