"""The figures of `eval.sequential_edits` and `eval.mass_edits`: what a model keeps against the edits in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's vermilion and blue, which differ for every eye and in grey.
STYLES = (
    {"color": "#D55E00", "linestyle": "--", "marker": "s", "fillstyle": "none"},
    {"color": "#0072B2", "linestyle": "-", "marker": "o"},
)
_TITLES = {
    "retention": "edits that hold, %",
    "paraphrase": "paraphrases that hold, %",
    "neighborhood": "neighbors that hold, %",
    "perplexity": "perplexity of other texts",
}
_RATES = ("retention", "paraphrase", "neighborhood")


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Draws retention, neighborhood success, perplexity and the size of each edit against the number of edits.

    Args:
      report: what `eval.sequential_edits` writes.
      path: of the image; its suffix says which kind.
    """
    from matplotlib.figure import Figure  # slow to import, needed here alone

    figure = Figure(figsize=(9, 6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    names = ("retention", "neighborhood", "perplexity", "norm_ratio")
    for axes, name in zip(panels.flat, names, strict=True):
        for (mode, steps), style in zip(report["runs"].items(), STYLES, strict=True):
            if name == "norm_ratio":
                points = [(step["edit"], step[name]) for step in steps]
                style = style | {"linestyle": "none", "markersize": 2.5}
            else:
                points = [(s["edit"], s["after"][name]) for s in steps if "after" in s]
                if name == "perplexity":
                    points = [(0, report["perplexity_before"]), *points]
            _draw(axes, mode, points, style)
        axes.set_xlim(left=0)
        _finish(axes, name, _TITLES.get(name, "‖ΔW‖ / ‖W‖ of each edit"))
    panels[0, 0].legend(frameon=False, title="key mode")
    for axes in panels[1]:
        axes.set_xlabel("edits in the model")
    layers = ", ".join(map(str, report["configuration"]["layers"]))
    count = len(next(iter(report["runs"].values())))
    figure.suptitle(f"{count} ROME edits in sequence, {report['model']}, layer {layers}")
    figure.savefig(path, dpi=150)


def plot_mass(report: Mapping[str, Any], path: Path) -> None:
    """Draws retention, paraphrase and neighborhood success and perplexity of both methods against the number of edits,
    on a logarithmic axis; the unedited model is a dotted line.

    Args:
      report: what `eval.mass_edits` writes.
      path: of the image; its suffix says which kind.
    """
    from matplotlib.figure import Figure  # slow to import, needed here alone

    figure = Figure(figsize=(9, 6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    for axes, (name, title) in zip(panels.flat, _TITLES.items(), strict=True):
        for (label, rows), style in zip(report["runs"].items(), STYLES, strict=True):
            _draw(axes, label, [(row["edits"], row[name]) for row in rows], style)
        axes.axhline(report["before"][name], color="black", linestyle=":", label="unedited")
        axes.set_xscale("log")
        _finish(axes, name, title)
    panels[0, 0].legend(frameon=False, loc="center left")
    for axes in panels[1]:
        axes.set_xlabel("edits in the model")
    figure.suptitle(f"All edits at once (MEMIT) and one after another (ROME), {report['model']}")
    figure.savefig(path, dpi=150)


def _draw(
    axes: Axes, label: str, points: Iterable[tuple[float, float]], style: Mapping[str, Any]
) -> None:
    shown = {"markersize": 4, "linewidth": 1.2, "label": label} | dict(style)
    axes.plot(*zip(*points, strict=True), **shown)


def _finish(axes: Axes, name: str, title: str) -> None:
    """Title, grid and the vertical axis: percent, or logarithmic where values differ much."""
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    if name in _RATES:
        axes.set_ylim(-3, 103)
    low, high = axes.get_ylim()
    if name not in _RATES and high > 10 * max(low, high / 1e3):
        axes.set_yscale("log")
