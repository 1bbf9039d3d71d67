"""The paper's figure of methods side by side, from the rows of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rome_jax.evaluation.tables import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 5  # panels side by side, at most
_BAR = "#56B4E9"  # the sky blue of Okabe and Ito


def method_bars(rows: Sequence[Row], metrics: Mapping[str, str], *, title: str = "") -> Figure:
    """A panel a metric, and in each a horizontal bar a row, with 95 % intervals.

    Bars are told apart by their place, so there may be any number of rows. A dotted line continues from the first row's
    bar: in a table of `tables.make_rows` that is the unedited model.

    Args:
      rows: of `tables.make_rows`, or others. A row that lacks a metric has no bar there.
      metrics: the label of each panel, and the metric's name in `Row.metrics`. What no row has is left out.
      title: of the figure.

    Returns:
      A figure; a single case has no interval.

    Raises:
      ValueError: no row has any of the metrics.

    Example:
      >>> figure = method_bars(rows, {"ES": "rewrite_success", "NS": "neighborhood_success"})  # doctest: +SKIP
    """
    from matplotlib.figure import Figure  # slow to import, needed here alone

    shown = {
        label: metric
        for label, metric in metrics.items()
        if any(metric in row.metrics for row in rows)
    }
    if not shown:
        raise ValueError(
            f"metrics={', '.join(metrics.values()) or 'none'}: no row has one; name metrics of these rows."
        )
    height = math.ceil(len(shown) / _COLUMNS)
    width = math.ceil(len(shown) / height)
    figure = Figure(
        figsize=(1.2 + 1.5 * width, 0.5 + height * (0.5 + 0.24 * len(rows))), layout="constrained"
    )
    panels = figure.subplots(height, width, sharey=True, squeeze=False)
    for axes, (label, metric) in zip(panels.flat, shown.items(), strict=False):
        found = [
            (place, row.metrics[metric]) for place, row in enumerate(rows) if metric in row.metrics
        ]
        axes.barh(
            [place for place, _ in found],
            [value.mean for _, value in found],
            0.7,
            xerr=[value.half_width if value.count > 1 else math.nan for _, value in found],
            capsize=2,
            color=_BAR,
            edgecolor="black",
            linewidth=0.6,
        )
        if metric in rows[0].metrics:
            axes.axvline(rows[0].metrics[metric].mean, color="black", linewidth=0.8, linestyle=":")
        axes.axvline(0, color="black", linewidth=0.6)
        axes.set_title(label, fontsize=10, parse_math=False)
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    for axes in panels.flat[len(shown) :]:
        axes.set_axis_off()
    panels[0, 0].set_yticks(range(len(rows)), [row.name for row in rows])
    for tick in panels[0, 0].get_yticklabels():
        tick.set_parse_math(False)
    panels[0, 0].invert_yaxis()  # shared: the first row on top, as in the table
    figure.supxlabel("mean × 100 with 95 % interval", fontsize=10)
    if title:
        figure.suptitle(title, fontsize=10, parse_math=False)
    return figure
