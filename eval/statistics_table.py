"""Measures how the success of ROME depends on the number of tokens that the second moments C are computed from.

    python -m eval.statistics_table
    python -m eval.statistics_table --model_name=factworld-gptj --num_tokens=0,1000,all --num_cases=20
    python -m eval.statistics_table --model_name=smollm2-135m --num_tokens=0,10000,all --num_cases=20

For each number in --num_tokens it prints one row of the table in docs/statistics.md: the success of ROME on --num_cases
requests, 60 by default. A factworld model uses factworld's requests and corpus; smollm2-135m uses the 20 records sample
and texts that it samples itself. The number 0 replaces C by the identity matrix; all takes the whole corpus, or 192
sampled texts.
"""

from __future__ import annotations

from eval import cli
from eval.flags import data, model, running, statistics
from rome_jax.evaluation import statistics_table
from rome_jax.moments.inputs import read_limits


def main() -> None:
    """Prints the table."""
    limits = read_limits(statistics.TOKENS.value)
    model.check_named()
    cases = len(data.read_requests().records)
    seed = running.SEED.value
    for line in statistics_table.lines(model.load(), limits, cases, seed):
        print(line, flush=True)


PROGRAM = cli.Program(
    main,
    takes="model_name dtype precision mesh num_tokens num_cases seed".split(),
    defaults={"num_tokens": "0,1000,3000,10000,30000,100000,all", "num_cases": 60},
)

if __name__ == "__main__":
    PROGRAM.run()
