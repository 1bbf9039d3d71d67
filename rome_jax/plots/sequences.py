"""The figures of `eval.sequence`, `eval.sequential_edits` and `eval.mass_edits`: what a model retains of many edits."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rome_jax.evaluation.intervals import wilson
from rome_jax.plots import style
from rome_jax.plots.style import Color

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES: tuple[dict[str, Any], ...] = (
    {"color": Color.VERMILION, "linestyle": "--", "marker": "s", "fillstyle": "none"},
    {"color": Color.BLUE, "linestyle": "-", "marker": "o"},
)
_UNEDITED: dict[str, Any] = {"color": "black", "linestyle": ":", "linewidth": 1.0}
_TITLES = {
    "retention": "edits that hold, %",
    "paraphrase": "paraphrases that hold, %",
    "neighborhood": "neighbors that hold, %",
    "perplexity": "perplexity of other texts",
    "norm_ratio": "‖ΔW‖ / ‖W‖ of each edit",
}
_RATES = ("retention", "paraphrase", "neighborhood")
_DODGE = 1.05  # factor by which whiskers are moved apart
_LOGARITHMIC = 5  # an axis whose values differ by a larger factor is logarithmic


@style.drawing
def plot(report: Mapping[str, Any]) -> Figure:
    """Draws retention, neighborhood success, perplexity and the size of each edit by the number of edits in sequence.

    Bands are 95 % Wilson intervals, with an edit and its prompts as one case. Perplexities have no interval.

    Args:
      report: What `rome_jax.evaluation.sequence.run_modes` returns, or the content of a sequential.json.

    Returns:
      A figure of four panels with one legend for both key modes.

    Raises:
      MissingPackageError: If matplotlib is not installed.

    Example:
      >>> from rome_jax.plots import sequences
      >>> after = {"edits": 1, "retention": 100.0, "neighborhood": 80.0, "perplexity": 2.1}
      >>> steps = [{"edit": 1, "norm_ratio": 0.1, "after": after}]
      >>> report = {"model": "factworld-gpt2", "configuration": {"layers": [0]}, "perplexity_before": 2.0,
      ...           "runs": {"reference": steps, "consistent": steps}}
      >>> sequences.plot(report).get_suptitle()
      '1 ROME edit in sequence, factworld-gpt2, layer 0'
    """
    figure = style.new_figure(style.WIDTH, 4.4)
    panels = figure.subplots(2, 2, sharex=True)
    names = ("retention", "neighborhood", "perplexity", "norm_ratio")
    measured = {
        mode: [step["after"] for step in steps if "after" in step]
        for mode, steps in report["runs"].items()
    }
    lines = dict(zip(report["runs"], _LINES, strict=True))
    for axes, name in zip(panels.flat, names, strict=True):
        for mode, look in lines.items():
            if name == "norm_ratio":
                steps = report["runs"][mode]
                look = look | {"linestyle": "none", "markersize": 2, "markeredgewidth": 0.6}
                axes.plot([s["edit"] for s in steps], [s[name] for s in steps], **look)
            elif name == "perplexity":
                before = {"edits": 0, name: report["perplexity_before"]}
                _draw_line(axes, [before, *measured[mode]], name, look)
            else:
                _draw_line(axes, measured[mode], name, look)
        axes.set_xlim(left=0)
    _finish(panels, names, measured.values())
    layers = ", ".join(map(str, report["configuration"]["layers"]))
    count = len(next(iter(report["runs"].values())))
    edits = f"{count:,} ROME edit{'s' * (count != 1)}"
    figure.suptitle(f"{edits} in sequence, {report['model']}, layer {layers}")
    _legend(figure, {f"key mode {mode}": look for mode, look in lines.items()}, style.band_patch())
    return figure


@style.drawing
def plot_mass(report: Mapping[str, Any]) -> Figure:
    """Draws retention, paraphrase and neighborhood success and perplexity of two methods by the number of edits.

    Whiskers are 95 % Wilson intervals, with an edit and its prompts as one case; those of few edits reach below the
    axes. Perplexities have no interval. The number of edits has a logarithmic axis, on which the methods are a little
    apart so that no whiskers hide others. A dotted line is the unedited model; at the prompts of the edits and their
    paraphrases, where it prefers the old target, it has none.

    Args:
      report: What `rome_jax.evaluation.mass_edits.MassEdits.report` returns, or the content of a mass_edits.json.

    Returns:
      A figure of four panels with one legend.

    Raises:
      MissingPackageError: If matplotlib is not installed.

    Example:
      >>> from rome_jax.plots import sequences
      >>> row = {"edits": 10, "retention": 100.0, "paraphrase": 90.0, "neighborhood": 80.0, "perplexity": 2.1}
      >>> report = {"model": "factworld-gpt2", "before": row, "runs": {"ROME": [row], "MEMIT": [row]}}
      >>> [text.get_text() for text in sequences.plot_mass(report).legends[0].texts]
      ['ROME', 'MEMIT', 'unedited model']
    """
    figure = style.new_figure(style.WIDTH, 4.4)
    panels = figure.subplots(2, 2, sharex=True)
    names = (*_RATES, "perplexity")
    lines = dict(zip(report["runs"], _LINES, strict=True))
    for axes, name in zip(panels.flat, names, strict=True):
        for shift, (method, look) in zip((1 / _DODGE, _DODGE), lines.items(), strict=True):
            rows = report["runs"][method]
            edits, values = (np.array([row[key] for row in rows]) for key in ("edits", name))
            errors = np.abs(_intervals(rows, name) - values) if name in _RATES else None
            options = style.whiskers(ecolor=look["color"], capsize=2)
            axes.errorbar(edits * shift, values, errors, **look, **options)
        if name in ("neighborhood", "perplexity"):
            axes.axhline(report["before"][name], **_UNEDITED)
        style.log_axis(axes, "x")
    _finish(panels, names, report["runs"].values())
    title = f"Edits written at once (MEMIT) or in sequence (ROME), {report['model']}"
    figure.suptitle(f"{title}; whiskers: 95 % intervals")
    _legend(figure, {**lines, "unedited model": _UNEDITED})
    return figure


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
_WIDE = (
    30  # the number of edits has a logarithmic axis if the largest is this multiple of the smallest
)


@style.drawing
def plot_edits(report: Mapping[str, Any]) -> Figure:
    """Draws every score of a sequence by the number of edits in the model.

    Bands are 95 % Wilson intervals of the scores of earlier edits by likelihood, with a record and its prompts as one
    case; those of the newest edits, which are few, would hide them. A dotted line is the unedited model. A vertical
    line is the first alarm.

    Args:
      report: What `rome_jax.evaluation.sequence_run.SequenceRun.report` returns, or the content of a sequence.json.

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
    for axes, kind in zip(panels[0], ("efficacy", "paraphrase", "neighborhood"), strict=True):
        for group, way in itertools.product(_GROUPS, _WAYS):
            values += _draw_scores(axes, rows, group, kind, way)
        axes.set_title(_TITLES.get(kind, "edits that hold, %"))
        if before is not None and kind == "neighborhood":
            axes.axhline(before["requests"][kind], **_UNEDITED)
    for axes in panels[0]:
        style.percent_axis(axes, values)
    _draw_distances(panels[1], rows, before)
    for axes in panels.flat:
        axes.grid()
        if report["alarms"]:
            axes.axvline(report["alarms"][0]["edits"], **_ALARM)
    edits = [row["edits"] for row in rows]
    if edits and max(edits) >= _WIDE * min(edits):
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
    lines |= {"unedited": _UNEDITED} | ({"first alarm": _ALARM} if report["alarms"] else {})
    _legend(figure, lines, style.band_patch(), columns=4)
    return figure


