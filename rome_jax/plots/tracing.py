"""The figures of causal tracing, as in the paper (figures 1 to 3). Needs the extra `plot`.

Colours are sequential, or Okabe and Ito's with line styles and markers beside them: they differ for every eye and in
grey. Text is shown as it is, never read as mathematics.

Axes: T restored tokens, L layers.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rome_jax.files.artifacts import write_whole
from rome_jax.models.interventions import Site
from rome_jax.trace.averages import AverageEffects, ClassAverage, TokenClass
from rome_jax.trace.restore import Measure, TraceKind
from rome_jax.trace.result import TraceResult

try:
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"figures need matplotlib ({error}): pip install 'rome_jax[plot]'.", name=error.name
    ) from error

_COLOR_MAPS = {TraceKind.HIDDEN: "Purples", TraceKind.MLP: "Greens", TraceKind.ATTN: "Reds"}
_RESTORED = {TraceKind.HIDDEN: "state", TraceKind.MLP: "MLP", TraceKind.ATTN: "attention"}
_PANELS = {
    TraceKind.HIDDEN: "single hidden states",
    TraceKind.MLP: "windows of MLP outputs",
    TraceKind.ATTN: "windows of attention outputs",
}
_LINES = {
    TokenClass.FIRST_SUBJECT: {"color": "#56B4E9", "linestyle": ":", "marker": "^"},
    TokenClass.MIDDLE_SUBJECT: {"color": "#009E73", "linestyle": "--", "marker": "v"},
    TokenClass.LAST_SUBJECT: {"color": "#D55E00", "linestyle": "-", "marker": "o"},
    TokenClass.FIRST_SUBSEQUENT: {"color": "#CC79A7", "linestyle": "-.", "marker": "D"},
    TokenClass.FURTHER: {"color": "#E69F00", "linestyle": (0, (1, 3)), "marker": "x"},
    TokenClass.LAST: {"color": "#0072B2", "linestyle": (0, (6, 2)), "marker": "s"},
}
# Dark, light and middle in grey.
_ORDINARY = {"color": "#54278F", "label": "effect of single states"}
_SEVERED = {
    Site.MLP_OUT: {"color": "#8FD19E", "label": "with MLP severed"},
    Site.ATTN_OUT: {"color": "#E6550D", "label": "with attention severed"},
}

_SUFFIXES = (".pdf", ".svg", ".png")
_STYLE = {"font.size": 9, "axes.titlesize": 10, "text.usetex": False}
# DejaVu comes with matplotlib; the others, where there are any, have the scripts that it lacks.
_FONT = "DejaVu Sans"
_FURTHER_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans Devanagari", "Noto Sans"),
    *("Hiragino Sans", "Microsoft YaHei", "WenQuanYi Zen Hei", "Arial Unicode MS"),
)
_TITLE_LENGTH, _LABEL_LENGTH = 66, 72  # characters of a line above or below a heatmap
_SIGNS = str.maketrans({"\n": "↵", "\r": "⏎", "\t": "⇥"})


def heatmap(result: TraceResult, *, title: str | None = None) -> Figure:
    """Draws the scores of one prompt: tokens down, layers across (paper, figure 1).

    Colours begin at the corrupted score; the subject's tokens are bold and have an asterisk.

    Args:
      result: T tokens by L layers. Its provenance may name the `model` and the `measure`.
      title: another than the paper's.

    Example:
      >>> save_figure(heatmap(load_trace("case.npz")), "case.pdf")  # doctest: +SKIP
    """
    first, stop = result.subject_range
    subject = [first <= token < stop for token in result.tokens]
    rows = [_visible(result.input_tokens[token]) for token in result.tokens]
    rows = [f"{row}*" if marked else row for row, marked in zip(rows, subject, strict=True)]
    measure = str(result.provenance.get("measure") or Measure.PROBABILITY)
    score = {"probability": "p", "log_probability": "log p"}.get(measure, measure.replace("_", " "))
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
            f"{score}({_visible(result.answer, 28)}): clean {_number(result.high_score)}, "
            f"corrupted {_number(result.low_score)}",
        ),
    )


def average_heatmap(
    averages: AverageEffects,
    kind: TraceKind,
    *,
    window: int | None = None,
    model: str | None = None,
    title: str | None = None,
) -> Figure:
    """Draws average indirect effects: six classes of tokens down, layers across (paper, figure 2).

    Colours begin at no effect; a class without a token is hatched.

    Args:
      averages: of one kind.
      kind: which.
      window: layers of a window, if the figure is to say it.
      model: its name, if the figure is to say it.
      title: another than the paper's.

    Example:
      >>> average_heatmap(average_effects(cases), Kind.MLP, window=10)  # doctest: +SKIP
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
            f"{_total(averages)}: clean {_number(averages.clean)}, "
            f"corrupted {_number(averages.corrupted)}",
        ),
    )


