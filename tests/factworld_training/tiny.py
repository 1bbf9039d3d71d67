"""Settings of a training that takes seconds, for the tests of this folder."""

from __future__ import annotations

from rome_jax.factworld.corpus import documents
from rome_jax.factworld.facts import World
from rome_jax.factworld_training.settings import TrainConfig
from rome_jax.factworld_training.tokenizer import train_tokenizer
from rome_jax.models.config import Family
from rome_jax.models.families import family_config

TINY = TrainConfig(
    family_config(Family.GPT2, 2, 16, 2, 32, 400, 64),
    bottleneck_layer=1,
    tokens_per_step=128,
    short_length=32,
    long_every=3,
    first_steps=2,
    warmup=2,
    steps=8,
)


def tiny_tokenizer(world: World):
    """Returns a tokenizer for the model of `TINY`."""
    texts = (document.text for document in documents(world, seed=0, count=2000))
    return train_tokenizer(texts, vocab_size=TINY.model.vocab_size)
