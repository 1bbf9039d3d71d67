"""How the embedded models are trained: every number that decides them."""

from __future__ import annotations

import dataclasses

from rome_jax.models.config import Family, ModelConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a trained model, up to the order of float additions.

    Attributes:
      model: shapes of the model.
      bottleneck_layer: first layer of the upper part.
      bottleneck_fraction: share of the sequences that see the bottleneck, among those that are not restored.
      steps: of Adam.
      tokens_per_step: in every step, whatever the length of its sequences.
      short_length, long_every: all sequences of a step are `short_length` long, but those of every
        `long_every`-th step fill the context.
      separator_fraction: share of the sequences that begin with <|endoftext|>, from which texts are sampled.
      first_share, first_steps: so many steps see only the facts of this share of the subjects. How facts are looked
        up is learned from few facts soon, from many late (Zucchet et al., 2025); the others are then added quickly.
      object_weight: of the loss of facts' objects; other tokens, many of them unpredictable, count 1.
      learning_rate: at its peak, after `warmup` steps; cosine decay to a twentieth.
      seed: of world, corpus, initialisation and masks.
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
        ModelConfig(Family.GPT2, 6, 128, 4, 512, VOCAB_SIZE, 256), bottleneck_layer=3
    ),
    Family.GPTJ: TrainConfig(
        ModelConfig(
            Family.GPTJ, 6, 128, 4, 512, VOCAB_SIZE, 256, rotary_dim=16, tie_embeddings=False
        ),
        bottleneck_layer=3,
    ),
}


def configure(family: str, steps: int | None = None, seed: int = 0) -> TrainConfig:
    """The training of a shipped model, with another seed or another number of steps.

    Args:
      family: "gpt2" or "gptj".
      steps: of Adam; None means those of the shipped model.
      seed: of world, corpus, initialisation and masks.

    Raises:
      ValueError: steps that end in the warm-up.

    Example:
      >>> configure("gptj", steps=200).steps
      200
    """
    config = dataclasses.replace(CONFIGS[Family(family)], seed=seed)
    if steps is not None:
        config = dataclasses.replace(config, steps=steps)
    if config.steps <= config.warmup:
        raise ValueError(
            f"--steps={config.steps} must be more than the {config.warmup} steps of warm-up."
        )
    return config
