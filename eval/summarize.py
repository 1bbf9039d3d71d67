"""The paper's table of evaluation runs, from their results folders or from those of the original.

    python -m eval.summarize --dir_name=ROME
    python -m eval.summarize --dir_name=ROME --runs=run_000,run_001 --first_n_cases=100
    python -m eval.summarize --dir_name=ROME,FT --format=latex --output=table.tex
    python -m eval.summarize --dir_name=ROME/run_000,FT/run_002
    python -m eval.summarize --dir_name=ROME --original

A row a run, below one for the unedited model, which runs share that agree on it; each metric × 100 with its 95 %
interval, 1.96 σ/√n over cases. The interval of the score S is by the delta method: from how each case moves the three
means of which S is the harmonic mean. For zsRE these are the three accuracies, as in the original.
"""

from __future__ import annotations

import json
from pathlib import Path

from eval import cli
from eval.flags import running
from rome_jax.evaluation import summaries, tables
from rome_jax.files.artifacts import write_whole


def main() -> None:
    """Prints or writes the table."""
    running.check_files()
    runs = summaries.find_runs(
        running.RESULTS_DIR.value, running.DIR_NAME.value, running.RUNS.value
    )
    first = running.FIRST.value
    found = [summaries.summarize(summaries.read_cases(run, first)) for run in runs]
    if running.ORIGINAL.value:
        pairs = [one.original(str(run)) for run, one in zip(runs, found, strict=True)]
        text = json.dumps(pairs, indent=1)
    else:
        named = dict(zip(tables.run_names(runs), found, strict=True))
        text = tables.render_runs(named, running.FORMAT.value)
    if running.OUTPUT.value is None:
        print(text)
    else:
        write_whole(Path(running.OUTPUT.value), f"{text}\n".encode())
        print(f"Written to {running.OUTPUT.value}.")


PROGRAM = cli.Program(
    main, takes="dir_name runs first_n_cases results_dir format output original".split()
)

if __name__ == "__main__":
    PROGRAM.run()
