"""The figure of `eval.sweep`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rome_jax.evaluation.grid import Axis, Grid, label
from rome_jax.evaluation.summaries import Summary
from rome_jax.plots import style
from rome_jax.plots.style import Color

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The metrics of each series, for CounterFact and for zsRE, its label and its look.
_SERIES: dict[tuple[str, ...], tuple[str, dict[str, Any]]] = {
    ("post_score",): ("score S", {"color": Color.BLACK, "linestyle": "-", "marker": "o"}),
    ("post_rewrite_success", "post_rewrite_acc"): (
        "efficacy",
        {"color": Color.BLUE, "linestyle": "--", "marker": "s"},
    ),
    ("post_paraphrase_success", "post_paraphrase_acc"): (
        "paraphrase",
        {"color": Color.ORANGE, "linestyle": "-.", "marker": "^"},
    ),
    ("post_neighborhood_success", "post_neighborhood_acc"): (
        "neighborhood",
        {"color": Color.GREEN, "linestyle": ":", "marker": "v"},
    ),
}
_MAX_KEYS = 2
_HEIGHT = 2.9  # inches, of lines and bars
_WIDTH = 4.6  # inches, at least
_TURNED: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}


@style.drawing
def draw(grid: Grid, found: Mapping[str, Summary], title: str) -> Figure:
    """Draws a sweep: lines by the values of one numeric key, bars by other values, or a heatmap of S for two keys.

    Bands and whiskers are the 95 % intervals of the summaries; where a mean has none, none is drawn.

    Args:
      grid: The points, of one or two keys.
      found: Their summaries by name.
      title: The title of the figure.

    Returns:
      A figure of one panel.

    Raises:
      ValueError: If the grid has more than two keys, or if the points have no metric in common.
      MissingPackageError: If matplotlib is not installed.

    Example:
      >>> from rome_jax.evaluation import Estimate, Grid, Summary
      >>> from rome_jax.plots import sweeps
      >>> grid = Grid.parse(["layers=0,1"], config)
      >>> found = {point.name: Summary(4, {"post_score": Estimate(90.0, 5.0, 4)}) for point in grid.points}
      >>> sweeps.draw(grid, found, "ROME").axes[0].get_xlabel()
      'layers'
    """
    if len(grid.axes) > _MAX_KEYS:
        raise ValueError(f"{len(grid.axes)} keys are varied: a figure shows one or two.")
    points = [found[point.name].metrics for point in grid.points]
    series: dict[str, _Series] = {}
    for names, (name, look) in _SERIES.items():
        values = [next((of[one] for one in names if one in of), None) for of in points]
        present = [value for value in values if value is not None]
        if len(present) == len(points):
            means, low, high = np.array([(v.mean, v.low, v.high) for v in present]).T
            series[name] = look, means, np.stack([low, high])
    if not series:
        raise ValueError("the points have no metric in common: evaluate the same records at each.")
    if len(grid.axes) == _MAX_KEYS:
        name, (_, means, _) = next(iter(series.items()))
        figure = _heatmap(grid.axes, means, name)
    elif grid.axes[0].numbers is None:
        figure = _bars(grid.axes[0], series)
    else:
        figure = _lines(grid.axes[0], grid.axes[0].numbers, series)
    figure.axes[0].set_title(title, fontsize=style.TITLE_SIZE)
    return figure


_Series = tuple[
    dict[str, Any], np.ndarray, np.ndarray
]  # the look, [points] means, [2, points] intervals


def _lines(axis: Axis, numbers: Sequence[float], series: Mapping[str, _Series]) -> Figure:
    """Draws lines with bands by the values of a numeric key."""
    figure = style.new_figure(_WIDTH, _HEIGHT)
    axes = figure.subplots()
    order = np.argsort(numbers)
    values = np.array(numbers)[order]
    lines = []
    for name, (look, means, interval) in series.items():
        look = look | {"label": name, "markersize": 4.5, "fillstyle": "none"}
        lines += axes.plot(values, means[order], **look, clip_on=False, zorder=3)
        ends = np.where(np.isnan(interval), means, interval)
        style.band(axes, values, ends[:, order], look["color"])
    _value_ticks(axes, values)
    axes.grid()
    _label(axes, axis.key, series)
    style.legend_below(figure, [*lines, style.band_patch()], 3)
    return figure


def _value_ticks(axes: Axes, values: np.ndarray) -> None:
    """Puts a tick at every value if there is room, on a logarithmic axis if the values crowd at its lower end."""
    from matplotlib.ticker import MaxNLocator

    crowded = bool(values[0] > 0 and np.median(values) < (values[0] + values[-1]) / 4)
    if crowded:
        style.log_axis(axes, "x")
    places = np.log(values) if crowded else values
    gaps = np.diff(places) / max(np.ptp(places), 1e-12)
    if (gaps > 0.06).all():
        axes.set_xticks(values, [label(value) for value in values.tolist()])
        axes.minorticks_off()
    elif not crowded:
        axes.xaxis.set_major_locator(MaxNLocator(integer=values.dtype.kind == "i"))


def _bars(axis: Axis, series: Mapping[str, _Series]) -> Figure:
    """Draws groups of bars with whiskers, one group for each value."""
    names = [label(value) for value in axis.values]
    figure = style.new_figure(max(_WIDTH, 1 + 0.8 * len(names)), _HEIGHT)
    axes = figure.subplots()
    width = 0.84 / len(series)
    bars = []
    for index, (name, (look, means, interval)) in enumerate(series.items()):
        container = axes.bar(
            np.arange(len(names)) + (index - (len(series) - 1) / 2) * width,
            means,
            width,
            yerr=np.abs(interval - means),
            error_kw=style.whiskers(),
            color=Color.GRAY if look["color"] is Color.BLACK else look["color"],
            edgecolor="black",
            linewidth=0.4,
            label=name,
        )
        bars.append(container)
    room = 0.87 * figure.get_figwidth() / len(names)  # inches
    turned: dict[str, Any] = _TURNED if 0.08 * max(map(len, names)) > room else {}
    axes.set_xticks(range(len(names)), names, **turned)
    axes.grid(axis="y")
    _label(axes, axis.key, series, bars=True)
    axes.set_ylabel("% (whiskers: 95 % interval)")
    style.legend_below(figure, bars, len(bars))
    return figure


def _label(axes: Axes, key: str, series: Mapping[str, _Series], *, bars: bool = False) -> None:
    """Labels the axes, and limits the vertical one to the range of the means and intervals."""
    shown = np.concatenate([np.vstack([means, ends]).ravel() for _, means, ends in series.values()])
    style.percent_axis(axes, shown, bars=bars)
    axes.set_ylabel("%")
    axes.set_xlabel(key)


def _heatmap(axes_of_grid: Sequence[Axis], means: np.ndarray, name: str) -> Figure:
    """Draws the means of one metric, with the first key down and the second across."""
    down, across = ([label(value) for value in axis.values] for axis in axes_of_grid)
    values = means.reshape(len(down), len(across))
    size = 1.8 + 0.5 * len(across), 1.2 + 0.3 * len(down)
    figure = style.new_figure(max(3.4, size[0]), max(2.1, size[1]))
    axes = figure.subplots()
    axes.spines[:].set_visible(True)
    cells = axes.pcolormesh(
        values, cmap="Blues", vmin=0, vmax=100, edgecolors="face", linewidth=0.3
    )
    for (row, column), value in np.ndenumerate(values):
        axes.text(
            column + 0.5,
            row + 0.5,
            f"{value:.1f}",
            color="white" if value > 60 else "black",
            ha="center",
            va="center",
        )
    axes.invert_yaxis()
    turned: dict[str, Any] = _TURNED if max(map(len, across)) > 7 else {}
    axes.set_xticks(np.arange(len(across)) + 0.5, across, **turned)
    axes.set_yticks(np.arange(len(down)) + 0.5, down)
    axes.tick_params(length=0)
    axes.set_xlabel(axes_of_grid[1].key)
    axes.set_ylabel(axes_of_grid[0].key)
    figure.colorbar(cells, ax=axes).set_label(f"{name}, %")
    return figure
