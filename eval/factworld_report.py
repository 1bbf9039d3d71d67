"""What the embedded models know, where they keep it, and how well ROME edits them.

    python -m eval.factworld_report --model_name=factworld-gpt2

prints the recall of all facts on all templates, the indirect effect of hidden states at the subject's last token by
layer, ROME's success on tuning requests for every layer, and on 300 held-out requests (--num_cases) with the shipped
configuration.
"""

from __future__ import annotations

from eval import cli
from eval.flags import model, reports, running
from rome_jax.factworld_training.report import Sizes, report


def main() -> None:
    """Prints the report."""
    model.check_shipped()
    sizes = Sizes(
        held_out=running.CASES.value,
        tuning=reports.SWEEP_CASES.value,
        traced=reports.TRACED.value,
        chunk_size=running.CHUNK.value,
        seed=running.SEED.value,
    )
    report(model.load(), sizes)


PROGRAM = cli.Program(
    main,
    takes="model_name dtype precision num_cases num_sweep_cases num_traced chunk_size seed".split(),
    defaults={"num_cases": 300},
)

if __name__ == "__main__":
    PROGRAM.run()
