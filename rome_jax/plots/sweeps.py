"""The figure of `eval.sweep`. Needs the extra `plot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from rome_jax.evaluation.grid import Axis, Grid, label
from rome_jax.evaluation.summaries import Summary

# Okabe and Ito's colours with line styles and markers: they differ for every eye and in grey.
_SERIES = {
    ("post_score",): ("score S", {"color": "black", "linestyle": "-", "marker": "o"}),
    ("post_rewrite_success", "post_rewrite_acc"): (
        "efficacy",
        {"color": "#0072B2", "linestyle": "--", "marker": "s"},
    ),
    ("post_paraphrase_success", "post_paraphrase_acc"): (
        "paraphrase",
        {"color": "#E69F00", "linestyle": "-.", "marker": "^"},
    ),
    ("post_neighborhood_success", "post_neighborhood_acc"): (
        "neighborhood",
        {"color": "#009E73", "linestyle": ":", "marker": "v"},
    ),
}
_PERCENT = (-3, 103)
_MAX_KEYS = 2


def draw(grid: Grid, found: Mapping[str, Summary], title: str) -> Figure:
    """Draws a sweep: lines over the values of one key, bars where they are no numbers, a heatmap of S for two keys.

    Bands and error bars are 95 % intervals.

    Args:
      grid: the points, of one or two keys.
      found: their summaries by name.
      title: above.

    Raises:
      ValueError: more keys, or nothing that all points have measured.

    Example:
      >>> save_figure(draw(grid, found, "ROME"), "sweep.pdf")  # doctest: +SKIP
    """
    if len(grid.axes) > _MAX_KEYS:
        raise ValueError(f"{len(grid.axes)} keys are varied: a figure shows one or two.")
    points = [found[point.name].metrics for point in grid.points]
    series = {}  # label -> style; mean and interval of each point
    for names, (name, style) in _SERIES.items():
        values = [next((of[one] for one in names if one in of), None) for of in points]
        if None not in values:
            means, halves = np.array([(value.mean, value.half_width) for value in values]).T
            interval = np.clip([means - halves, means + halves], 0, 100)
            series[name] = style, means, *interval
    if not series:
        raise ValueError("the points have no metric in common: evaluate the same records at each.")
    if len(grid.axes) == _MAX_KEYS:
        name, (_, means, *_) = next(iter(series.items()))
        figure = _heatmap(grid.axes, means, name)
    elif grid.axes[0].numbers is None:
        figure = _bars(grid.axes[0], series)
    else:
        figure = _lines(grid.axes[0], series)
    figure.axes[0].set_title(title, fontsize=10, parse_math=False)
    return figure


def _lines(axis: Axis, series) -> Figure:
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.subplots()
    order = np.argsort(axis.numbers)
    values = np.array(axis.numbers)[order]
    for name, (style, *curves) in series.items():
        means, low, high = (curve[order] for curve in curves)
        style = style | {"label": name, "markersize": 5, "fillstyle": "none", "linewidth": 1.4}
        axes.plot(values, means, **style, clip_on=False, zorder=3)
        axes.fill_between(values, low, high, color=style["color"], alpha=0.13, linewidth=0)
    _value_ticks(axes, values)
    _percent(figure, axes, axis.key, len(series))
    return figure


def _value_ticks(axes: Axes, values: np.ndarray) -> None:
    """A logarithmic axis for values that crowd at its low end; a tick at every value where they have room."""
    crowded = values[0] > 0 and np.median(values) < (values[0] + values[-1]) / 4
    if crowded:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    places = np.log(values) if crowded else values
    gaps = np.diff(places) / max(np.ptp(places), 1e-12)
    if (gaps > 0.06).all():
        axes.set_xticks(values, [label(value) for value in values.tolist()])
        axes.minorticks_off()
    elif not crowded:
        axes.xaxis.set_major_locator(MaxNLocator(integer=values.dtype.kind == "i"))


def _bars(axis: Axis, series) -> Figure:
    names = [label(value) for value in axis.values]
    figure = Figure(figsize=(max(5.6, 1 + 0.9 * len(names)), 3.8), layout="constrained")
    axes = figure.subplots()
    width = 0.84 / len(series)
    for index, (name, (style, means, low, high)) in enumerate(series.items()):
        axes.bar(
            np.arange(len(names)) + (index - (len(series) - 1) / 2) * width,
            means,
            width,
            yerr=np.stack([means - low, high - means]),
            error_kw={"ecolor": "0.45", "elinewidth": 0.9, "capsize": 2},
            color=style["color"],
            edgecolor="black",
            linewidth=0.4,
            label=name,
        )
    room = 0.87 * figure.get_figwidth() / len(names)  # inches; a character takes 0.1
    long = 0.1 * max(map(len, names)) > room
    turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if long else {}
    axes.set_xticks(range(len(names)), names, **turned)
    axes.set_axisbelow(True)
    _percent(figure, axes, axis.key, len(series))
    return figure


def _percent(figure: Figure, axes: Axes, key: str, columns: int) -> None:
    axes.set_ylim(*_PERCENT)
    axes.set_ylabel("%")
    axes.set_xlabel(key)
    axes.grid(alpha=0.3, axis="y" if axes.containers else "both")
    figure.legend(loc="outside lower center", ncols=columns, frameon=False)


def _heatmap(axes_of_grid: Sequence[Axis], means: np.ndarray, name: str) -> Figure:
    down, across = ([label(value) for value in axis.values] for axis in axes_of_grid)
    values = means.reshape(len(down), len(across))
    size = 2.2 + 0.62 * len(across), 1.5 + 0.42 * len(down)
    figure = Figure(figsize=(max(4.4, size[0]), max(2.6, size[1])), layout="constrained")
    axes = figure.subplots()
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
            fontsize=9,
        )
    axes.invert_yaxis()
    turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(
        np.arange(len(across)) + 0.5, across, **(turned if max(map(len, across)) > 7 else {})
    )
    axes.set_yticks(np.arange(len(down)) + 0.5, down)
    axes.tick_params(length=0)
    axes.set_xlabel(axes_of_grid[1].key)
    axes.set_ylabel(axes_of_grid[0].key)
    figure.colorbar(cells, ax=axes).set_label(name)
    return figure
