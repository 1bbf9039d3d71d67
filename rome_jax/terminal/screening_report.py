"""How well a screening ranks states, compared with full traces of the same prompts.

`eval.screening_report` prints this report; its docstring explains the columns.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np

from rome_jax.files.progress import tqdm
from rome_jax.models.registry import LanguageModel
from rome_jax.trace.best_states import Agreement, agreement
from rome_jax.trace.corruption import Measure, Runs
from rome_jax.trace.facts import KnownFact
from rome_jax.trace.protocol import Protocol, begin_case
from rome_jax.trace.restore import TraceKind
from rome_jax.trace.screen import screen, verify
from rome_jax.trace.sweep import trace

_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A screening of one case and kind, compared with its full trace.

    Attributes:
      agreement: How well they agree, by the measure whose gradient ranks.
      screening_seconds: Seconds to screen and to restore the best states, by the same measure.
      full_seconds: Seconds to restore all states.
    """

    agreement: dict[Measure, Agreement]
    screening_seconds: dict[Measure, float]
    full_seconds: float


def compare(runs: Sequence[Runs], *, kind: TraceKind, window: int, top: int) -> Comparison:
    """Traces one case in full and by screening, with the gradient of each measure.

    Args:
      runs: Clean and corrupted runs of the case in each measure. States are restored in the first.
      kind: What is restored.
      window: Number of layers of MLP or attention outputs.
      top: Number of states that a screening restores.

    Returns:
      Agreement and times.

    Example:
      >>> from rome_jax.trace import TracePrompt, start
      >>> text = "Gothulf Punby plays the sport of"
      >>> prompt = TracePrompt.of(model.tokenizer, text, "Gothulf Punby")
      >>> runs = start(model, prompt, 0.5 * jax.random.normal(key, (2, 3, 128)))
      >>> found = compare([runs], kind=TraceKind.HIDDEN, window=1, top=12)
      >>> found.agreement[Measure.PROBABILITY].best  # The best state is among the twelve.
      True
    """
    restored = runs[0]
    scores, full_seconds = timed(lambda: trace(restored, kind=kind, window=window))
    first, low = restored.prompt.span[0], restored.corrupted_score
    agreements, seconds = {}, {}
    for ranked in runs:

        def screening(ranked: Runs = ranked) -> tuple[np.ndarray, np.ndarray]:
            estimate = screen(ranked, kind=kind, window=window)
            return estimate, verify(restored, estimate, top=top, kind=kind, window=window)

        (estimate, verified), seconds[ranked.measure] = timed(screening)
        agreements[ranked.measure] = agreement(
            estimate[first:], verified[first:] - low, scores[first:] - low
        )
    return Comparison(agreements, seconds, full_seconds)


def timed(function: Callable[[], _Result]) -> tuple[_Result, float]:
    """Calls a function twice and times the second call, when its programs are compiled.

    Args:
      function: Function to time; arrays that it returns are waited for.

    Returns:
      Its result, and the seconds.

    Example:
      >>> result, seconds = timed(lambda: jnp.ones(3).sum())
      >>> float(result), seconds > 0
      (3.0, True)
    """
    jax.block_until_ready(function())
    begun = time.perf_counter()
    result = jax.block_until_ready(function())
    return result, time.perf_counter() - begun


def report(
    model: LanguageModel, facts: Sequence[KnownFact], protocol: Protocol, top: int
) -> list[str]:
    """Compares screenings with full traces of the facts that the model knows.

    Args:
      model: Model to trace.
      facts: Facts to trace; those that the model does not know are left out.
      protocol: Settings of the traces.
      top: Number of states that a screening restores.

    Returns:
      The lines of the report.

    Raises:
      ValueError: If the model knows none of the facts.
    """
    cases: dict[TraceKind, list[Comparison]] = {kind: [] for kind in TraceKind}
    num_states, run_seconds = [], []
    for fact in tqdm(facts, unit="prompt", desc="tracing"):
        runs = begin_case(model, fact, protocol)
        if isinstance(runs, str):
            continue
        prompt = runs.prompt

        def begin(prompt=prompt):
            return protocol.begin(model, prompt).states

        run_seconds.append(timed(begin)[1])
        others = [measure for measure in Measure if measure is not runs.measure]
        both = [runs] + [
            dataclasses.replace(protocol, measure=measure).begin(model, prompt, fact.known_id)
            for measure in others
        ]
        num_states.append((len(prompt.ids) - prompt.span[0]) * model.config.num_layers)
        for kind, found in cases.items():
            found.append(compare(both, kind=kind, window=protocol.window, top=top))
    if not num_states:
        raise ValueError(f"{model.name} knows none of the {len(facts)} facts: trace more of them.")
    lines = [
        f"{len(num_states)} of {len(facts)} prompts traced, {min(num_states)} to {max(num_states)} states from the "
        "subject on",
        f"best {top} verified; clean and corrupted runs take {np.median(run_seconds):.3f} s per case in addition",
        f"{'':8s}{'gradient of':17s}{'rank: mean':>11s}{'least':>8s}{'best in':>9s}{'found':>8s}"
        f"{'reach: mean':>13s}{'least':>8s}{'seconds':>9s}{'in full':>9s}",
    ]
    for kind, found in cases.items():
        full = np.median([case.full_seconds for case in found])
        for measure in Measure:
            agreements = [case.agreement[measure] for case in found]
            seconds = np.median([case.screening_seconds[measure] for case in found])
            rank = np.array([one.rank for one in agreements])
            reach = np.array([one.reach for one in agreements])
            lines.append(
                f"{kind.value:8s}{measure.value.replace('_', '-'):17s}{np.nanmean(rank):11.3f}"
                f"{np.nanmin(rank):8.3f}{np.mean([one.best for one in agreements]):9.2f}"
                f"{np.mean([one.found for one in agreements]):8.2f}{np.nanmean(reach):13.3f}"
                f"{np.nanmin(reach):8.3f}{seconds:9.3f}{full:9.3f}"
            )
    return lines
