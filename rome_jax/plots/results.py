"""The figure of methods side by side, from the rows of a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rome_jax.evaluation.columns import Row
from rome_jax.plots import style
from rome_jax.plots.style import Color

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_COLUMNS = 5  # panels side by side
_PANEL = 0.95  # inches: its width
_LINE = 0.145  # inches: the height of a method in a panel
# How often and by how much: the first is drawn above the second.
_PAIRS = {
    "rewrite_success": "rewrite_diff",
    "paraphrase_success": "paraphrase_diff",
    "neighborhood_success": "neighborhood_diff",
}
# Their zero means nothing, so they are drawn as points on an axis of the range that they use.
_POINTS = ("ngram_entropy", "reference_score", "essence_score", "time")
_SCORE = "score"
_UNEDITED = "unedited"


@style.drawing
def method_bars(rows: Sequence[Row], metrics: Mapping[str, str], *, title: str = "") -> Figure:
    """Draws a panel for each metric, and in it a horizontal bar for each method with its 95 % interval.

    Methods are ordered by their score S, the best one on top; the same order holds in every panel. The unedited model
    is no method: its value is printed in the first line of each panel, and drawn as a dotted line where it falls in
    the range of the methods. Fluency, consistency and other metrics without a meaningful zero are drawn as points.
    Scores are drawn above their magnitudes, such as ES above EM, and other metrics below both.

    Args:
      rows: The rows of `tables.make_rows`, or other ones. A row without a metric has no bar in its panel. Without
        scores, or with several unedited models, rows keep their order.
      metrics: The name of each metric in `Row.metrics` by the label of its panel. Metrics that no row has are left out.
      title: The title of the figure.

    Returns:
      A figure at most as wide as a page. A value without an interval has no whiskers.

    Raises:
      ValueError: If no row has any of the metrics.
      MissingPackageError: If matplotlib is not installed.

    Example:
      >>> from rome_jax.evaluation import Estimate, Row
      >>> from rome_jax.plots.results import method_bars
      >>> rows = [Row(name, 4, {"score": Estimate(mean, 10.0, 4)}) for name, mean in [("FT", 60.0), ("ROME", 90.0)]]
      >>> axes = method_bars(rows, {"S": "score"}).axes[0]
      >>> [label.get_text() for label in axes.get_yticklabels()]
      ['ROME', 'FT']
    """
    shown = {
        metric: label
        for label, metric in metrics.items()
        if any(metric in row.metrics for row in rows)
    }
    if not shown:
        raise ValueError(
            f"metrics={', '.join(metrics.values()) or 'none'}: no row has one; name metrics of these rows."
        )
    rows, unedited = _ordered(rows)
    places = _places(list(shown))
    height, width = (1 + max(place[axis] for place in places.values()) for axis in (0, 1))
    names = max(len(row.name) for row in rows)
    panel = 0.4 + _LINE * (len(rows) + (unedited is not None))
    figure = style.new_figure(
        max(3.4, 0.2 + 0.07 * names + _PANEL * width), 0.4 + height * panel + 0.2 * bool(title)
    )
    grid = figure.subplots(height, width, sharey=True, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for metric, place in places.items():
        axes = grid[place]
        axes.set_axis_on()
        _draw_metric(axes, rows, unedited, metric)
        axes.set_title(shown[metric], fontweight="bold")
        axes.tick_params(axis="y", length=0)
    first = [] if unedited is None else [unedited.name]
    grid[0, 0].set_yticks(range(-len(first), len(rows)), [*first, *(row.name for row in rows)])
    grid[0, 0].set_ylim(len(rows) - 0.45, -len(first) - 0.55)  # the best one on top
    figure.supxlabel(_caption(places, unedited), fontsize=style.SMALL_SIZE)
    if title:
        figure.suptitle(title)
    return figure


def _ordered(rows: Sequence[Row]) -> tuple[list[Row], Row | None]:
    """Returns the methods, the best one first, and the unedited model if there is exactly one."""
    unedited = [row for row in rows if row.name.startswith(_UNEDITED)]
    if len(unedited) > 1:
        return list(rows), None
    methods = [row for row in rows if row not in unedited]
    if not methods:
        return list(rows), None
    if all(_SCORE in row.metrics for row in methods):
        methods.sort(key=lambda row: -row.metrics[_SCORE].mean)
    return methods, unedited[0] if unedited else None


def _places(metrics: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Returns the (row, column) of each metric's panel: pairs above each other, and the others in rows below them."""
    pairs = [(one, other) for one, other in _PAIRS.items() if {one, other} <= set(metrics)]
    columns = len(pairs) if len(pairs) > 1 else _MAX_COLUMNS
    above = zip(*pairs, strict=True) if len(pairs) > 1 else ()
    lines = [list(line) for line in above]
    others = [metric for metric in metrics if not any(metric in line for line in lines)]
    lines += [others[start : start + columns] for start in range(0, len(others), columns)]
    return {
        metric: (down, across)
        for down, line in enumerate(lines)
        for across, metric in enumerate(line)
    }


def _draw_metric(axes: Axes, rows: Sequence[Row], unedited: Row | None, metric: str) -> None:
    """Draws the values of one metric, and the unedited model's."""
    from matplotlib.ticker import MaxNLocator

    found = [
        (place, row.metrics[metric]) for place, row in enumerate(rows) if metric in row.metrics
    ]
    heights = [place for place, _ in found]
    means = np.array([value.mean for _, value in found])
    ends = np.array([(value.low, value.high) for _, value in found]).reshape(-1, 2).T
    errors = np.abs(ends - means)  # NaN draws no whiskers
    points = metric in _POINTS
    if points:
        axes.errorbar(
            means,
            heights,
            xerr=errors,
            linestyle="none",
            marker="o",
            color=Color.BLUE,
            **style.whiskers(),
        )
    else:
        axes.barh(
            heights,
            means,
            0.66,
            xerr=errors,
            color=Color.SKY,
            error_kw=style.whiskers(),
            linewidth=0,
        )
        axes.axvline(0, color="black", linewidth=0.6)
    before = math.nan
    if unedited is not None and metric in unedited.metrics:
        before = unedited.metrics[metric].mean
        axes.annotate(
            f"{before:.1f}".replace("-", "−"),
            (0.5, -1),
            xycoords=("axes fraction", "data"),
            ha="center",
            va="center",
            fontsize=style.SMALL_SIZE,
            bbox={"facecolor": "white", "linewidth": 0, "pad": 0.6},
        )
    low, high = _range([*means, *ends.flat, *[before] * points, *[0] * (not points)])
    axes.set_xlim(low, high)
    if low <= before <= high and (points or before):
        axes.axvline(before, color="black", linewidth=0.8, linestyle=":")
    axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    axes.spines["left"].set_visible(points)
    axes.grid(axis="x")


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Returns the range of finite values with a margin, which bars that begin at zero do not have there."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    margin = 0.06 * (high - low) or 0.5
    return low - margin * (low != 0), high + margin * (high != 0)


def _caption(metrics: Iterable[str], unedited: Row | None) -> str:
    """Returns what marks and whiskers are."""
    as_points = {metric in _POINTS for metric in metrics}
    marks = " and ".join([*["bars"] * (False in as_points), *["points"] * (True in as_points)])
    lines = [f"{marks}: mean × 100, whiskers: 95 % interval"]
    if unedited is not None:
        lines.append(f"number and dotted line: {unedited.name} model")
    return "\n".join(lines)
