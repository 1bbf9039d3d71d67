"""Writes many edits into one model by MEMIT, all at once, and measures what the model keeps.

    python -m eval.mass_edits
    python -m eval.mass_edits --model_name=factworld-gptj --num_edits=300 --output_dir=mass_gptj
    python -m eval.mass_edits --model_name=smollm2-135m --num_edits=20 --output_dir=mass_smollm2

This is eval.sequence with other defaults: MEMIT, 100 edits in one batch, and the folder mass_edits. It takes the same
flags, measures the same, writes the same files, and resumes in the same way, as the description of eval.sequence says.
With a single batch, all edits are the newest, and the edited model is measured once.
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
    defaults={
        "alg_name": "MEMIT",
        "num_cases": 100,
        "batch_size": None,
        "output_dir": "mass_edits",
    },
)

if __name__ == "__main__":
    PROGRAM.run()
