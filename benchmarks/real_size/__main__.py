"""Time and memory of loading, running, editing, tracing, scoring, and merging models of real size.

    python -m benchmarks.real_size --directory=real_size --report=docs/large-models.md
    python -m benchmarks.real_size --directory=real_size --model=gpt2-xl --dtype=bfloat16
    python -m benchmarks.real_size --directory=real_size --stages --report=docs/large-models.md

The first line measures all models of the page and writes its tables, with 22 GB of disk. The second one measures one
model, and the third one only writes the tables.

The benchmark writes a random model and a second moment to disk, and then runs each stage in a process of its own. The
peak is the anonymous resident memory of that process, which includes the weights. Pages of mapped files are not
counted, because the kernel can reclaim them. The files stay in the directory and are used again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from benchmarks import command_line
from benchmarks.gpu.sizes import NAMES
from benchmarks.real_size.memory import run_sampled
from benchmarks.real_size.report import GIB, WHAT, add_result, read_results, write_report
from benchmarks.real_size.run import Run

# The runs of docs/large-models.md.
PUBLISHED = (("gpt2-xl", "float32"), ("gpt2-xl", "bfloat16"), ("gpt-j-6B", "bfloat16"))
DTYPES = ("float32", "bfloat16", "float16")


def run_stage(run: Run, stage: str) -> dict:
    """Runs one stage in a process of its own.

    Returns:
      Its figures, with its peak memory in bytes.

    Raises:
      RuntimeError: If the process fails.
    """
    line = [sys.executable, "-m", "benchmarks.real_size.stages", stage]
    ran = run_sampled([*line, json.dumps(dataclasses.asdict(run))])
    figures = json.loads(ran.output.splitlines()[-1]) if ran.output.strip() else {}
    return {"title": run.title, "stage": stage, **figures, "peak": ran.peak}


def main() -> None:
    """Measures the runs that the command line selects, then writes the tables."""
    parser = command_line.parser(__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--directory", required=True, help="Folder of the models and the results.")
    parser.add_argument("--model", choices=NAMES, help="Model; by default those of the report.")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="Dtype of --model.")
    parser.add_argument(
        "--load_dtype", choices=DTYPES, default="", help="Dtype to load as; by default --dtype."
    )
    parser.add_argument(
        "--stages", nargs="*", choices=WHAT, default=list(WHAT), help="Stages; by default all."
    )
    parser.add_argument("--tiny", action="store_true", help="Use a tiny model of the same family.")
    parser.add_argument("--report", help="Markdown file whose tables are replaced at the end.")
    arguments = parser.parse_args()
    directory = Path(arguments.directory)
    chosen = PUBLISHED if arguments.model is None else [(arguments.model, arguments.dtype)]
    for model, dtype in chosen if arguments.stages else ():
        run = Run(model, dtype, arguments.directory, arguments.load_dtype, arguments.tiny)
        run_stage(run, "write")
        for stage in arguments.stages:
            row = run_stage(run, stage)
            add_result(directory, row)
            print(
                f"{run.title}: {stage}, {row['seconds']:.1f} s, {row['peak'] / GIB:.2f} GiB",
                flush=True,
            )
    if arguments.report:
        write_report(Path(arguments.report), read_results(directory))


if __name__ == "__main__":
    main()
