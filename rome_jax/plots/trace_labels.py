"""The words of the figures of causal tracing: titles, axis labels, tokens and numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rome_jax.trace.averages import AverageEffects
from rome_jax.trace.restore import TraceKind
from rome_jax.trace.result import TraceResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESTORED = {TraceKind.HIDDEN: "state", TraceKind.MLP: "MLP", TraceKind.ATTN: "attention"}
PANELS = {
    TraceKind.HIDDEN: "single hidden states",
    TraceKind.MLP: "MLP outputs",
    TraceKind.ATTN: "attention outputs",
}
TITLE_LENGTH, LABEL_LENGTH = 74, 84  # characters of a line above or below a figure
_MAX_LAYER_TICKS = 13
_SIGNS = str.maketrans({"\n": "↵", "\r": "⏎", "\t": "⇥"})


def score_name(result: TraceResult) -> str:
    """Returns the symbol of the measure, such as p."""
    return {"probability": "p", "log_probability": "log p"}.get(
        result.measure, result.measure.replace("_", " ")
    )


def layer_ticks(axes: Axes, num_layers: int, most: int = _MAX_LAYER_TICKS) -> None:
    """Puts a tick at every layer, or at every second, fifth and so on, so that there are at most `most`."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if num_layers <= most * step)
    axes.set_xticks(range(0, num_layers, step))
    axes.set_xlim(-0.5, num_layers - 0.5)


def layers_label(kind: TraceKind, window: int | None, model: object) -> str:
    """Returns what a column of a heatmap is, in the words of the paper."""
    if kind is TraceKind.HIDDEN:
        where = "single restored layer"
    else:
        size = "" if window is None else f"{window} "
        where = f"center of interval of {size}restored {RESTORED[kind]} layers"
    return where if model is None else f"{where} within {model}"


def short_layers_label(kind: TraceKind, window: int) -> str:
    """Returns what a column of a small heatmap is."""
    return "layer" if kind is TraceKind.HIDDEN else f"center of {window}-layer window"


def panel_title(kind: TraceKind, window: int | None) -> str:
    """Returns what a panel of averages restores, with the size of its windows."""
    if kind is TraceKind.HIDDEN:
        return PANELS[kind]
    return (
        f"{PANELS[kind]}, windows" if window is None else f"{PANELS[kind]}, {window}-layer windows"
    )


def prompts(averages: AverageEffects) -> str:
    """Returns the number of prompts in words."""
    return f"{averages.num_cases:,} prompt{'s' * (averages.num_cases != 1)}"


def total(averages: AverageEffects) -> str:
    """Returns the total effect with half of its 95 % interval."""
    return f"total effect {number(averages.total)} ± {number(averages.total_band, 2)}"


def clean_and_corrupted(result: TraceResult) -> str:
    """Returns the scores of the clean and the corrupted run."""
    return f"clean {number(result.high_score)}, corrupted {number(result.low_score)}"


def number(value: float, digits: int = 3) -> str:
    """Returns a number with three digits, or as many as given."""
    return f"{value:.{digits}g}".replace("-", "−")


def visible(text: str, length: int = 32) -> str:
    """Returns a token or an answer as one line, with signs for characters that cannot be seen."""
    text = text.strip(" ") or "␣" * len(text) or "∅"
    text = "".join(
        char if char.isprintable() else ascii(char)[1:-1] for char in text.translate(_SIGNS)
    )
    return text if len(text) <= length else f"{text[: length - 1]}…"
