"""Average effects by layer: lines with their intervals, and bars with modules severed (figure 3 of the paper).

Axes: L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rome_jax.models.interventions import Site
from rome_jax.plots import style
from rome_jax.plots import trace_labels as labels
from rome_jax.plots.style import Color
from rome_jax.trace.averages import AverageEffects, ClassAverage, TokenClass
from rome_jax.trace.restore import TraceKind

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    abouts = {kind: f"{labels.prompts(of)}, {labels.total(of)}" for kind, of in averages.items()}
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
        axes.set_title(labels.panel_title(kind, window) + ("" if shared else f"\n{abouts[kind]}"))
        axes.grid()
        labels.layer_ticks(axes, len(average.indirect[TokenClass.LAST_SUBJECT].mean), most=10)
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
    labels.layer_ticks(axes, num_layers)
    axes.set_xlabel("layer of the restored hidden state")
    axes.set_ylabel("average indirect effect")
    style.legend_below(figure, bars, len(series))
    if title is None:
        title = "Effect of states at the last subject token with modules severed"
        if ordinary.count:
            prompts = f"{ordinary.count:,} prompt{'s' * (ordinary.count != 1)}"
            title += f"\n{prompts}, whiskers: 95 % interval of the mean"
    axes.set_title(style.wrap(title, labels.TITLE_LENGTH))
    return figure
