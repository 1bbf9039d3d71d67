"""Prints the paper's table for evaluation runs, from their result folders or from those of the original.

    python -m eval.summarize --dir_name=ROME
    python -m eval.summarize --dir_name=ROME --runs=run_000,run_001 --first_n_cases=100
    python -m eval.summarize --dir_name=ROME,FT --format=latex --output=table.tex
    python -m eval.summarize --dir_name=ROME/run_000,FT/run_002 --columns=ES,PS,NS,s
    python -m eval.summarize --dir_name=ROME --original

The table has one row per run, below one row for the unedited model. Runs on the same model and data share that row;
otherwise each model and data set has a row of its own. Every metric is × 100 and has its 95 % interval over cases: the
Wilson score interval for rates (ES, PS, NS and other shares), and a bootstrap over cases for all other means and for
the score S. For zsRE, S is the harmonic mean of the three accuracies, as in the original.
"""

from __future__ import annotations

import json
from pathlib import Path

from eval import cli
from eval.flags import reports, running
from rome_jax.evaluation import case_files, summaries, tables
from rome_jax.files.artifacts import write_whole


def main() -> None:
    """Prints or writes the table."""
    running.check_plot()
    table_format = running.FORMAT.value
    metrics = reports.read_columns(table_format)
    runs = case_files.find_runs(
        running.RESULTS_DIR.value, running.DIR_NAME.value, running.RUNS.value
    )
    found = [
        summaries.summarize(
            case_files.read_cases(run, running.FIRST.value), summaries.Source.read(run)
        )
        for run in runs
    ]
    if running.ORIGINAL.value:
        pairs = [one.original(str(run)) for run, one in zip(runs, found, strict=True)]
        text = json.dumps(pairs, indent=1)
    else:
        named = dict(zip(tables.run_names(runs), found, strict=True))
        text = tables.render_runs(named, table_format, metrics)
    if running.OUTPUT.value is None:
        print(text)
    else:
        write_whole(Path(running.OUTPUT.value), f"{text}\n".encode())
        print(f"Written to {running.OUTPUT.value}.")


PROGRAM = cli.Program(
    main, takes="dir_name runs first_n_cases results_dir columns format output original".split()
)

if __name__ == "__main__":
    PROGRAM.run()
