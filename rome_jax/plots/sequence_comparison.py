"""The figure of `eval.compare_sequences`: what a model retains of many edits by several methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rome_jax.evaluation.sequence_reports import KINDS, WAYS, largest_change, scores_of
from rome_jax.plots import style
from rome_jax.plots.sequences import TITLES, UNEDITED, WIDE
from rome_jax.plots.style import Color

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = tuple(color for color in Color if color is not Color.GRAY)
_MARKERS = "osD^vXP"  # as many as colors, so that a method is recognized without them
_DISTANCES: Mapping[str, Callable[[Mapping[str, Any]], float | None]] = {
    "perplexity of other texts": lambda row: row["perplexity"],
    "KL(unedited ‖ edited), nats": lambda row: row["kl"],
    "largest ‖ΔW‖ / ‖W‖ of a layer": largest_change,
}


@style.drawing
def plot_comparison(reports: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draws every score of several sequences by the number of edits in the model.

    The scores are those of all earlier edits, or of the newest ones where there are no others. A dotted line is the
    unedited model of the first sequence.

    Args:
      reports: What `rome_jax.evaluation.sequence_reports.read_report` returns, or the content of sequence.json, by the
        name of the sequence; at most 14.

    Returns:
      A figure of nine panels with one legend.

    Raises:
      MissingPackageError: If matplotlib is not installed.
      ValueError: If there are more than 14 sequences.

    Example:
      >>> from rome_jax.plots.sequence_comparison import plot_comparison
      >>> scores = {kind + way: 50.0 for kind in KINDS for way in WAYS}
      >>> row = {"edits": 8, "newest": scores, "earlier": None, "perplexity": 2.0, "kl": 0.1, "norm_ratios": {"0": 0.2}}
      >>> report = {"model": "factworld-gpt2", "settings": {"alg_name": "ROME", "batch_size": 1}, "measurements": [row]}
      >>> figure = plot_comparison({"ROME": report})
      >>> [text.get_text() for text in figure.legends[0].texts]
      ['ROME', 'unedited']
    """
    names = list(reports)
    if len(names) > 2 * len(_COLORS):
        raise ValueError(
            f"a figure has room for {2 * len(_COLORS)} sequences, and {len(names)} are given: draw fewer at once."
        )
    figure = style.new_figure(style.WIDTH, 6.0)
    panels = figure.subplots(3, 3, sharex=True)
    measured = [
        [row for row in report["measurements"] if row["edits"]] for report in reports.values()
    ]
    before = next((row for row in reports[names[0]]["measurements"] if not row["edits"]), None)
    looks = {
        name: {
            "color": _COLORS[number % len(_COLORS)],
            "marker": _MARKERS[number % len(_MARKERS)],
            "linestyle": "-" if number < len(_COLORS) else "--",
        }
        for number, name in enumerate(names)
    }
    for row_of_panels, (way, meaning) in zip(panels, WAYS.items(), strict=False):
        values: list[float] = []
        for axes, kind in zip(row_of_panels, KINDS, strict=True):
            for look, rows in zip(looks.values(), measured, strict=True):
                scores = [scores_of(row)[kind + way] for row in rows]
                axes.plot([row["edits"] for row in rows], np.array(scores, float), **look)
                values += [score for score in scores if score is not None]
            axes.set_title(TITLES[kind])
            if kind == "neighborhood" and before and before["requests"][kind + way] is not None:
                axes.axhline(before["requests"][kind + way], **UNEDITED)
        row_of_panels[0].set_ylabel(f"by {meaning}")
        for axes in row_of_panels:
            style.percent_axis(axes, values)
    for axes, (title, of) in zip(panels[2], _DISTANCES.items(), strict=True):
        for look, rows in zip(looks.values(), measured, strict=True):
            distances = np.array([of(row) for row in rows], float)
            axes.plot([row["edits"] for row in rows], distances, **look)
        axes.set_title(title)
        axes.set_xlabel("edits in the model")
        if axes.dataLim.intervaly[0] > 0:
            style.log_axis(axes, "y")
    if before is not None:
        panels[2, 0].axhline(before["perplexity"], **UNEDITED)
    for axes in panels.flat:
        axes.grid()
    edits = [row["edits"] for rows in measured for row in rows]
    if edits and max(edits) >= WIDE * min(edits):
        style.log_axis(panels[0, 0], "x")  # which all panels share
    _title_and_legend(figure, list(reports.values()), looks)
    return figure


def _title_and_legend(
    figure: Figure, reports: Sequence[Mapping[str, Any]], looks: Mapping[str, Mapping[str, Any]]
) -> None:
    """Names what the sequences share, and the line of each."""
    from matplotlib.lines import Line2D

    sizes = {report["settings"]["batch_size"] for report in reports}
    models = {report["model"] for report in reports}
    shared = [f"batches of {sizes.pop()}"] if len(sizes) == 1 else []
    shared += [models.pop()] if len(models) == 1 else []
    figure.suptitle(", ".join(["Edits in sequence", *shared]))
    handles = [
        Line2D([], [], label=label, **look)
        for label, look in {**looks, "unedited": UNEDITED}.items()
    ]
    style.legend_below(figure, handles, 4)
