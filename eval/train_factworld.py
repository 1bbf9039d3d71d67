"""Trains the two embedded models.

    python -m eval.train_factworld --family=gpt2 --output_dir=DIR

A killed run resumes from its last checkpoint with the same flags.
"""

from __future__ import annotations

import os

import jax

from eval import cli
from eval.flags import running, training
from rome_jax.factworld_training.settings import configure
from rome_jax.factworld_training.train import report_lines, train


def main() -> None:
    """Trains the model that the flags describe."""
    config = configure(training.FAMILY.value, training.STEPS.value, running.SEED.value)
    directory = running.check_output()
    # One device per processor core: XLA leaves half of two cores idle when it has one device.
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    report = train(config, directory)
    print("\n".join(report_lines(report)))
    print(f"written: {directory}")


PROGRAM = cli.Program(
    main,
    takes="family output_dir steps seed".split(),
    required=("family", "output_dir"),
    resumable=True,
)

if __name__ == "__main__":
    PROGRAM.run()
