"""Heatmaps of causal traces: one prompt, several kinds of one prompt, and averages (figures 1 and 2 of the paper).

Axes: T restored tokens, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rome_jax.plots import style
from rome_jax.plots import trace_labels as labels
from rome_jax.trace.averages import AverageEffects, TokenClass
from rome_jax.trace.restore import TraceKind
from rome_jax.trace.result import TraceResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

_COLOR_MAPS = {TraceKind.HIDDEN: "Purples", TraceKind.MLP: "Greens", TraceKind.ATTN: "Reds"}
_SIZE = 5.4, 0.16  # inches: the width of a heatmap without its labels, and the height of a row


@style.drawing
def heatmap(result: TraceResult, *, title: str | None = None) -> Figure:
    """Draws the scores of one prompt, with tokens down and layers across (paper, figure 1).

    The color scale begins at the corrupted score. The subject's tokens are bold and marked with an asterisk.

    Args:
      result: The trace of T tokens by L layers. Its provenance may name the `model` and the `measure`.
      title: A title instead of the paper's.

    Returns:
      A figure with the heatmap and its color bar.

    Raises:
      MissingPackageError: If matplotlib is not installed.

    Example:
      >>> from rome_jax.plots import style, tracing
      >>> from rome_jax.trace import TraceKind, TraceResult
      >>> result = TraceResult(
      ...     scores=np.full((2, 6), 0.5, np.float32), low_score=0.1, high_score=0.9, input_ids=np.arange(2),
      ...     input_tokens=("Rome", " is"), subject_range=(0, 1), answer=" big", kind=TraceKind.HIDDEN, window=3,
      ...     tokens=(0, 1))
      >>> figure = tracing.heatmap(result)
      >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
      ['Rome*', 'is']
      >>> style.save_figure(figure, "rome.png")
    """
    rows, subject = _token_rows(result)
    score = labels.score_name(result)
    return _table(
        result.scores,
        rows,
        kind=result.kind,
        low=result.low_score,
        high=result.high_score,
        color_label=f"{score}({labels.visible(result.answer, 16)})",
        bold=subject,
        title=f"Impact of restoring {labels.RESTORED[result.kind]} after corrupted input"
        if title is None
        else title,
        captions=(
            labels.layers_label(result.kind, result.window, result.provenance.get("model")),
            f"{score}({labels.visible(result.answer, 28)}): {labels.clean_and_corrupted(result)}",
        ),
    )


@style.drawing
def heatmaps(results: Sequence[TraceResult], *, title: str | None = None) -> Figure:
    """Draws traces of one prompt side by side, such as those of the three kinds (paper, figure 1).

    All panels share one scale, from the corrupted to the highest score, and name the tokens once.

    Args:
      results: One trace for each panel; all of the same prompt, tokens, answer and measure.
      title: A title instead of one that gives the answer's clean and corrupted scores.

    Returns:
      A figure with a heatmap and a color bar for each trace.

    Raises:
      ValueError: If there are no results, or if they are of different prompts, tokens, answers or measures.
      MissingPackageError: If matplotlib is not installed.

    Example:
      >>> from rome_jax.plots.tracing import heatmaps
      >>> from rome_jax.trace import Protocol, Series, TracePrompt, parse_noise, fit_noise, start
      >>> prompt = TracePrompt.of(model.tokenizer, "Gothulf Punby plays the sport of", "Gothulf Punby")
      >>> noise = fit_noise(model, parse_noise("s3"), subjects=["Gothulf Punby"])
      >>> vectors = noise.draw(key, 2, 3, model.config.width)
      >>> runs = start(model, prompt, vectors)
      >>> protocol = Protocol(noise, samples=2, window=3)
      >>> traces = [protocol.sweep(runs, series, {}) for series in (Series.HIDDEN, Series.MLP)]
      >>> heatmaps(traces).axes[0].get_title()
      'single hidden states'
    """
    if not results:
        raise ValueError("results is empty: give at least one trace.")
    first = results[0]
    for result in results[1:]:
        if (result.input_tokens, result.tokens, result.answer, result.measure) != (
            first.input_tokens,
            first.tokens,
            first.answer,
            first.measure,
        ):
            raise ValueError(
                "results have different prompts, tokens, answers or measures: give traces of one prompt."
            )
    rows, subject = _token_rows(first)
    low = min(result.low_score for result in results)
    high = max(result.high_score for result in results)
    top = max(_top_of_scale(result.scores, low, high) for result in results)
    score = f"{labels.score_name(first)}({labels.visible(first.answer, 16)})"
    height = 1.0 + _SIZE[1] * len(rows)
    figure = style.new_figure(style.WIDTH, max(1.9, height))
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for number, (axes, result) in enumerate(zip(panels, results, strict=True)):
        cells = _draw_cells(axes, result.scores, result.kind, low, top)
        axes.set_title(labels.PANELS[result.kind])
        axes.set_xlabel(labels.short_layers_label(result.kind, result.window))
        axes.tick_params(axis="y", length=0)
        labels.layer_ticks(axes, result.scores.shape[1], most=9)
        bar = _color_bar(figure, cells, axes, result.scores, low, aspect=16, pad=0.03)
        if number == len(results) - 1:
            bar.set_label(score)
    panels[0].invert_yaxis()
    _name_rows(panels[0], rows, subject)
    if title is None:
        title = f"{score} with clean states restored: {labels.clean_and_corrupted(first)}"
        if model := first.provenance.get("model"):
            title = f"{model}, {title}"
    figure.suptitle(style.wrap(title, 92))
    return figure


@style.drawing
def average_heatmap(
    averages: AverageEffects,
    kind: TraceKind,
    *,
    window: int | None = None,
    model: str | None = None,
    title: str | None = None,
) -> Figure:
    """Draws average indirect effects, with six classes of tokens down and layers across (paper, figure 2).

    The color scale begins at no effect. A class that occurs in no prompt is hatched.

    Args:
      averages: The averages of one kind.
      kind: That kind.
      window: The number of layers in a window, to be shown below the heatmap.
      model: The name of the model, to be shown below the heatmap.
      title: A title instead of the paper's.

    Returns:
      A figure with the heatmap and its color bar.

    Raises:
      MissingPackageError: If matplotlib is not installed.

    Example:
      >>> from rome_jax.plots import tracing
      >>> from rome_jax.trace import AverageEffects, ClassAverage, TokenClass, TraceKind
      >>> effect = ClassAverage(mean=np.linspace(0, 0.5, 6), band=np.full(6, 0.1), count=8)
      >>> averages = AverageEffects(dict.fromkeys(TokenClass, effect), 0.9, 0.1, 0.8, 0.05, 8, 0)
      >>> tracing.average_heatmap(averages, TraceKind.MLP).axes[0].get_title()
      'Average indirect effect of restoring MLP over 8 prompts'
    """
    restored = f"restoring {labels.RESTORED[kind]} over {labels.prompts(averages)}"
    return _table(
        np.stack([averages.indirect[place].mean for place in TokenClass]),
        [place.value for place in TokenClass],
        kind=kind,
        low=0.0,
        high=averages.total,
        color_label="average indirect effect",
        title=f"Average indirect effect of {restored}" if title is None else title,
        captions=(
            labels.layers_label(kind, window, model),
            f"{labels.total(averages)} (95 % interval): clean {labels.number(averages.clean)}, "
            f"corrupted {labels.number(averages.corrupted)}",
        ),
    )


def _table(
    values: np.ndarray,
    rows: Sequence[str],
    *,
    kind: TraceKind,
    low: float,
    high: float,
    color_label: str,
    title: str,
    captions: Sequence[str],
    bold: Sequence[bool] = (),
) -> Figure:
    """Draws values [rows, L] as one heatmap with a title, captions below and a color bar."""
    height = max(2.1, 1.0 + _SIZE[1] * len(rows))
    figure = style.new_figure(_SIZE[0], height)
    axes = figure.subplots()
    cells = _draw_cells(axes, values, kind, low, _top_of_scale(values, low, high))
    axes.invert_yaxis()
    axes.set_title(style.wrap(title, labels.TITLE_LENGTH), fontsize=style.TITLE_SIZE)
    axes.set_xlabel("\n".join(style.wrap(caption, labels.LABEL_LENGTH) for caption in captions))
    labels.layer_ticks(axes, values.shape[1])
    _name_rows(axes, rows, bold)
    axes.tick_params(axis="y", length=0)
    ticks = axes.get_yticklabels()
    widest = max(label.get_window_extent().width for label in ticks) / figure.dpi
    # The heatmap keeps its width whatever the width of the labels.
    figure.set_size_inches(_SIZE[0] - 0.6 + widest, height)
    bar = _color_bar(figure, cells, axes, values, low, shrink=min(1.0, 3 / height))
    bar.set_label(color_label)
    return figure


def _top_of_scale(values: np.ndarray, low: float, high: float) -> float:
    """Returns the score of the darkest color.

    A tiny effect must not look large, neither beside larger negative effects nor beside the total effect.
    """
    finite = values[np.isfinite(values)]
    reach = float(np.abs(finite - low).max(initial=0))
    top = min(low + reach, float(finite.max(initial=high)))
    if top - low <= max(1e-3 * abs(high - low), 1e-6):
        top = max(high, low + 1e-3)
    return top


def _draw_cells(
    axes: Axes, values: np.ndarray, kind: TraceKind, low: float, top: float
) -> ScalarMappable:
    """Draws values [rows, L] as colored cells from `low` to `top`; NaN is hatched."""
    if not np.isfinite(values).all():
        axes.patch.set(facecolor="white", edgecolor="0.7", hatch="////", linewidth=0)
    axes.spines[:].set_visible(True)
    return axes.pcolormesh(
        *(np.arange(n + 1) - 0.5 for n in reversed(values.shape)),
        np.ma.masked_invalid(values),
        cmap=_COLOR_MAPS[kind],
        vmin=low,
        vmax=top,
        edgecolors="face",  # no seams between the cells in viewers of PDF and SVG
        linewidth=0.3,
    )


def _color_bar(
    figure: Figure, cells: ScalarMappable, axes: Axes, values: np.ndarray, low: float, **size: Any
):
    """Adds a color bar, with an arrow at its lower end if there are values below the scale."""
    from matplotlib.ticker import MaxNLocator

    below = (values[np.isfinite(values)] < low).any()
    return figure.colorbar(
        cells,
        ax=axes,
        extend="min" if below else "neither",
        ticks=MaxNLocator(5, steps=[1, 2, 5, 10]),
        **size,
    )


def _name_rows(axes: Axes, rows: Sequence[str], bold: Sequence[bool]) -> None:
    """Labels the rows of a heatmap, some of them bold."""
    axes.set_yticks(range(len(rows)), rows)
    for label, strong in zip(axes.get_yticklabels(), bold, strict=False):
        label.set_fontweight("bold" if strong else "normal")


def _token_rows(result: TraceResult) -> tuple[list[str], list[bool]]:
    """Returns the label of each restored token, and whether it belongs to the subject."""
    first, stop = result.subject_range
    subject = [first <= token < stop for token in result.tokens]
    rows = [labels.visible(result.input_tokens[token]) for token in result.tokens]
    return [
        f"{row}*" if marked else row for row, marked in zip(rows, subject, strict=True)
    ], subject
