"""Reports what a factworld model knows, where it stores it, and how well ROME edits it.

    python -m eval.factworld_report
    python -m eval.factworld_report --model_name=factworld-gptj --num_cases=50 --num_sweep_cases=0

It prints the recall of all facts on all templates; the indirect effect of the hidden states at the last subject token,
by layer; the success of ROME at each layer, on tuning requests; and the success of the shipped configuration on
--num_cases held-out requests.
"""

from __future__ import annotations

from eval import cli
from eval.flags import method, model, reports, running
from rome_jax.edit.config import MethodName
from rome_jax.edit.method import METHODS
from rome_jax.factworld_training.report import Sizes, report


def main() -> None:
    """Prints the report."""
    config = METHODS[MethodName.ROME].for_model(model.check_shipped())
    loaded = model.load()
    sizes = Sizes(
        held_out=running.CASES.value,
        tuning=reports.SWEEP_CASES.value,
        traced=reports.TRACED.value,
        chunk_size=method.chunk_size(loaded, [config]),
        seed=running.SEED.value,
    )
    report(loaded, sizes)


PROGRAM = cli.Program(
    main,
    takes="model_name dtype precision mesh num_cases num_sweep_cases num_traced chunk_size seed".split(),
    defaults={"num_cases": 300},
)

if __name__ == "__main__":
    PROGRAM.run()
