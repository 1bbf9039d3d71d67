"""The figure of `eval.sequence`: what a model retains of many edits."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rome_jax.evaluation.intervals import wilson
from rome_jax.plots import style
from rome_jax.plots.style import Color

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNEDITED: dict[str, Any] = {"color": "black", "linestyle": ":", "linewidth": 1.0}
_ALARM: dict[str, Any] = {"color": Color.VERMILION, "linestyle": "-.", "linewidth": 1.0}
TITLES = {
    "efficacy": "edits that hold, %",
    "paraphrase": "paraphrases that hold, %",
    "neighborhood": "neighbors that hold, %",
}
_LOGARITHMIC = 5  # an axis whose values differ by a larger factor is logarithmic
_GROUPS: dict[str, dict[str, Any]] = {
    "newest": {"color": Color.ORANGE, "marker": "^"},
    "earlier": {"color": Color.BLUE, "marker": "o"},
}
_WAYS: dict[str, dict[str, Any]] = {
    "": {"linestyle": "-"},
    "_generated": {"linestyle": "--", "fillstyle": "none"},
}
_WAY_NAMES = {"": "likelihood", "_generated": "generated text"}
_LAYERS = (Color.BLACK, Color.SKY, Color.GREEN, Color.PURPLE, Color.VERMILION, Color.BLUE)
# The number of edits has a logarithmic axis if the largest is this multiple of the smallest.
WIDE = 30


@style.drawing
def plot_edits(report: Mapping[str, Any]) -> Figure:
    """Draws every score of a sequence by the number of edits in the model.

    Bands are 95 % Wilson intervals of the scores of earlier edits by likelihood, with a record and its prompts as one
    case; those of the newest edits, which are few, would hide them. A dotted line is the unedited model. A vertical
    line is the first alarm.

    Args:
      report: What `rome_jax.evaluation.sequence_reports.read_report` returns, or the content of a sequence.json.

    Returns:
      A figure of six panels with one legend.

    Raises:
      MissingPackageError: If matplotlib is not installed.

    Example:
      >>> from rome_jax.plots import sequences
      >>> scores = {"records": 8, "efficacy": 100.0, "paraphrase": 50.0, "neighborhood": None}
      >>> scores |= {f"{kind}_generated": 50.0 for kind in ("efficacy", "paraphrase", "neighborhood")}
      >>> row = {"edits": 8, "newest": scores, "earlier": None, "perplexity": 2.0, "kl": 0.1, "norm_ratios": {"0": 0.2}}
      >>> settings = {"alg_name": "ROME", "batch_size": 1}
      >>> report = {"model": "factworld-gpt2", "settings": settings, "measurements": [row], "alarms": []}
      >>> sequences.plot_edits(report).get_suptitle()
      '8 edits by ROME in batches of 1, factworld-gpt2'
    """
    figure = style.new_figure(style.WIDTH, 4.4)
    panels = figure.subplots(2, 3, sharex=True)
    rows = [row for row in report["measurements"] if row["edits"]]
    before = next((row for row in report["measurements"] if not row["edits"]), None)
    values = []
    for axes, (kind, title) in zip(panels[0], TITLES.items(), strict=True):
        for group, way in itertools.product(_GROUPS, _WAYS):
            values += _draw_scores(axes, rows, group, kind, way)
        axes.set_title(title)
        if kind == "neighborhood" and before and before["requests"][kind] is not None:
            axes.axhline(before["requests"][kind], **UNEDITED)
    for axes in panels[0]:
        style.percent_axis(axes, values)
    _draw_distances(panels[1], rows, before)
    for axes in panels.flat:
        axes.grid()
        if report["alarms"]:
            axes.axvline(report["alarms"][0]["edits"], **_ALARM)
    edits = [row["edits"] for row in rows]
    if edits and max(edits) >= WIDE * min(edits):
        style.log_axis(panels[0, 0], "x")  # which all panels share
    for axes in panels[1]:
        axes.set_xlabel("edits in the model")
    settings, count = report["settings"], max(edits, default=0)
    figure.suptitle(
        f"{count:,} edit{'s' * (count != 1)} by {settings['alg_name']} in batches of {settings['batch_size']}, "
        f"{report['model']}"
    )
    lines = {
        f"{group}, {_WAY_NAMES[way]}": {**_GROUPS[group], **_WAYS[way]}
        for group, way in itertools.product(_GROUPS, _WAYS)
    }
    lines |= {"unedited": UNEDITED} | ({"first alarm": _ALARM} if report["alarms"] else {})
    _legend(figure, lines)
    return figure


def _draw_scores(
    axes: Axes, rows: Sequence[Mapping[str, Any]], group: str, kind: str, way: str
) -> list[float]:
    """Draws one score of a group of edits, and returns all values and the ends of the last interval."""
    name = kind + way
    found = [
        (row["edits"], row[group][name], row[group]["records"])
        for row in rows
        if row[group] and row[group][name] is not None
    ]
    if not found:
        return []
    edits, scores, records = zip(*found, strict=True)
    axes.plot(edits, scores, **_GROUPS[group], **_WAYS[way])
    if group == "earlier" and not way:
        ends = 100 * np.array(
            [wilson(score / 100, count) for score, count in zip(scores, records, strict=True)]
        )
        style.band(axes, edits, ends.T, _GROUPS[group]["color"])
        return [*scores, ends[-1][0]]
    return list(scores)


def _draw_distances(
    panels: Sequence[Axes], rows: Sequence[Mapping[str, Any]], before: Mapping[str, Any] | None
) -> None:
    """Draws perplexity, KL, and the relative change of each layer, which has a legend of its own."""
    edits = np.array([row["edits"] for row in rows])
    lines = {
        "perplexity of other texts": {"": [row["perplexity"] for row in rows]},
        "KL(unedited ‖ edited), nats per token": {"": [row["kl"] for row in rows]},
        "‖ΔW‖ / ‖W‖ of each layer": {},
    }
    layers = dict.fromkeys(layer for row in rows for layer in row["norm_ratios"])
    for layer in layers:
        name = f"layer {layer}"
        lines["‖ΔW‖ / ‖W‖ of each layer"][name] = [row["norm_ratios"].get(layer) for row in rows]
    for axes, (title, found) in zip(panels, lines.items(), strict=True):
        for number, (name, values) in enumerate(found.items()):
            color = _LAYERS[number % len(_LAYERS)]
            axes.plot(edits, np.array(values, float), color=color, marker="o", label=name)
        axes.set_title(title)
        low, high = axes.dataLim.intervaly
        if found and low > 0 and high > _LOGARITHMIC * low:
            style.log_axis(axes, "y")
    if before is not None:
        panels[0].axhline(before["perplexity"], **UNEDITED)
    if layers:
        panels[2].legend(loc="lower right", fontsize=style.SMALL_SIZE, ncols=1 + len(layers) // 5)


def _legend(figure: Figure, lines: Mapping[str, Mapping[str, Any]]) -> None:
    """Draws the legend of lines and of the bands."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=label, **look) for label, look in lines.items()]
    style.legend_below(figure, [*handles, style.band_patch()], 4)
