"""The figures of causal tracing, as in the paper (figures 1 to 3).

Colors are sequential, or those of `style.Color` with a line style and a marker for each, so that the figures can be
read with any color vision and in gray. Text is shown as it is, never read as mathematics.

Axes: T restored tokens, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rome_jax.models.interventions import Site
from rome_jax.plots import style
from rome_jax.plots.style import Color
from rome_jax.trace.averages import AverageEffects, ClassAverage, TokenClass
from rome_jax.trace.corruption import Measure
from rome_jax.trace.restore import TraceKind
from rome_jax.trace.result import TraceResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

_COLOR_MAPS = {TraceKind.HIDDEN: "Purples", TraceKind.MLP: "Greens", TraceKind.ATTN: "Reds"}
_RESTORED = {TraceKind.HIDDEN: "state", TraceKind.MLP: "MLP", TraceKind.ATTN: "attention"}
_PANELS = {
    TraceKind.HIDDEN: "single hidden states",
    TraceKind.MLP: "MLP outputs",
    TraceKind.ATTN: "attention outputs",
}
_LINES: dict[TokenClass, dict[str, Any]] = {
    TokenClass.FIRST_SUBJECT: {"color": Color.SKY, "linestyle": ":", "marker": "^"},
    TokenClass.MIDDLE_SUBJECT: {"color": Color.GREEN, "linestyle": "--", "marker": "v"},
    TokenClass.LAST_SUBJECT: {"color": Color.VERMILION, "linestyle": "-", "marker": "o"},
    TokenClass.FIRST_SUBSEQUENT: {"color": Color.PURPLE, "linestyle": "-.", "marker": "D"},
    TokenClass.FURTHER: {"color": Color.ORANGE, "linestyle": (0, (1, 3)), "marker": "x"},
    TokenClass.LAST: {"color": Color.BLUE, "linestyle": (0, (6, 2)), "marker": "s"},
}
# Dark, light and medium in gray.
_ORDINARY: dict[str, Any] = {"color": Color.BLUE, "label": "single state restored"}
_SEVERED: dict[Site, dict[str, Any]] = {
    Site.MLP_OUT: {"color": Color.SKY, "label": "with MLPs severed"},
    Site.ATTN_OUT: {"color": Color.ORANGE, "label": "with attention severed"},
}

_SIZE = 5.4, 0.16  # inches: the width of a heatmap without its labels, and the height of a row
_TITLE_LENGTH, _LABEL_LENGTH = 74, 84  # characters of a line above or below a heatmap
_MAX_LAYER_TICKS = 13
_SIGNS = str.maketrans({"\n": "↵", "\r": "⏎", "\t": "⇥"})


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
    score = _score_name(result)
    return _table(
        result.scores,
        rows,
        kind=result.kind,
        low=result.low_score,
        high=result.high_score,
        color_label=f"{score}({_visible(result.answer, 16)})",
        bold=subject,
        title=f"Impact of restoring {_RESTORED[result.kind]} after corrupted input"
        if title is None
        else title,
        captions=(
            _layers_label(result.kind, result.window, result.provenance.get("model")),
            f"{score}({_visible(result.answer, 28)}): {_clean_and_corrupted(result)}",
        ),
    )


@style.drawing
def heatmaps(results: Sequence[TraceResult], *, title: str | None = None) -> Figure:
    """Draws traces of one prompt side by side, such as those of the three kinds (paper, figure 1).

    All panels share one scale, from the corrupted to the highest score, and name the tokens once.

    Args:
      results: One trace for each panel; all of the same prompt, tokens and answer.
      title: A title instead of one that gives the answer's clean and corrupted scores.

    Returns:
      A figure with a heatmap and a color bar for each trace.

    Raises:
      ValueError: If there are no results, or if they are of different prompts, tokens or answers.
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
        if (result.input_tokens, result.tokens, result.answer) != (
            first.input_tokens,
            first.tokens,
            first.answer,
        ):
            raise ValueError(
                "results have different prompts, tokens or answers: give traces of one prompt."
            )
    rows, subject = _token_rows(first)
    low = min(result.low_score for result in results)
    high = max(result.high_score for result in results)
    top = max(_top_of_scale(result.scores, low, high) for result in results)
    score = f"{_score_name(first)}({_visible(first.answer, 16)})"
    height = 1.0 + _SIZE[1] * len(rows)
    figure = style.new_figure(style.WIDTH, max(1.9, height))
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for number, (axes, result) in enumerate(zip(panels, results, strict=True)):
        cells = _draw_cells(axes, result.scores, result.kind, low, top)
        axes.set_title(_PANELS[result.kind])
        axes.set_xlabel(_short_layers_label(result.kind, result.window))
        axes.tick_params(axis="y", length=0)
        _layer_ticks(axes, result.scores.shape[1], most=9)
        bar = _color_bar(figure, cells, axes, result.scores, low, aspect=16, pad=0.03)
        if number == len(results) - 1:
            bar.set_label(score)
    panels[0].invert_yaxis()
    _name_rows(panels[0], rows, subject)
    if title is None:
        title = f"{score} with clean states restored: {_clean_and_corrupted(first)}"
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
    restored = f"restoring {_RESTORED[kind]} over {_prompts(averages)}"
    return _table(
        np.stack([averages.indirect[place].mean for place in TokenClass]),
        [place.value for place in TokenClass],
        kind=kind,
        low=0.0,
        high=averages.total,
        color_label="average indirect effect",
        title=f"Average indirect effect of {restored}" if title is None else title,
        captions=(
            _layers_label(kind, window, model),
            f"{_total(averages)} (95 % interval): clean {_number(averages.clean)}, "
            f"corrupted {_number(averages.corrupted)}",
        ),
    )


