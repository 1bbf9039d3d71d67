"""Screened cases: where the best verified states are, and how well a screening agrees with a full trace.

Averages of tables that are mostly unknown would mislead: what is restored is chosen for its effect.

Axes: T tokens, L layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy import stats

from rome_jax.trace.averages import TokenClass
from rome_jax.trace.protocol import Series
from rome_jax.trace.result import SkippedCase, TraceResult, traced


@dataclasses.dataclass(frozen=True)
class BestStates:
    """The state of each case with the largest verified effect, by where it stands.

    Attributes:
      count: of cases, by the token class of the best state; a token may be in two classes.
      layer: median layer of those; None without a case.
      median_layer: of all cases.
      effect: mean indirect effect of the best states.
      total: mean total effect.
      num_cases, num_skipped: prompts that were traced, and that were not.
    """

    count: dict[TokenClass, int]
    layer: dict[TokenClass, float | None]
    median_layer: float
    effect: float
    total: float
    num_cases: int
    num_skipped: int


def best_states(cases: Iterable[TraceResult | SkippedCase]) -> BestStates:
    """Where the best verified states of screened cases are; NaN is no score.

    Raises:
      ValueError: no traced case.

    Example:
      >>> best_states(map(load_trace, files)).count[TokenClass.LAST_SUBJECT]  # doctest: +SKIP
    """
    cases = list(cases)
    found = traced(cases)
    if not found:
        raise ValueError(f"none of {len(cases)} cases was traced: there is no best state.")
    layers, effects = [], []
    by_class: dict[TokenClass, list[int]] = {place: [] for place in TokenClass}
    for case in found:
        row, layer = np.unravel_index(np.nanargmax(case.scores), case.scores.shape)
        layers.append(int(layer))
        effects.append(float(case.indirect_effect[row, layer]))
        for place, there in by_class.items():
            if case.tokens[row] in place.columns(case.subject_range, len(case.input_tokens)):
                there.append(int(layer))
    return BestStates(
        {place: len(there) for place, there in by_class.items()},
        {place: float(np.median(there)) if there else None for place, there in by_class.items()},
        float(np.median(layers)),
        float(np.mean(effects)),
        float(np.mean([case.total_effect for case in found])),
        len(found),
        len(cases) - len(found),
    )


def best_table(best: Mapping[Series, BestStates], answers: str) -> str:
    """How often the best state is in each class of tokens, and its median layer.

    Args:
      best: of at least one series.
      answers: what is measured, such as "probability".
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
    return "–" if layer is None else f"{100 * count / num_cases:.0f} % layer {layer:4.1f}"


def best_json(best: Mapping[Series, BestStates]) -> dict[str, Any]:
    """The same as JSON has it; null where a class has no best state."""
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
    """A screening of one case against its full trace.

    Attributes:
      rank: Spearman's correlation; NaN if all estimates or all effects are the same.
      best: whether the state with the largest effect was verified.
      found: share of the so many states with the largest effects that were verified.
      reach: the largest verified effect as a share of the largest; NaN if no effect is positive.
    """

    rank: float
    best: bool
    found: float
    reach: float


def agreement(estimate: np.ndarray, verified: np.ndarray, effect: np.ndarray) -> Agreement:
    """Compares tables [T, L] of the states from the subject on.

    Args:
      estimate: first-order effects.
      verified: the effects of the states that were restored, NaN elsewhere; one at least.
      effect: all effects.

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
