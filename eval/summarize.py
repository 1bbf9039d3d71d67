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

import itertools
import json
from pathlib import Path

from absl import flags

from eval import cli
from rome_jax.evaluation import summaries, tables
from rome_jax.files.artifacts import write_whole

_DIR_NAME = flags.DEFINE_list(
    "dir_name",
    [],
    "Methods in --results_dir, such as ROME or ROME,FT; or paths to their folders or to those of single runs.",
)
_RUNS = flags.DEFINE_list("runs", [], "Runs of each method, such as run_000; default: all.")
_FIRST = flags.DEFINE_integer(
    "first_n_cases",
    None,
    "Cases of a run to read, in order of case id; default: all.",
    lower_bound=1,
)
_RESULTS = flags.DEFINE_string("results_dir", "results", "Holds a folder a method.")
_FORMAT = flags.DEFINE_enum_class(
    "format", tables.TableFormat.TEXT, tables.TableFormat, "Of the table."
)
_OUTPUT = flags.DEFINE_string("output", None, "A file for the table; default: the terminal.")
_ORIGINAL = flags.DEFINE_bool(
    "original",
    False,
    "Instead, the original's summary as JSON: (mean, σ) of its metrics, a run each.",
)


def labels(runs: list[Path]) -> list[str]:
    """Method and run of each folder, such as ROME/run_000; whole paths where these are not unique."""
    short = [f"{run.absolute().parent.name}/{run.name}" for run in runs]
    return short if len(set(short)) == len(short) else [str(run) for run in runs]


def tables_of(runs: dict[str, summaries.Summary], table_format: tables.TableFormat) -> str:
    """One table for CounterFact and one for zsRE, of the runs that are there; CSV has them in one."""
    datasets: dict[bool, dict[str, summaries.Summary]] = {}
    for name, summary in runs.items():
        datasets.setdefault("post_rewrite_acc" in summary.metrics, {})[name] = summary
    parts = [tables.make_rows(of_dataset) for of_dataset in datasets.values()]
    if table_format is tables.TableFormat.CSV:
        parts = [list(itertools.chain(*parts))]
    return "\n\n".join(tables.render(rows, table_format) for rows in parts)


def main() -> None:
    """Prints or writes the table."""
    runs = summaries.find_runs(_RESULTS.value, _DIR_NAME.value, _RUNS.value)
    found = [summaries.summarize(summaries.read_cases(run, _FIRST.value)) for run in runs]
    if _ORIGINAL.value:
        pairs = [one.original(str(run)) for run, one in zip(runs, found, strict=True)]
        text = json.dumps(pairs, indent=1)
    else:
        text = tables_of(dict(zip(labels(runs), found, strict=True)), _FORMAT.value)
    if _OUTPUT.value is None:
        print(text)
    else:
        write_whole(Path(_OUTPUT.value), f"{text}\n".encode())
        print(f"Written to {_OUTPUT.value}.")


if __name__ == "__main__":
    cli.run(main)
