"""The figures of `eval.sequential_edits` and `eval.mass_edits`: what a model retains as edits accumulate in it."""

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


def _legend(figure: Figure, lines: Mapping[str, Mapping[str, Any]], *further: Artist) -> None:
    """Draws the legend of lines, and of further marks."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=label, **look) for label, look in lines.items()]
    style.legend_below(figure, [*handles, *further], len(handles) + len(further))
