"""Writes many ROME edits into one model, one after another, and measures what the model keeps.

    python -m eval.sequential_edits
    python -m eval.sequential_edits --config.key_mode=consistent --output_dir=sequential_consistent
    python -m eval.sequential_edits --model_name=factworld-gptj --num_edits=100 --output_dir=sequential_gptj
    python -m eval.sequential_edits --model_name=smollm2-135m --every=5 --output_dir=sequential_smollm2

This is eval.sequence with other defaults: ROME, 200 edits in batches of 1, a measurement every 20 edits, and the folder
sequential. It takes the same flags, measures the same, writes the same files, and resumes in the same way, as the
description of eval.sequence says.
"""

from __future__ import annotations

import dataclasses

from eval import sequence


def main() -> None:
    """Does what eval.sequence does."""
    sequence.main()


PROGRAM = dataclasses.replace(
    sequence.PROGRAM,
    main=main,
    defaults={"num_cases": 200, "batch_size": 1, "every": 20, "output_dir": "sequential"},
)

if __name__ == "__main__":
    PROGRAM.run()