_ALARM: dict[str, Any] = {"color": Color.VERMILION, "linestyle": "-.", "linewidth": 1.0}


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
        panels[0].axhline(before["perplexity"], **_UNEDITED)
    if layers:
        panels[2].legend(loc="lower right", fontsize=style.SMALL_SIZE, ncols=1 + len(layers) // 5)


def _draw_line(
    axes: Axes, rows: Sequence[Mapping[str, float]], name: str, look: Mapping[str, Any]
) -> None:
    """Draws a metric by the number of edits, and the interval of a rate."""
    edits = [row["edits"] for row in rows]
    axes.plot(edits, [row[name] for row in rows], **look)
    if name in _RATES:
        style.band(axes, edits, _intervals(rows, name), look["color"])


def _intervals(rows: Sequence[Mapping[str, float]], name: str) -> np.ndarray:
    """Returns the ends [2, rows] of a rate's interval, in percent."""
    return 100 * np.array([wilson(row[name] / 100, int(row["edits"])) for row in rows]).T


def _finish(
    panels: np.ndarray, names: Sequence[str], runs: Iterable[Sequence[Mapping[str, float]]]
) -> None:
    """Sets titles, grids and axes.

    All panels of rates have the same axis. It shows all rates and the intervals of the last ones; those of few edits,
    which are wide, may reach below it.
    """
    rates = []
    for rows, name in itertools.product(runs, [name for name in _RATES if name in names]):
        rates += [row[name] for row in rows] + _intervals(rows[-1:], name)[0].tolist()
    for axes, name in zip(panels.flat, names, strict=True):
        axes.set_title(_TITLES[name])
        axes.grid()
        if name in _RATES:
            style.percent_axis(axes, rates)
        else:
            low, high = axes.dataLim.intervaly
            if low > 0 and high > _LOGARITHMIC * low:
                style.log_axis(axes, "y")
    for axes in panels[-1]:
        axes.set_xlabel("edits in the model")


def _legend(
    figure: Figure,
    lines: Mapping[str, Mapping[str, Any]],
    *further: Artist,
    columns: int | None = None,
) -> None:
    """Draws the legend of lines, and of further marks."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=label, **look) for label, look in lines.items()]
    style.legend_below(figure, [*handles, *further], columns or len(handles) + len(further))
