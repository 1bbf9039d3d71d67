"""Writes up to 1,000 edits into one model, by MEMIT all at once and by ROME one after another.

    python -m eval.mass_edits
    python -m eval.mass_edits --model_name=factworld-gptj --counts=1,10,100 --output_dir=mass_gptj
    python -m eval.mass_edits --model_name=smollm2-135m --counts=1,5,20 --output_dir=mass_smollm2

At each number of edits in --counts it measures how many edits hold, on their prompts and on paraphrases; how many
unedited neighbors keep their answer; and the perplexity of texts about other subjects. For a factworld model, the
requests are the 876 held-out ones, followed by tuning requests. Other models take their records as in eval.evaluate;
their texts are the neighborhood prompts of these records with the true targets.

The results are mass_edits.json and mass_edits.png in --output_dir, by default mass_edits. To resume a stopped run,
repeat the command; existing measurements are kept.
"""

from __future__ import annotations

from eval import cli
from eval.flags import data, method, model, reports, running
from rome_jax.evaluation.mass_edits import (
    MOST,
    MassEdits,
    prepare_editors,
    read_configs,
    read_counts,
)
from rome_jax.factworld.facts import make_world
from rome_jax.plots.style import check_matplotlib
from rome_jax.terminal.sequence_report import report_mass


def main() -> None:
    """Makes the missing measurements, writes the files, and prints one row per measurement."""
    name = model.check()
    configs = read_configs(name).values()
    for config in configs:
        method.check_second_moments(config)
    check_matplotlib("the figure")
    counts = read_counts(reports.COUNTS.value)
    directory = running.check_output()
    dataset = data.read_sequence(MOST)
    most = data.limit_edits(reports.COUNTS, counts[-1], dataset)
    counts = sorted({min(count, most) for count in counts})
    seed = running.SEED.value
    loaded = model.load()
    moments = method.find_second_moments(loaded, configs)
    editors = prepare_editors(
        loaded,
        seed=seed,
        chunk_size=method.chunk_size(loaded, configs),
        moments_source=moments,
    )
    mass = MassEdits.open(directory, editors, dataset or make_world(), seed, moments)
    mass.measure(counts)
    report_mass(mass.report(counts), directory)


PROGRAM = cli.Program(
    main,
    takes="model_name revision dtype precision mesh second_moments data_path counts output_dir chunk_size seed".split(),
    defaults={"output_dir": "mass_edits", "counts": ["1", "10", "30", "100", "300", "1000"]},
    resumable=True,
)

if __name__ == "__main__":
    PROGRAM.run()
