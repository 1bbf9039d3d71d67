"""How well a screening ranks states by one backward pass, against restoring all of them.

    python -m eval.screening_report --model_name=factworld-gpt2 --num_cases=30 --top=20

traces 30 of factworld's facts (--num_cases) both ways under the same noise and prints for each kind, and for gradients
of the answer's probability and of its logarithm:

    rank      Spearman's correlation of estimate and indirect effect over all states from the subject on
    best in   how often the state with the largest effect is among the verified ones
    found     how many of the states with the largest effects are
    reach     the largest verified effect as a share of the largest effect
    seconds   of screening and verifying, and of restoring everything, compiled and from the same runs
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
    takes="model_name dtype precision fact_file num_cases top noise_level samples seed window".split(),
    defaults={"num_cases": 30, "fact_file": "factworld"},
)

if __name__ == "__main__":
    PROGRAM.run()
