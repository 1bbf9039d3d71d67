"""Compares the screening of a causal trace, which ranks states by one backward pass, with the full trace.

    python -m eval.screening_report
    python -m eval.screening_report --model_name=factworld-gptj --num_cases=20 --top=10

It traces --num_cases facts both ways under the same noise. For each kind of state, and for gradients of the answer's
probability and of its logarithm, it prints:

    rank      Spearman's correlation of estimate and indirect effect, over all states from the subject on
    best in   share of prompts whose state with the largest effect is among the verified ones
    found     share of the states with the largest effects that are among the verified ones
    reach     largest verified effect, as a share of the largest effect
    seconds   time to screen and verify, and time to restore all states, without compilation
"""

from __future__ import annotations

from eval import cli
from eval.flags import model, running, tracing
from rome_jax.terminal.screening_report import report
from rome_jax.trace.protocol import Series


def main() -> None:
    """Prints the report."""
    facts = tracing.read_facts(model.check(), None)
    loaded = model.load()
    protocol, _ = tracing.read_protocol(loaded, facts.subjects, [Series.MLP])
    noise = protocol.noise
    print(f"Model       {loaded!r}")
    print(
        f"Noise       {tracing.NOISE.value}: {noise.distribution.value} {noise.value:.4g}, "
        f"window {protocol.window}"
    )
    chosen = facts.facts[: running.CASES.value]
    print("\n".join(report(loaded, chosen, protocol, tracing.TOP.value)))


PROGRAM = cli.Program(
    main,
    takes="model_name revision dtype precision mesh fact_file num_cases top noise_level samples seed window".split(),
    defaults={"num_cases": 30},
)

if __name__ == "__main__":
    PROGRAM.run()