def average_lines(
    averages: Mapping[TraceKind, AverageEffects], *, title: str | None = None
) -> Figure:
    """Draws average indirect effects by layer with their 95 % bands, a panel a kind.

    Args:
      averages: by kind; a class without a token has no line.
      title: above all panels.

    Raises:
      ValueError: no averages.

    Example:
      >>> average_lines({Kind.HIDDEN: average_effects(cases)})  # doctest: +SKIP
    """
    if not averages:
        raise ValueError("averages is empty: give the average effects of one kind at least.")
    with _style():
        width = max(4.8, 3.4 * len(averages))
        figure = Figure(figsize=(width, 3.8), layout="constrained")
        panels = figure.subplots(1, len(averages), sharey=True, squeeze=False)[0]
        handles = {}
        for axes, (kind, average) in zip(panels, averages.items(), strict=True):
            axes.axhline(0, color="0.6", linewidth=0.8)
            for place, line in average.indirect.items():
                if not line.count:
                    continue
                layers = np.arange(len(line.mean))
                style = _LINES[place] | {"label": place.value, "markersize": 4, "linewidth": 1.3}
                style["markevery"] = 1 + (len(layers) - 1) // 12
                (handles[place],) = axes.plot(layers, line.mean, **style)
                band = line.mean - line.band, line.mean + line.band
                axes.fill_between(layers, *band, color=style["color"], alpha=0.2, linewidth=0)
            axes.set_title(f"{_PANELS[kind]}\n{_prompts(average)}\n{_total(average)}", fontsize=9)
            axes.grid(alpha=0.3)
            _layer_ticks(axes, len(average.indirect[TokenClass.LAST_SUBJECT].mean))
            axes.set_xlabel("layer" if kind is TraceKind.HIDDEN else "center of the window, layer")
        panels[0].set_ylabel("average indirect effect")
        if handles:
            handles = [handles[place] for place in TokenClass if place in handles]
            columns = 3 if len(averages) > 1 else 2
            figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
        if title is not None:
            figure.suptitle(_wrap(title, int(11 * width)), fontsize=11, parse_math=False)
    return figure


