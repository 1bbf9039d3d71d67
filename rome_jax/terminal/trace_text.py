"""Text of causal traces: the heatmap of a prompt, and averages as a table and as JSON."""

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
_WIDE = 32  # Up to this many layers are drawn two characters wide.


def text_heatmap(result: TraceResult) -> str:
    """Draws the scores of one prompt as text: tokens down, layers across, darker for a higher score.

    Shades run from the mean score of the corrupted runs to the highest score. Tokens of the subject have a `*`, and a
    state that a screening did not restore is a dot.

    Args:
      result: Trace of one prompt.

    Returns:
      The lines of the heatmap.

    Example:
      >>> from rome_jax.trace import TraceKind, TraceResult
      >>> scores = np.array([[0.9, 0.5, 0.1], [0.1, 0.1, 0.9]], np.float32)
      >>> tokens, about = ("Eifel", " is"), (TraceKind.HIDDEN, 1, (0, 1))
      >>> print(text_heatmap(TraceResult(scores, 0.1, 0.9, np.arange(2), tokens, (0, 1), " in", *about)))
        layer            0 1 2
      * Eifel            ██▒▒
         is                  ██
        blank: about 0.1 or less   full: about 0.9
    """
    known = ~np.isnan(result.scores)
    low, high = result.low_score, float(np.max(result.scores[known]))
    scale = max(high - low, float(np.finfo(np.float32).tiny))
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
    """Renders averages as a table: total effect, and the peak of each class's average indirect effect.

    Args:
      averages: Averages of at least one series.
      answers: What is measured, such as "probability".

    Returns:
      The lines of the table.

    Example:
      >>> from rome_jax.trace import AverageEffects, ClassAverage
      >>> effect = ClassAverage(mean=np.array([0.1, 0.5, 0.2]), band=np.full(3, 0.1), count=8)
      >>> averages = AverageEffects(dict.fromkeys(TokenClass, effect), 0.9, 0.1, 0.8, 0.05, 8, 0)
      >>> print(averages_table({Series.HIDDEN: averages}, "probability").splitlines()[1])
      probability: clean 0.900, corrupted 0.100, total effect 0.800 ± 0.050
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
    """Renders the largest mean of a class and its layer."""
    if not average.count:
        return "–"
    layer, value = average.peak
    return f"{value:.3f} layer {layer:2d}"


def averages_json(averages: Mapping[Series, AverageEffects]) -> dict[str, Any]:
    """Returns averages as JSON values; means and bands are null where a class has no token."""
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
    """Returns numbers as JSON has them, with null for NaN."""
    return [None if math.isnan(value) else value for value in map(float, values)]


def skipped_lines(cases: Sequence[TraceResult | SkippedCase], most: int = 3) -> list[str]:
    """Lists why cases were skipped.

    Args:
      cases: Cases of one series.
      most: Number of reasons to list; the rest are counted.

    Returns:
      One line per reason.

    Example:
      >>> skipped_lines([SkippedCase("the clean answer is 'rowing'", {"known_id": 3})])
      ["  skipped known_id 3: the clean answer is 'rowing'"]
    """
    skipped = [case for case in cases if isinstance(case, SkippedCase)]
    lines = [
        f"  skipped known_id {case.provenance.get('known_id')}: {case.reason}"
        for case in skipped[:most]
    ]
    if len(skipped) > most:
        lines.append(f"  and {len(skipped) - most} more; their files hold the reasons")
    return lines
