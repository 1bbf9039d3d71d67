"""Trains a factworld model.

    python -m eval.train_factworld --family=gpt2 --output_dir=DIR

If it is killed, the same command resumes from the last checkpoint.
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
    # One device per processor core, because with a single device XLA leaves half of two cores idle.
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
