"""Many ROME edits into one embedded model, one after another: what stays of them, and what they cost.

    python -m eval.sequential_edits
    python -m eval.sequential_edits --model_name=factworld-gptj --num_cases=100 --output_dir=sequential

Each edit is computed on the model that holds all earlier ones, with both choices of the key that the update divides by
(KeyMode). With no flags it takes 200 held-out requests; after every 10 edits it measures how many edits so far still
hold, whether their neighbors do, and the perplexity of texts about other subjects. Writes sequential.json and
sequential.png to --output_dir, by default sequential.
"""

from __future__ import annotations

import dataclasses

from eval import cli
from eval.flags import method, model, reports, running
from rome_jax.edit.config import ROMEConfig
from rome_jax.evaluation.sequence import run_modes
from rome_jax.files import extras
from rome_jax.terminal.sequence_report import report_sequence


def main() -> None:
    """Measures both key modes, writes the figures, prints the last rows."""
    name = model.check_shipped()
    extras.check("matplotlib", "plot", "the figure")
    directory = running.check_output()
    config = ROMEConfig.for_model(name)
    if method.LAYER.value is not None:
        config = dataclasses.replace(config, layers=(method.LAYER.value,))
    report = run_modes(
        model.load(),
        config,
        num_edits=running.CASES.value,
        every=reports.EVERY.value,
        seed=running.SEED.value,
    )
    report_sequence(report, directory)


PROGRAM = cli.Program(
    main,
    takes="model_name dtype precision num_cases every output_dir layer seed".split(),
    defaults={"num_cases": 200, "output_dir": "sequential"},
)

if __name__ == "__main__":
    PROGRAM.run()
