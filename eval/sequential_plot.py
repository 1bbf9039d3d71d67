"""The figure of `eval.sequential_edits`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Okabe and Ito's blue and vermilion, which differ for every eye and in grey.
STYLES = {
    "reference": {"color": "#D55E00", "linestyle": "--", "marker": "s", "fillstyle": "none"},
    "consistent": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
}


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Draws retention, neighborhood success, perplexity and the size of each edit against the number of edits.

    Args:
      report: what `eval.sequential_edits` writes.
      path: of the image; its suffix says which kind.
    """
    from matplotlib.figure import Figure  # slow to import, needed here alone

    figure = Figure(figsize=(9, 6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    titles = (
        ("retention", "earlier edits that hold, %"),
        ("neighborhood", "neighbors that hold, %"),
        ("perplexity", "perplexity of other texts"),
        ("norm_ratio", "‖ΔW‖ / ‖W‖ of each edit"),
    )
    for axes, (name, title) in zip(panels.flat, titles, strict=True):
        for mode, steps in report["runs"].items():
            style = STYLES[mode] | {"label": mode, "markersize": 4, "linewidth": 1.2}
            if name == "norm_ratio":
                points = [(step["edit"], step[name]) for step in steps]
                style |= {"linestyle": "none", "markersize": 2.5}
            else:
                points = [(s["edit"], s["after"][name]) for s in steps if "after" in s]
                if name == "perplexity":
                    points = [(0, report["perplexity_before"]), *points]
            axes.plot(*zip(*points, strict=True), **style)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
        axes.set_xlim(left=0)
        if name in ("retention", "neighborhood"):
            axes.set_ylim(-3, 103)
        low, high = axes.get_ylim()
        if name not in ("retention", "neighborhood") and high > 10 * max(low, high / 1e3):
            axes.set_yscale("log")
    panels[0, 0].legend(frameon=False, title="key mode")
    for axes in panels[1]:
        axes.set_xlabel("edits in the model")
    layers = ", ".join(map(str, report["configuration"]["layers"]))
    count = len(next(iter(report["runs"].values())))
    figure.suptitle(f"{count} ROME edits in sequence, {report['model']}, layer {layers}")
    figure.savefig(path, dpi=150)
