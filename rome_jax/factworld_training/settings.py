"""Settings of the training of the factworld models: every number that decides them."""

from __future__ import annotations

import dataclasses

from rome_jax.models.config import Family, ModelConfig, Rotary, RotaryPairs
from rome_jax.models.families import family_config


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a trained model, up to the order of float additions.

    Attributes:
      model: Shapes of the model.
      bottleneck_layer: First layer of the upper part.
      bottleneck_fraction: Share of the sequences that run under the bottleneck, among those that are not restored.
      steps: Number of steps of Adam.
      tokens_per_step: Number of tokens per step, whatever the length of its sequences.
      short_length, long_every: The sequences of a step have `short_length` tokens; those of every `long_every`-th step
        fill the context.
      separator_fraction: Share of the sequences that begin with <|endoftext|>, from which texts are sampled.
      object_weight: Weight of the loss on the objects of facts. Other tokens, many of which cannot be predicted, have
        weight 1.
      first_share, first_steps: The first `first_steps` steps only see the facts of this share of the subjects. A model
        learns how to look facts up early from few facts, and late from many (Zucchet et al., 2025,
        arXiv:2503.21676); the other facts are then added quickly.
      learning_rate: Peak learning rate, after `warmup` steps; it then decays to a twentieth along a cosine.
      warmup: Number of steps of warm-up.
      seed: Seed of world, corpus, initialization, and masks.
    """

    model: ModelConfig
    bottleneck_layer: int
    bottleneck_fraction: float = 0.75
    steps: int = 1300
    tokens_per_step: int = 2560
    short_length: int = 64
    long_every: int = 5
    separator_fraction: float = 0.2
    object_weight: float = 8.0
    first_share: float = 0.25
    first_steps: int = 400
    learning_rate: float = 4e-3
    warmup: int = 100
    seed: int = 0


VOCAB_SIZE = 1536
CONFIGS = {
    Family.GPT2: TrainConfig(
        family_config(Family.GPT2, 6, 128, 4, 512, VOCAB_SIZE, 256), bottleneck_layer=3
    ),
    Family.GPTJ: TrainConfig(
        family_config(
            Family.GPTJ,
            6,
            128,
            4,
            512,
            VOCAB_SIZE,
            256,
            rotary=Rotary(16, RotaryPairs.INTERLEAVED),
        ),
        bottleneck_layer=3,
    ),
}


def configure(family: str, steps: int | None = None, seed: int = 0) -> TrainConfig:
    """Returns the settings of a shipped model, with another seed or number of steps.

    Args:
      family: "gpt2" or "gptj".
      steps: Number of steps of Adam; None means that of the shipped model.
      seed: Seed of world, corpus, initialization, and masks.

    Raises:
      ValueError: If the training would end during its warm-up.

    Example:
      >>> configure("gptj", steps=200).steps
      200
    """
    config = dataclasses.replace(CONFIGS[Family(family)], seed=seed)
    if steps is not None:
        config = dataclasses.replace(config, steps=steps)
    if config.steps <= config.warmup:
        raise ValueError(
            f"--steps={config.steps} ends during the warm-up of {config.warmup} steps: give more steps."
        )
    return config
