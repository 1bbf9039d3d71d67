"""The training curves of a hypernetwork."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What is drawn in each panel: its title, and name and label of its lines.
_PANELS = (
    ("edit loss, nats a token", {"edit": "validation", "train_edit": "training"}),
    (
        "KL of other facts, nats a token",
        {"kl": "validation", "train_kl": "training", "margin": "margin"},
    ),
    (
        "of validation, %",
        {"success": "paraphrases that say the target", "kept": "other facts kept"},
    ),
)
# Okabe and Ito's blue, vermilion and green, which differ for every eye and in grey.
_STYLES = (
    {"color": "#0072B2", "linestyle": "-", "marker": "o", "markersize": 3},
    {"color": "#D55E00", "linestyle": "--"},
    {"color": "#009E73", "linestyle": ":"},
)


def plot(report: Mapping[str, Any], path: str | Path) -> None:
    """Draws both losses and what they are for against the steps.

    Args:
      report: the content of a training.json.
      path: of the image; its suffix says which kind.
    """
    from matplotlib.figure import Figure  # slow to import, needed here alone

    history, about = report["history"], report["about"]
    steps = [row["step"] for row in history]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        shares = title.endswith("%")
        for (name, label), style in zip(lines.items(), _STYLES, strict=False):
            if name == "margin" and about["training"]["margin"] is None:
                continue
            values = [row[name] * (100 if shares else 1) for row in history]
            axes.plot(steps, values, label=label, **style)
        axes.axvline(
            report["best"]["step"],
            color="black",
            linewidth=0.8,
            linestyle="-.",
            label="best validation",
        )
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("steps of Adam")
        if not shares:
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(
            frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.18)
        )
    figure.suptitle(f"{about['kind']} on {about['model']}")
    figure.savefig(path, dpi=150)
