"""The figures of causal tracing, as in the paper (figures 1 to 3).

Colors are sequential, or those of `style.Color` with a line style and a marker for each, so that the figures can be
read with any color vision and in gray. Text is shown as it is, never read as mathematics.

`trace_heatmaps` draws the heatmaps, and `trace_effects` the lines and bars.
"""

from __future__ import annotations

from rome_jax.plots.trace_effects import average_lines, severed_bars
from rome_jax.plots.trace_heatmaps import average_heatmap, heatmap, heatmaps

__all__ = ["average_heatmap", "average_lines", "heatmap", "heatmaps", "severed_bars"]
