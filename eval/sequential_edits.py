"""Writes many ROME edits into one model, one after another, and measures how many still hold.

    python -m eval.sequential_edits
    python -m eval.sequential_edits --model_name=factworld-gptj --num_cases=100 --output_dir=sequential
    python -m eval.sequential_edits --model_name=smollm2-135m --every=5

Each edit is computed on the model that holds all earlier ones, once with each choice of the key that divides the update
(KeyMode). After every --every edits it measures how many of the edits so far hold, how many of their neighbors keep
their answer, and the perplexity of texts about other subjects.

A factworld model gets held-out requests, 200 by default. Other models take their records as in eval.evaluate; their
texts are the neighborhood prompts of these records with the true targets.

The results are sequential.json and sequential.png in --output_dir, by default sequential.
"""

from __future__ import annotations

import dataclasses

from eval import cli
from eval.flags import data, method, model, reports, running
from rome_jax.edit.config import ROMEConfig
from rome_jax.evaluation.sequence import run_modes
from rome_jax.plots.style import check_matplotlib
from rome_jax.terminal.sequence_report import report_sequence


def main() -> None:
    """Measures both key modes, writes the files, and prints the last rows."""
    _, config = method.read()
    assert isinstance(config, ROMEConfig)  # without --alg_name
    check_matplotlib("the figure")
    directory = running.check_output()
    if method.LAYER.value is not None:
        config = dataclasses.replace(config, layers=(method.LAYER.value,))
    method.check_second_moments(config)
    dataset = data.read_sequence(running.CASES.value)
    num_edits = data.limit_edits(running.CASES, running.CASES.value, dataset)
    loaded = model.load()
    report = run_modes(
        loaded,
        config,
        num_edits=num_edits,
        every=reports.EVERY.value,
        seed=running.SEED.value,
        dataset=dataset,
        moments_source=method.find_second_moments(loaded, [config]),
    )
    report_sequence(report, directory)


PROGRAM = cli.Program(
    main,
    takes=(
        "model_name dtype precision mesh config config_field hparams_fname second_moments data_path num_cases every "
        "output_dir layer seed revision"
    ).split(),
    defaults={"num_cases": 200, "output_dir": "sequential"},
)

if __name__ == "__main__":
    PROGRAM.run()
