"""The report of `eval.sweep`: a table, a CSV file, and a figure of one or two hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rome_jax.evaluation.summaries import Summary
from rome_jax.evaluation.sweep import Sweep, text_table, write_csv
from rome_jax.models.runs import short_name


def report(
    sweep: Sweep, found: Mapping[str, Summary], directory: str | Path, figure_format: str = "pdf"
) -> None:
    """Prints the table of a sweep, writes sweep.csv, and draws the figure for at most two hyperparameters.

    Args:
      sweep: The sweep.
      found: The summaries of the points by name.
      directory: Folder of the sweep.
      figure_format: pdf, svg or png.
    """
    directory = Path(directory)
    write_csv(directory / "sweep.csv", sweep.grid, found)
    print(f"\n{text_table(found)}\n\nWrote {directory / 'sweep.csv'}")
    if len(sweep.grid.axes) > 2:
        print("There is no figure, because it can show only one or two hyperparameters.")
        return
    from rome_jax.plots.style import save_figure
    from rome_jax.plots.sweeps import draw

    path = directory / f"sweep.{figure_format}"
    count = f"{len(sweep.dataset.records)} records"
    title = f"{sweep.algorithm} on {short_name(sweep.model)}, {count}"
    save_figure(draw(sweep.grid, found, title), path)
    print(f"      {path}")
