"""Writes many edits into one model, batch after batch, by any method, and measures what the model keeps.

    python -m eval.sequence --alg_name=AlphaEdit
    python -m eval.sequence --alg_name=MEMIT --num_edits=800 --batch_size=100 --every=1 --output_dir=memit_100
    python -m eval.sequence --alg_name=ROME --num_edits=300 --counts=1,10,30,100,300 --output_dir=rome_1
    python -m eval.sequence --model_name=smollm2-135m --alg_name=MEMIT --num_edits=20 --batch_size=5 --every=1
    python -m eval.sequence --alg_name=UltraEdit --ds_name=zsre --batch_size=10 --every=1 --output_dir=ultra_zsre

The requests are written in batches of --batch_size, each on the weights that hold the earlier ones. After every --every
batches, or at --counts, and at the end it measures:

  - of the newest edits (the last batch, and at least ten) and of all earlier ones, at most 50 of each: efficacy,
    paraphrases and neighbors, by the likelihood of both targets and by what the model writes; neighbors whose own fact
    was edited are left out, and counted
  - of texts about other subjects: perplexity, and KL(unedited || edited) per token
  - the relative change of the weights of each layer, and seconds per edit

The questions of --ds_name=zsre have no second target. Likelihood then means the share of the target's tokens that are
the most likely ones, and the neighbors are the locality questions.

An alarm names the number of edits at which KL or the change of a layer leaves what the first measurements showed.

A factworld model gets its held-out requests, of which there are 876. Other models take their records as in
eval.evaluate; their texts are the neighborhood prompts of these records with the true targets, or the locality
questions with their answers.

The results are sequence.json and sequence.png in --output_dir, by default sequence, beside one file per measurement. To
resume a stopped run, repeat the command: it continues from the last saved state, with the same numbers.

eval.sequential_edits and eval.mass_edits are this program with the defaults of ROME, one edit after another, and of
MEMIT, all edits at once.
"""

from __future__ import annotations

from eval import cli
from eval.flags import data, method, model, reports, running
from rome_jax.edit.variant import MethodVariant
from rome_jax.evaluation.sequence_measurement import check_requests
from rome_jax.evaluation.sequence_run import SequenceRun, check_folder
from rome_jax.plots.style import check_matplotlib
from rome_jax.terminal.sequence_report import report_edits


def main() -> None:
    """Writes the edits, makes the missing measurements, and prints and draws all of them."""
    algorithm, config = method.read()
    method.check_second_moments(config)
    check_matplotlib("the figure")
    directory = running.check_output()
    dataset = data.read_requests()
    num_edits = len(check_requests(dataset))
    batch_size = running.read_batch_size(num_edits)
    points = reports.read_points(num_edits, batch_size)
    name = str(MethodVariant.of(algorithm, config))
    known = {"alg_name": name, "hyperparameters": config.to_dict(), "ds_name": dataset.name.value}
    check_folder(directory, known | {"num_edits": num_edits, "batch_size": batch_size})
    loaded = model.load()
    moments = method.find_second_moments(loaded, [config])
    run = SequenceRun.open(
        directory,
        method.prepare(loaded, algorithm, config, moments),
        dataset,
        batch_size=batch_size,
        seed=running.SEED.value,
        moments_source=moments,
        flags=running.recorded(),
    )
    run.run(points)
    report_edits(run.report(), directory)


PROGRAM = cli.Program(
    main,
    takes=(
        "alg_name config config_field hparams_fname templates hypernetwork second_moments model_name dtype precision "
        "mesh revision ds_name data_path num_cases batch_size every counts chunk_size seed output_dir"
    ).split(),
    defaults={"num_cases": 100, "batch_size": 1, "output_dir": "sequence"},
    resumable=True,
)

if __name__ == "__main__":
    PROGRAM.run()