def severed_bars(
    ordinary: ClassAverage, severed: Mapping[Site, ClassAverage], *, title: str | None = None
) -> Figure:
    """Draws the effect of single states at the subject's last token, with and without MLP or attention (figure 3).

    Args:
      ordinary: [L], nothing severed.
      severed: [L] each, by what was: MLP_OUT, ATTN_OUT.
      title: another than the paper's.

    Raises:
      ValueError: another site, or other layers than those of `ordinary`.

    Example:
      >>> severed_bars(single, {Site.MLP_OUT: no_mlp, Site.ATTN_OUT: no_attention})  # doctest: +SKIP
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
    with _style():
        figure = Figure(figsize=(max(5.8, 1.5 + 0.19 * num_layers), 3.2), layout="constrained")
        axes = figure.subplots()
        width = 0.84 / len(series)
        for index, (average, style) in enumerate(series):
            if not average.count:
                continue
            axes.bar(
                np.arange(num_layers) + (index - (len(series) - 1) / 2) * width,
                average.mean,
                width,
                yerr=average.band,
                error_kw={"ecolor": "black", "elinewidth": 0.7, "capsize": 1, "capthick": 0.7},
                edgecolor="black",
                linewidth=0.3,
                **style,
            )
        axes.axhline(0, color="black", linewidth=0.8)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        _layer_ticks(axes, num_layers)
        axes.set_xlabel("layer at which the single hidden state is restored")
        axes.set_ylabel("average indirect effect")
        if axes.containers:
            figure.legend(loc="outside lower center", ncols=len(series), frameon=False)
        if title is None:
            title = "Effect of states at the last subject token with modules severed"
        axes.set_title(_wrap(title, _TITLE_LENGTH), parse_math=False)
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure, whole or not at all; the same figure gives the same bytes.

    Args:
      figure: from this module.
      path: ends in .pdf, .svg or .png; its folder is made. Text stays text in the first two.

    Raises:
      ValueError: another suffix.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(f"path={str(path)!r} must end in one of {', '.join(_SUFFIXES)}.")
    dates = {".pdf": {"CreationDate": None, "ModDate": None}, ".svg": {"Date": None}, ".png": {}}
    options = {"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "rome_jax"}
    image = io.BytesIO()
    with _style(options):
        figure.savefig(
            image,
            format=suffix[1:],
            metadata=dates[suffix],
            dpi=200,
            bbox_inches="tight",  # what stands out is not cut off
        )
    write_whole(path, image.getvalue())


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
    bold: Sequence[bool] | None = None,
) -> Figure:
    """Colours for values [rows, L] from `low` on; NaN is hatched."""
    finite = values[np.isfinite(values)]
    # Next to nothing must not look like much: neither beside larger negative effects, nor beside the total effect.
    reach = float(np.abs(finite - low).max(initial=0))
    top = min(low + reach, float(finite.max(initial=high)))
    if top - low <= max(1e-3 * abs(high - low), 1e-6):
        top = max(high, low + 1e-3)
    with _style():
        height = max(2.6, 1.2 + 0.18 * len(rows))
        figure = Figure(figsize=(5.8, height), layout="constrained")
        axes = figure.subplots()
        if finite.size < values.size:
            axes.patch.set(facecolor="white", edgecolor="0.7", hatch="////", linewidth=0)
        cells = axes.pcolormesh(
            *(np.arange(n + 1) - 0.5 for n in reversed(values.shape)),
            np.ma.masked_invalid(values),
            cmap=_COLOR_MAPS[kind],
            vmin=low,
            vmax=top,
            edgecolors="face",  # no seams between the cells in viewers of PDF and SVG
            linewidth=0.3,
        )
        axes.invert_yaxis()
        axes.set_title(_wrap(title, _TITLE_LENGTH), parse_math=False)
        lines = [_wrap(caption, _LABEL_LENGTH) for caption in captions]
        axes.set_xlabel("\n".join(lines), parse_math=False)
        _layer_ticks(axes, values.shape[1])
        axes.set_yticks(range(len(rows)), rows, parse_math=False)
        axes.tick_params(axis="y", length=0)
        labels = axes.get_yticklabels()
        for label, strong in zip(labels, bold or [False] * len(rows), strict=True):
            label.set_fontweight("bold" if strong else "normal")
        widest = max(label.get_window_extent().width for label in labels) / figure.dpi
        figure.set_size_inches(5.4 + widest, height)  # the table is as wide beside any labels
        bar = figure.colorbar(
            cells,
            ax=axes,
            extend="min" if (finite < low).any() else "neither",
            shrink=min(1.0, 3 / height),
            ticks=MaxNLocator(5, steps=(1, 2, 5, 10)),
        )
        bar.set_label(color_label, parse_math=False)
    return figure


def _style(more: Mapping[str, object] | None = None):
    """The settings in which figures are made and written."""
    installed = set(font_manager.get_font_names())
    fonts = [_FONT, *(font for font in _FURTHER_FONTS if font in installed), "sans-serif"]
    return matplotlib.rc_context(_STYLE | {"font.family": fonts} | dict(more or {}))


def _layer_ticks(axes: Axes, num_layers: int) -> None:
    """A tick at every layer, or at every second, fifth and so on: at most 13."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if num_layers <= 13 * step)
    axes.set_xticks(range(0, num_layers, step))
    axes.set_xlim(-0.5, num_layers - 0.5)


def _layers_label(kind: TraceKind, window: int | None, model: object) -> str:
    """What a column is."""
    if kind is TraceKind.HIDDEN:
        where = "single restored layer"
    else:
        size = "" if window is None else f"{window} "
        where = f"center of interval of {size}restored {_RESTORED[kind]} layers"
    return where if model is None else f"{where} within {model}"


def _prompts(averages: AverageEffects) -> str:
    return f"{averages.num_cases:,} prompt{'s' * (averages.num_cases != 1)}"


def _total(averages: AverageEffects) -> str:
    return f"total effect {_number(averages.total)} ± {_number(averages.total_band)}"


def _number(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}".replace("-", "−")


def _visible(text: str, length: int = 32) -> str:
    """A token or an answer in one line, with signs for what cannot be seen."""
    text = text.strip(" ") or "␣" * len(text) or "∅"
    text = "".join(
        char if char.isprintable() else ascii(char)[1:-1] for char in text.translate(_SIGNS)
    )
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _wrap(text: str, length: int) -> str:
    """Breaks lines that are too long."""
    return "\n".join(textwrap.fill(line, length) for line in text.splitlines())
