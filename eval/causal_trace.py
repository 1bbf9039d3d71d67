"""Finds the internal states that carry a model's facts, by causal tracing (paper, section 2).

    python -m eval.causal_trace
    python -m eval.causal_trace --model_name=gpt2-xl --fact_file=published --num_cases=1000 --severed
    python -m eval.causal_trace --prompt="{} plays the sport of" --subject="Gothulf Punby"
    python -m eval.causal_trace --screen=20 --output_dir=screened

Without flags it traces 100 facts of a factworld model and averages the results. With --prompt it traces one prompt and
shows the result in the terminal. Files are written to --output_dir, by default results/causal_trace/MODEL.

With --screen=K one backward pass ranks the states of each case, and only the best K are restored. This is faster, but
gives no averages, because the other states are not measured; eval.screening_report measures how good the ranking is.

To resume a stopped run, repeat the command. More cases, more kinds or --severed add to the existing results. Several
processes can share the facts of a run; see docs/clusters.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from eval import cli
from eval.flags import model, processes, request, running, tracing
from rome_jax.files.groups import ProcessGroup
from rome_jax.models.registry import known_config
from rome_jax.plots.style import check_matplotlib
from rome_jax.terminal.trace_report import trace_facts, trace_prompt
from rome_jax.trace import inputs as trace_inputs
from rome_jax.trace.facts import KnownFacts
from rome_jax.trace.noise import parse_noise
from rome_jax.trace.protocol import Series


def main() -> None:
    """Traces one prompt, or many facts and their averages."""
    name = model.check()
    trace_inputs.check_flags(cli.given() if tracing.SCREEN.value else cli.given() - {"screen"})
    check_matplotlib("the figures")
    parse_noise(tracing.NOISE.value)
    series = trace_inputs.read_series(tracing.KINDS.value, tracing.SEVERED.value)
    if known := known_config(name):
        tracing.read_window(series, known.num_layers)
    facts = tracing.read_facts(name, request.PROMPT.value)
    with processes.joined(running.check_output("results")) as group:
        _trace(facts, series, group)


def _trace(facts: KnownFacts | None, series: Sequence[Series], group: ProcessGroup) -> None:
    """Does the work of `main` in one of the processes that share it."""
    loaded = model.load()
    subjects = facts.subjects if facts else [request.SUBJECT.value]
    protocol, settings = tracing.read_protocol(loaded, subjects, series, request.CONTRAST.value)
    settings |= {"facts": facts.name, "facts_sha256": facts.sha256} if facts else {}
    output = running.check_output(trace_inputs.default_directory(loaded))
    print(f"Model       {loaded!r}")
    noise = protocol.noise
    print(f"Noise       {tracing.NOISE.value}: {noise.distribution.value} {noise.value:.4g}")
    form = running.FIGURE_FORMAT.value
    if facts and request.PROMPT.value is None:
        chosen = facts.facts[: running.CASES.value]
        drawn = tracing.CASE_FIGURES.value
        trace_facts(loaded, chosen, protocol, series, output, settings, form, drawn, group)
        return
    fact = trace_inputs.read_prompt(request.PROMPT.value, request.SUBJECT.value)
    answers = [request.TARGET.value] + [request.CONTRAST.value] * bool(request.CONTRAST.value)
    trace_prompt(loaded, fact, answers, protocol, series, output / "prompts", settings, form)


PROGRAM = cli.Program(
    main,
    takes=(
        "model_name revision dtype precision fact_file num_cases kinds severed tokens screen noise_level noise_corpus "
        "distributed coordinator_address num_processes process_id process_timeout "
        "noise_mode replace samples seed window measure chunk_columns output_dir figure_format case_figures prompt "
        "subject target contrast mesh"
    ).split(),
    defaults={"num_cases": 100},
    resumable=True,
)

if __name__ == "__main__":
    PROGRAM.run()
