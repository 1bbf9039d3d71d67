"""Up to 1,000 edits in one embedded model: by MEMIT at once, by ROME one after another.

    python -m eval.mass_edits
    python -m eval.mass_edits --model_name=factworld-gptj --counts=1,10,100 --output_dir=mass_gptj

At each count it measures how many of the edits hold, on their prompts and on paraphrases, whether neighbors that were
not edited themselves do, and the perplexity of texts about other subjects. Requests are the held-out ones in their
order, and from the 877th on tuning requests. A count that is in the output directory is not measured again. Writes
mass_edits.json and mass_edits.png to --output_dir, by default mass_edits.
"""

from __future__ import annotations

from eval import cli
from eval.flags import model, reports, running
from rome_jax.evaluation.mass_edits import MassEdits, prepare_editors, read_counts
from rome_jax.factworld.facts import make_world
from rome_jax.files import extras
from rome_jax.terminal.sequence_report import report_mass


def main() -> None:
    """Measures what is missing, writes the figures, prints a row a measurement."""
    model.check_shipped()
    extras.check("matplotlib", "plot", "the figure")
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
