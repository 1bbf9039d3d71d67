"""How good edits are with second moments from few and from many tokens, on an embedded model.

    python -m eval.statistics_table --model_name=factworld-gpt2

prints the table of docs/statistics.md: ROME's success on 60 requests of factworld for each number of tokens behind C,
from none (the identity instead of C) to all of the corpus.
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
