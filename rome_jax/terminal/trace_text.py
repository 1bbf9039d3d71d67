"""What `eval.causal_trace` says on a terminal: the heatmap of a prompt, and averages as a table and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rome_jax.terminal.edit_report import shorten
from rome_jax.trace.averages import AverageEffects, ClassAverage, TokenClass
from rome_jax.trace.protocol import Series
from rome_jax.trace.result import SkippedCase, TraceResult

_SHADES = " ░▒▓█"
_UNKNOWN = "·"
_TOKEN_WIDTH = 16
_WIDE = 32  # layers that are drawn two characters wide


def text_heatmap(result: TraceResult) -> str:
    """Tokens × layers in shades of the score, from the corrupted runs' to the highest; the subject has a `*`.

    A score of NaN, a state that was not restored, is a dot.

    Example:
      >>> print(text_heatmap(result))  # doctest: +SKIP
       layer            0 1 2
      * Eif             ██▓▓░░
      * fel             ████▒▒
        is                  ░░
    """
    known = ~np.isnan(result.scores)
    low, high = result.low_score, float(np.max(result.scores[known]))
    scale = max(high - low, np.finfo(np.float32).tiny)
    level = np.rint((np.where(known, result.scores, low) - low) / scale * (len(_SHADES) - 1))
    level = np.clip(level, 0, len(_SHADES) - 1).astype(int)
    shades = np.where(known, np.array(list(_SHADES))[level], _UNKNOWN)
    num_layers = level.shape[1]
    width = 2 if num_layers <= _WIDE else 1
    every = 1 if num_layers <= 10 else 5
    numbers = "".join(
        f"{layer:<{width * every}d}" for layer in range(0, num_layers, every)
    ).rstrip()
    lines = [f"  {'layer':{_TOKEN_WIDTH}s} {numbers}"]
    first, stop = result.subject_range
    for column, row in zip(result.tokens, shades, strict=True):
        token = shorten(result.input_tokens[column], _TOKEN_WIDTH)
        mark = "*" if first <= column < stop else " "
        cells = "".join(
            f"{shade:{width}s}" if shade == _UNKNOWN else shade * width for shade in row
        )
        lines.append(f"{mark} {token:{_TOKEN_WIDTH}s} {cells}".rstrip())
    lines.append(f"  blank: about {low:.3g} or less   full: about {high:.3g}")
    if not known.all():
        lines[-1] += f"   {_UNKNOWN}: not restored"
    return "\n".join(lines)


def averages_table(averages: Mapping[Series, AverageEffects], answers: str) -> str:
    """Totals, and the layer and the value of each class's largest average indirect effect.

    Args:
      averages: of at least one series.
      answers: what is measured, such as "probability".
    """
    total = next(iter(averages.values()))
    lines = [
        f"{total.num_cases} prompts traced, {total.num_skipped} skipped",
        f"{answers}: clean {total.clean:.3f}, corrupted {total.corrupted:.3f}, "
        f"total effect {total.total:.3f} ± {total.total_band:.3f}",
        "",
        "average indirect effect, its largest value and the layer of it",
        f"{'':24s}" + "".join(f"{series.value:>18s}" for series in averages),
    ]
    for place in TokenClass:
        cells = [_peak(of.indirect[place]) for of in averages.values()]
        lines.append(f"  {place.value:22s}" + "".join(f"{cell:>18s}" for cell in cells))
    return "\n".join(lines)


def _peak(average: ClassAverage) -> str:
    if not average.count:
        return "–"
    layer, value = average.peak
    return f"{value:.3f} layer {layer:2d}"


def averages_json(averages: Mapping[Series, AverageEffects]) -> dict[str, Any]:
    """The averages as JSON has them; null where a class has no tokens."""
    return {
        series.value: {
            "num_cases": of.num_cases,
            "num_skipped": of.num_skipped,
            "clean": of.clean,
            "corrupted": of.corrupted,
            "total_effect": of.total,
            "total_effect_band": of.total_band,
            "indirect_effect": {
                place.name.lower(): {
                    "count": average.count,
                    "mean": _numbers(average.mean),
                    "band": _numbers(average.band),
                }
                for place, average in of.indirect.items()
            },
        }
        for series, of in averages.items()
    }


def _numbers(values: np.ndarray) -> list[float | None]:
    return [None if math.isnan(value) else value for value in map(float, values)]


def skipped_lines(cases: Sequence[TraceResult | SkippedCase], most: int = 3) -> list[str]:
    """Why the first few were skipped."""
    skipped = [case for case in cases if isinstance(case, SkippedCase)]
    lines = [
        f"  skipped known_id {case.provenance.get('known_id')}: {case.reason}"
        for case in skipped[:most]
    ]
    if len(skipped) > most:
        lines.append(f"  and {len(skipped) - most} more, whose files say why")
    return lines
