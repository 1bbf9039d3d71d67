"""The figure of a hypernetwork's training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rome_jax.evaluation.intervals import wilson
from rome_jax.plots import style
from rome_jax.plots.style import Color

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The label and the look of each line; validation and training are the same in both panels of losses.
_VALIDATION = "validation", {"color": Color.BLUE, "linestyle": "-", "marker": "o"}
_TRAINING = "training", {"color": Color.VERMILION, "linestyle": "--"}
_MARGIN = "margin of the constraint", {"color": Color.GRAY, "linestyle": ":"}
_SUCCESS = "paraphrases with the new target", {"color": Color.GREEN, "marker": "^"}
_KEPT = "other facts kept", {"color": Color.PURPLE, "linestyle": "-.", "marker": "v"}
_BEST = "step that was kept", {"color": "black", "linewidth": 0.8, "linestyle": (0, (1, 1))}

_LOSSES: tuple[tuple[str, dict[str, tuple[str, dict[str, Any]]]], ...] = (
    ("edit loss, nats per token", {"edit": _VALIDATION, "train_edit": _TRAINING}),
    (
        "KL of other facts, nats per token",
        {"kl": _VALIDATION, "train_kl": _TRAINING, "margin": _MARGIN},
    ),
)
_RATES = "validation edits, %", {"success": _SUCCESS, "kept": _KEPT}


@style.drawing
def plot(report: Mapping[str, Any]) -> Figure:
    """Draws both losses, and the success and specificity that they stand for, by training step.

    Bands are 95 % Wilson intervals over the validation edits; losses have none.

    Args:
      report: The content of a training.json.

    Returns:
      A figure of three panels with one legend.

    Raises:
      MissingPackageError: If matplotlib is not installed.

    Example:
      >>> from rome_jax.plots import hypernetworks
      >>> row = {"step": 100, "edit": 0.2, "train_edit": 0.3, "kl": 0.01, "train_kl": 0.02, "success": 0.9, "kept": 1.0}
      >>> about = {"kind": "MEND", "model": "factworld-gpt2", "training": {"margin": None, "num_validation": 128}}
      >>> hypernetworks.plot({"history": [row], "best": row, "about": about}).get_suptitle()
      'Training of MEND for factworld-gpt2'
    """
    history, about = report["history"], report["about"]
    steps = [row["step"] for row in history]
    figure = style.new_figure(style.WIDTH, 2.6)
    shown: dict[str, Any] = {}  # the legend's lines by their labels
    panels = figure.subplots(1, 3)
    for axes, (title, lines) in zip(panels, (*_LOSSES, _RATES), strict=True):
        rates = title == _RATES[0]
        for name, (label, look) in lines.items():
            if name == "margin" and about["training"]["margin"] is None:
                continue
            values = [row[name] * (100 if rates else 1) for row in history]
            (shown[label],) = axes.plot(steps, values, label=label, **look)
            if rates:
                count = about["training"]["num_validation"]
                ends = np.array([wilson(row[name], count) for row in history]).T
                style.band(axes, steps, 100 * ends, look["color"])
        label, look = _BEST
        shown[label] = axes.axvline(report["best"]["step"], label=label, **look)
        axes.set_title(title)
        axes.set_xlabel("training step")
        axes.grid()
        if rates:
            style.percent_axis(axes, axes.dataLim.intervaly)
        else:
            style.log_axis(axes, "y")
    order = [label for label, _ in (_VALIDATION, _TRAINING, _MARGIN, _SUCCESS, _KEPT, _BEST)]
    handles = [shown[label] for label in order if label in shown]
    style.legend_below(figure, [*handles, style.band_patch()], 4)
    figure.suptitle(f"Training of {about['kind']} for {about['model']}")
    return figure
