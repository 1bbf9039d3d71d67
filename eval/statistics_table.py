"""Measures how the success of ROME depends on the number of tokens that the second moments C are computed from.

    python -m eval.statistics_table
    python -m eval.statistics_table --model_name=factworld-gptj --num_tokens=0,1000,all --num_cases=20

For each number in --num_tokens it prints one row of the table in docs/statistics.md: the success of ROME on --num_cases
requests of a factworld model. The number 0 replaces C by the identity matrix; all takes the whole corpus.
"""

from __future__ import annotations

from eval import cli
from eval.flags import model, running, statistics
from rome_jax.evaluation import statistics_table
from rome_jax.moments.inputs import read_limits


def main() -> None:
    """Prints the table."""
    limits = read_limits(statistics.TOKENS.value)
    model.check_shipped()
    cases, seed = running.CASES.value, running.SEED.value
    for line in statistics_table.lines(model.load(), limits, cases, seed):
        print(line, flush=True)


PROGRAM = cli.Program(
    main,
    takes="model_name dtype precision num_tokens num_cases seed".split(),
    defaults={"num_tokens": "0,1000,3000,10000,30000,100000,all", "num_cases": 60},
)

if __name__ == "__main__":
    PROGRAM.run()
