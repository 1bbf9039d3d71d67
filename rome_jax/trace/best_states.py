"""Summaries of screened cases: where the best verified states are, and how a screening agrees with a full trace.

The tables of screened cases are mostly unknown, and what is known was chosen for its effect. Averages of such tables
would mislead, so only the best state of each case is reported.

Axes: T tokens, L layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy import stats

from rome_jax.files.checked import shown
from rome_jax.trace.averages import TokenClass, check_same_sort
from rome_jax.trace.protocol import Series
from rome_jax.trace.result import SkippedCase, TraceResult, traced


@dataclasses.dataclass(frozen=True)
class BestStates:
    """The position and the effect of each case's best verified state, summarized over cases.

    Attributes:
      count: Number of cases whose best state belongs to a token class; a token may be in two classes.
      layer: Median layer of those best states; None if the class has none.
      median_layer: Median layer of the best states of all cases.
      effect: Mean indirect effect of the best states.
      total: Mean total effect.
      num_cases: Number of traced prompts.
      num_skipped: Number of prompts that were not traced.
    """

    count: dict[TokenClass, int]
    layer: dict[TokenClass, float | None]
    median_layer: float
    effect: float
    total: float
    num_cases: int
    num_skipped: int


def best_states(cases: Iterable[TraceResult | SkippedCase]) -> BestStates:
    """Finds the state with the largest verified effect in each screened case.

    Args:
      cases: Screened cases, with NaN for states that were not restored.

    Returns:
      Where the best states are and how large their effects are.

    Raises:
      ValueError: If no case was traced, cases differ in kind, measure, window or number of layers, or a case has no
        known score.

    Example:
      >>> from rome_jax.trace import Distribution, Noise, Protocol, open_facts, trace_facts
      >>> protocol = Protocol(Noise(Distribution.GAUSSIAN, 0.5), samples=2, screen=12)
      >>> facts = open_facts("factworld").facts[2:4]
      >>> cases = trace_facts(model, facts, protocol, [Series.HIDDEN], {})
      >>> best_states(cases[Series.HIDDEN]).num_cases
      2
    """
    cases = list(cases)
    found = traced(cases)
    if not found:
        raise ValueError(
            f"none of {len(cases)} cases was traced: give at least one case that was not skipped."
        )
    check_same_sort(found)
    layers, effects = [], []
    by_class: dict[TokenClass, list[int]] = {place: [] for place in TokenClass}
    for case in found:
        if np.isnan(case.scores).all():
            raise ValueError(
                f"the case with the answer {shown(case.answer)} has no known score: trace it again."
            )
        row, layer = np.unravel_index(np.nanargmax(case.scores), case.scores.shape)
        layers.append(int(layer))
        effects.append(float(case.indirect_effect[row, layer]))
        for place, layers_there in by_class.items():
            if case.tokens[row] in place.columns(case.subject_range, len(case.input_tokens)):
                layers_there.append(int(layer))
    return BestStates(
        {place: len(layers_there) for place, layers_there in by_class.items()},
        {
            place: float(np.median(layers_there)) if layers_there else None
            for place, layers_there in by_class.items()
        },
        float(np.median(layers)),
        float(np.mean(effects)),
        float(np.mean([case.total_effect for case in found])),
        len(found),
        len(cases) - len(found),
    )


def best_table(best: Mapping[Series, BestStates], answers: str) -> str:
    """Renders best states as a table: how often they are in each class of tokens, and their median layer.

    Args:
      best: Summaries of at least one series.
      answers: What is measured, such as "probability".

    Returns:
      The lines of the table.
    """
    one = next(iter(best.values()))
    lines = [
        f"{one.num_cases} prompts traced, {one.num_skipped} skipped",
        f"{answers}: total effect {one.total:.3f}",
        "",
        "best of the verified states: how often in which class of tokens, and the median layer",
        f"{'':24s}" + "".join(f"{series.value:>18s}" for series in best),
    ]
    for place in TokenClass:
        cells = [_cell(of.count[place], of.num_cases, of.layer[place]) for of in best.values()]
        lines.append(f"  {place.value:22s}" + "".join(f"{cell:>18s}" for cell in cells))
    cells = [f"layer {of.median_layer:4.1f}" for of in best.values()]
    lines.append(f"  {'All':22s}" + "".join(f"{cell:>18s}" for cell in cells))
    cells = [f"{of.effect:.3f}" for of in best.values()]
    lines.append(f"  {'mean indirect effect':22s}" + "".join(f"{cell:>18s}" for cell in cells))
    return "\n".join(lines)


def _cell(count: int, num_cases: int, layer: float | None) -> str:
    """Renders the share of cases in a class and their median layer."""
    return "–" if layer is None else f"{100 * count / num_cases:.0f} % layer {layer:4.1f}"


def best_json(best: Mapping[Series, BestStates]) -> dict[str, Any]:
    """Returns best states as JSON values; the median layer is null where a class has no best state."""
    return {
        series.value: {
            "num_cases": of.num_cases,
            "num_skipped": of.num_skipped,
            "total_effect": of.total,
            "best_effect": of.effect,
            "median_layer": of.median_layer,
            "best_states": {
                place.name.lower(): {"count": of.count[place], "median_layer": of.layer[place]}
                for place in TokenClass
            },
        }
        for series, of in best.items()
    }


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How well a screening of one case agrees with its full trace.

    Attributes:
      rank: Spearman's rank correlation of estimates and effects; NaN if all estimates or all effects are equal.
      best: Whether the state with the largest effect was verified.
      found: Share of the K states with the largest effects that were verified, where K states were verified.
      reach: Largest verified effect as a share of the largest effect; NaN if no effect is positive.
    """

    rank: float
    best: bool
    found: float
    reach: float


def agreement(estimate: np.ndarray, verified: np.ndarray, effect: np.ndarray) -> Agreement:
    """Compares a screening with a full trace.

    Args:
      estimate: [T, L] first-order effects of the states from the subject on.
      verified: [T, L] effects of the states that the screening restored, NaN elsewhere; at least one is known.
      effect: [T, L] effects of all states.

    Example:
      >>> effect = np.array([[0.5, 0.1], [0.3, 0.2]])
      >>> agreement(effect**2, np.where(effect > 0.25, effect, np.nan), effect)
      Agreement(rank=1.0, best=True, found=1.0, reach=1.0)
    """
    rank = np.nan
    if np.ptp(estimate) and np.ptp(effect):
        rank = float(stats.spearmanr(estimate, effect, axis=None).statistic)
    chosen = ~np.isnan(verified)
    largest = np.argsort(-effect, axis=None, kind="stable")[: chosen.sum()]
    reach = float(np.nanmax(verified) / effect.max()) if effect.max() > 0 else np.nan
    hits = chosen.ravel()[largest]
    return Agreement(rank, bool(hits[0]), float(hits.mean()), reach)
