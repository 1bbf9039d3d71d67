"""How well a screening ranks states by one backward pass: both ways of tracing, side by side.

What `eval.screening_report` prints; its docstring explains the columns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np

from rome_jax.files.progress import tqdm
from rome_jax.models.registry import LanguageModel
from rome_jax.trace.best_states import Agreement, agreement
from rome_jax.trace.facts import KnownFact
from rome_jax.trace.prompt import TracePrompt
from rome_jax.trace.protocol import Protocol, begin_case
from rome_jax.trace.restore import Measure, Runs, TraceKind
from rome_jax.trace.screen import screen, verify
from rome_jax.trace.sweep import trace

_Result = TypeVar("_Result")


def compare(
    model: LanguageModel,
    prompt: TracePrompt,
    runs: Runs,
    *,
    kind: TraceKind,
    window: int,
    top: int,
) -> tuple[dict[Measure, tuple[Agreement, float]], float]:
    """One case and kind: agreement and seconds by the gradient's measure, and the seconds of the full trace."""
    how = {"kind": kind, "window": window}
    scores, seconds = timed(lambda: trace(model, prompt, runs, **how))
    first, low = prompt.span[0], float(runs.corrupted_score)
    found = {}
    for measure in Measure:

        def screening(measure=measure):
            estimate = screen(model, prompt, runs, measure=measure, **how)
            return estimate, verify(model, prompt, runs, estimate, top=top, **how)

        (estimate, verified), taken = timed(screening)
        tables = estimate[first:], verified[first:] - low, scores[first:] - low
        found[measure] = agreement(*tables), taken
    return found, seconds


def timed(function: Callable[[], _Result]) -> tuple[_Result, float]:
    """A function's result and the seconds it takes the second time, its programs compiled."""
    jax.block_until_ready(function())
    begun = time.perf_counter()
    result = jax.block_until_ready(function())
    return result, time.perf_counter() - begun


def report(
    model: LanguageModel, facts: Sequence[KnownFact], protocol: Protocol, top: int
) -> list[str]:
    """Traces the facts that the model knows both ways.

    Returns:
      the lines of the report.

    Raises:
      ValueError: it knows none of them.
    """
    cases = {kind: [] for kind in TraceKind}
    states, setting_out = [], []
    for fact in tqdm(facts, unit="prompt", desc="tracing"):
        begun = begin_case(model, fact, protocol)
        if isinstance(begun, str):
            continue
        prompt, runs = begun
        setting_out.append(timed(lambda at=prompt: protocol.begin(model, at))[1])
        states.append((len(prompt.ids) - prompt.span[0]) * model.config.num_layers)
        for kind, found in cases.items():
            found.append(compare(model, prompt, runs, kind=kind, window=protocol.window, top=top))
    if not states:
        raise ValueError(f"{model.name} knows none of the {len(facts)} facts: trace more.")
    lines = [
        f"{len(states)} of {len(facts)} prompts traced, {min(states)} to {max(states)} states from the subject on",
        f"best {top} verified; clean and corrupted runs take {np.median(setting_out):.3f} s a case besides",
        f"{'':8s}{'gradient of':17s}{'rank: mean':>11s}{'least':>8s}{'best in':>9s}{'found':>8s}"
        f"{'reach: mean':>13s}{'least':>8s}{'seconds':>9s}{'in full':>9s}",
    ]
    for kind, found in cases.items():
        full = np.median([seconds for _, seconds in found])
        for measure in Measure:
            of = [by_measure[measure][0] for by_measure, _ in found]
            taken = np.median([by_measure[measure][1] for by_measure, _ in found])
            rank, reach = (
                np.array([getattr(one, name) for one in of]) for name in ("rank", "reach")
            )
            lines.append(
                f"{kind.value:8s}{measure.value.replace('_', '-'):17s}{np.nanmean(rank):11.3f}"
                f"{np.nanmin(rank):8.3f}{np.mean([one.best for one in of]):9.2f}"
                f"{np.mean([one.found for one in of]):8.2f}{np.nanmean(reach):13.3f}"
                f"{np.nanmin(reach):8.3f}{taken:9.3f}{full:9.3f}"
            )
    return lines
