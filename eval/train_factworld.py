"""Trains the two embedded models: `python -m eval.train_factworld --family=gpt2 --output_dir=DIR`.

A killed run resumes from its last checkpoint with the same flags.
"""

from __future__ import annotations

import dataclasses
import os

import jax
from absl import flags

from eval import cli
from rome_jax.factworld_training.settings import CONFIGS
from rome_jax.factworld_training.train import report_lines, train
from rome_jax.models.config import Family

_FAMILY = flags.DEFINE_enum(
    "family", None, [family.value for family in CONFIGS], "Architecture.", required=True
)
_OUTPUT = flags.DEFINE_string("output_dir", None, "Directory for the model.", required=True)
_STEPS = flags.DEFINE_integer("steps", None, "Steps of Adam; default: those of the shipped model.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of world, corpus, weights and masks.")


def main() -> None:
    """Trains the model that the flags describe."""
    config = dataclasses.replace(CONFIGS[Family(_FAMILY.value)], seed=_SEED.value)
    if _STEPS.value is not None:
        config = dataclasses.replace(config, steps=_STEPS.value)
    if config.steps <= config.warmup:
        raise ValueError(
            f"--steps={config.steps} must be more than the {config.warmup} steps of warm-up."
        )
    # One device per processor core: XLA leaves half of two cores idle when it has one device.
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    report = train(config, _OUTPUT.value)
    print("\n".join(report_lines(report)))
    print(f"written: {_OUTPUT.value}")


if __name__ == "__main__":
    cli.run(main)
