"""Writes up to 1,000 edits into one factworld model, by MEMIT all at once and by ROME one after another.

    python -m eval.mass_edits
    python -m eval.mass_edits --model_name=factworld-gptj --counts=1,10,100 --output_dir=mass_gptj

At each number of edits in --counts it measures how many edits hold, on their prompts and on paraphrases; how many
unedited neighbors keep their answer; and the perplexity of texts about other subjects. The requests are the 876
held-out ones, followed by tuning requests.

The results are mass_edits.json and mass_edits.png in --output_dir, by default mass_edits. To resume a stopped run,
repeat the command; existing measurements are kept.
"""

from __future__ import annotations

from eval import cli
from eval.flags import model, reports, running
from rome_jax.evaluation.mass_edits import MassEdits, prepare_editors, read_counts
from rome_jax.factworld.facts import make_world
from rome_jax.plots.style import check_matplotlib
from rome_jax.terminal.sequence_report import report_mass


def main() -> None:
    """Makes the missing measurements, writes the files, and prints one row per measurement."""
    model.check_shipped()
    check_matplotlib("the figure")
    counts = read_counts(reports.COUNTS.value)
    directory = running.check_output()
    seed = running.SEED.value
    editors = prepare_editors(model.load(), seed=seed, chunk_size=running.CHUNK.value)
    mass = MassEdits.open(directory, editors, make_world(), seed)
    mass.measure(counts)
    report_mass(mass.report(counts), directory)


PROGRAM = cli.Program(
    main,
    takes="model_name dtype precision counts output_dir chunk_size seed".split(),
    defaults={"output_dir": "mass_edits"},
    resumable=True,
)

if __name__ == "__main__":
    PROGRAM.run()