@style.drawing
def average_lines(
    averages: Mapping[TraceKind, AverageEffects],
    *,
    window: int | None = None,
    title: str | None = None,
) -> Figure:
    """Draws average indirect effects by layer with the 95 % intervals of their means, in one panel for each kind.

    Args:
      averages: The averages by kind. A class that occurs in no prompt has no line.
      window: The number of layers in a window, to be shown above the panels of windows.
      title: A title above all panels.

    Returns:
      A figure whose one legend is below the panels. The number of prompts and the total effect are named once, above,
      where they are the same for all kinds.

    Raises:
      ValueError: If there are no averages.
      MissingPackageError: If matplotlib is not installed.

    Example:
      >>> from rome_jax.plots import tracing
      >>> from rome_jax.trace import AverageEffects, ClassAverage, TokenClass, TraceKind
      >>> effect = ClassAverage(mean=np.linspace(0, 0.5, 6), band=np.full(6, 0.1), count=8)
      >>> averages = AverageEffects(dict.fromkeys(TokenClass, effect), 0.9, 0.1, 0.8, 0.05, 8, 0)
      >>> tracing.average_lines({TraceKind.HIDDEN: averages}).get_suptitle()
      '8 prompts, total effect 0.8 ± 0.05'
    """
    if not averages:
        raise ValueError("averages is empty: give the average effects of at least one kind.")
    abouts = {kind: f"{_prompts(of)}, {_total(of)}" for kind, of in averages.items()}
    shared = len(set(abouts.values())) == 1
    figure = style.new_figure(style.WIDTH if len(averages) > 1 else 4.2, 2.9)
    panels = figure.subplots(1, len(averages), sharey=True, squeeze=False)[0]
    handles: dict[TokenClass, Any] = {}
    for axes, (kind, average) in zip(panels, averages.items(), strict=True):
        axes.axhline(0, color=Color.GRAY, linewidth=0.6)
        for place, line in average.indirect.items():
            if not line.count:
                continue
            layers = np.arange(len(line.mean))
            look = _LINES[place] | {"markevery": 1 + (len(layers) - 1) // 12}
            (handles[place],) = axes.plot(layers, line.mean, label=place.value, **look)
            interval = np.stack([line.mean - line.band, line.mean + line.band])
            style.band(axes, layers, interval, look["color"])
        axes.set_title(_panel_title(kind, window) + ("" if shared else f"\n{abouts[kind]}"))
        axes.grid()
        _layer_ticks(axes, len(average.indirect[TokenClass.LAST_SUBJECT].mean), most=10)
        axes.set_xlabel("layer" if kind is TraceKind.HIDDEN else "center of the window, layer")
    panels[0].set_ylabel("average indirect effect")
    if handles:
        bands = style.band_patch("95 % interval of the mean")
        shown = [handles[place] for place in TokenClass if place in handles]
        style.legend_below(figure, [*shown, bands], 4 if len(averages) > 1 else 2)
    heading = [] if title is None else [title]
    if shared:
        heading.append(next(iter(abouts.values())))
    if heading:
        figure.suptitle(style.wrap(": ".join(heading), 92 if len(averages) > 1 else 54))
    return figure


@style.drawing
def severed_bars(
    ordinary: ClassAverage, severed: Mapping[Site, ClassAverage], *, title: str | None = None
) -> Figure:
    """Draws the effect of single states at the last subject token, with and without MLPs or attention (figure 3).

    Args:
      ordinary: [L] effects with nothing severed.
      severed: [L] effects by the outputs that were severed, MLP_OUT or ATTN_OUT.
      title: A title instead of the paper's.

    Returns:
      A figure with grouped bars for each layer; whiskers are 95 % intervals of the means.

    Raises:
      ValueError: If `severed` has another site, or another number of layers than `ordinary`.
      MissingPackageError: If matplotlib is not installed.

    Example:
      >>> from rome_jax import Site
      >>> from rome_jax.plots import tracing
      >>> from rome_jax.trace import ClassAverage
      >>> effect = ClassAverage(mean=np.linspace(0.5, 0, 6), band=np.full(6, 0.1), count=8)
      >>> len(tracing.severed_bars(effect, {Site.MLP_OUT: effect}).axes[0].patches)
      12
    """
    for site, average in severed.items():
        if site not in _SEVERED:
            raise ValueError(f"severed has {site!r}: only MLP_OUT and ATTN_OUT can be severed.")
        if average.mean.shape != ordinary.mean.shape:
            raise ValueError(
                f"severed[{site!r}] has {len(average.mean)} layers and ordinary {len(ordinary.mean)}: "
                "give averages of the same model."
            )
    num_layers = len(ordinary.mean)
    series = [(ordinary, _ORDINARY)] + [(severed[site], _SEVERED[site]) for site in severed]
    width = min(style.WIDTH, max(5.2, 1.5 + 0.19 * num_layers))
    figure = style.new_figure(width, 2.6)
    axes = figure.subplots()
    bar_width, bars = 0.84 / len(series), []
    for index, (average, look) in enumerate(series):
        if not average.count:
            continue
        container = axes.bar(
            np.arange(num_layers) + (index - (len(series) - 1) / 2) * bar_width,
            average.mean,
            bar_width,
            yerr=average.band,
            error_kw=style.whiskers(capsize=min(1.5, 24 / num_layers)),
            edgecolor="black",
            linewidth=0.3,
            **look,
        )
        bars.append(container)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.grid(axis="y")
    _layer_ticks(axes, num_layers)
    axes.set_xlabel("layer of the restored hidden state")
    axes.set_ylabel("average indirect effect")
    style.legend_below(figure, bars, len(series))
    if title is None:
        title = "Effect of states at the last subject token with modules severed"
        if ordinary.count:
            prompts = f"{ordinary.count:,} prompt{'s' * (ordinary.count != 1)}"
            title += f"\n{prompts}, whiskers: 95 % interval of the mean"
    axes.set_title(style.wrap(title, _TITLE_LENGTH))
    return figure


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
    axes.set_title(style.wrap(title, _TITLE_LENGTH), fontsize=style.TITLE_SIZE)
    axes.set_xlabel("\n".join(style.wrap(caption, _LABEL_LENGTH) for caption in captions))
    _layer_ticks(axes, values.shape[1])
    _name_rows(axes, rows, bold)
    axes.tick_params(axis="y", length=0)
    labels = axes.get_yticklabels()
    widest = max(label.get_window_extent().width for label in labels) / figure.dpi
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
    rows = [_visible(result.input_tokens[token]) for token in result.tokens]
    return [
        f"{row}*" if marked else row for row, marked in zip(rows, subject, strict=True)
    ], subject


def _score_name(result: TraceResult) -> str:
    """Returns the symbol of the measure, such as p."""
    measure = str(result.provenance.get("measure") or Measure.PROBABILITY)
    return {"probability": "p", "log_probability": "log p"}.get(measure, measure.replace("_", " "))


def _layer_ticks(axes: Axes, num_layers: int, most: int = _MAX_LAYER_TICKS) -> None:
    """Puts a tick at every layer, or at every second, fifth and so on, so that there are at most `most`."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if num_layers <= most * step)
    axes.set_xticks(range(0, num_layers, step))
    axes.set_xlim(-0.5, num_layers - 0.5)


def _layers_label(kind: TraceKind, window: int | None, model: object) -> str:
    """Returns what a column of a heatmap is, in the words of the paper."""
    if kind is TraceKind.HIDDEN:
        where = "single restored layer"
    else:
        size = "" if window is None else f"{window} "
        where = f"center of interval of {size}restored {_RESTORED[kind]} layers"
    return where if model is None else f"{where} within {model}"


def _short_layers_label(kind: TraceKind, window: int) -> str:
    """Returns what a column of a small heatmap is."""
    return "layer" if kind is TraceKind.HIDDEN else f"center of {window}-layer window"


def _panel_title(kind: TraceKind, window: int | None) -> str:
    """Returns what a panel of averages restores, with the size of its windows."""
    if kind is TraceKind.HIDDEN:
        return _PANELS[kind]
    return (
        f"{_PANELS[kind]}, windows"
        if window is None
        else f"{_PANELS[kind]}, {window}-layer windows"
    )


def _prompts(averages: AverageEffects) -> str:
    """Returns the number of prompts in words."""
    return f"{averages.num_cases:,} prompt{'s' * (averages.num_cases != 1)}"


def _total(averages: AverageEffects) -> str:
    """Returns the total effect with half of its 95 % interval."""
    return f"total effect {_number(averages.total)} ± {_number(averages.total_band, 2)}"


def _clean_and_corrupted(result: TraceResult) -> str:
    """Returns the scores of the clean and the corrupted run."""
    return f"clean {_number(result.high_score)}, corrupted {_number(result.low_score)}"


def _number(value: float, digits: int = 3) -> str:
    """Returns a number with three digits, or as many as given."""
    return f"{value:.{digits}g}".replace("-", "−")


def _visible(text: str, length: int = 32) -> str:
    """Returns a token or an answer as one line, with signs for characters that cannot be seen."""
    text = text.strip(" ") or "␣" * len(text) or "∅"
    text = "".join(
        char if char.isprintable() else ascii(char)[1:-1] for char in text.translate(_SIGNS)
    )
    return text if len(text) <= length else f"{text[: length - 1]}…"
