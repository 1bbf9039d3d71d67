"""Writes many ROME edits into one factworld model, one after another, and measures how many still hold.

    python -m eval.sequential_edits
    python -m eval.sequential_edits --model_name=factworld-gptj --num_cases=100 --output_dir=sequential

Each edit is computed on the model that holds all earlier ones, once with each choice of the key that divides the update
(KeyMode). After every --every edits it measures how many of the edits so far hold, how many of their neighbors keep
their answer, and the perplexity of texts about other subjects. The requests are held-out ones, 200 by default.

The results are sequential.json and sequential.png in --output_dir, by default sequential.
"""

from __future__ import annotations

import dataclasses

from eval import cli
from eval.flags import method, model, reports, running
from rome_jax.edit.config import ROMEConfig
from rome_jax.evaluation.sequence import run_modes
from rome_jax.plots.style import check_matplotlib
from rome_jax.terminal.sequence_report import report_sequence


def main() -> None:
    """Measures both key modes, writes the files, and prints the last rows."""
    name = model.check_shipped()
    check_matplotlib("the figure")
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
