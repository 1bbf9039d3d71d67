"""What comes out of `eval.compare`: the paper's table, in the terminal and a file, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rome_jax.evaluation import tables
from rome_jax.files.artifacts import write_whole


def report(
    rows: Sequence[tables.Row], title: str, output: str | None = None, plot: str | None = None
) -> None:
    """Prints the table; writes it, and draws it, where files are named.

    Args:
      rows: of the table.
      title: of the figure.
      output: a file for the table, in Markdown.
      plot: a file for the figure: .png, .svg or .pdf.
    """
    print(f"\n{tables.render(rows, width=120)}")
    if output is not None:
        table = tables.render(rows, tables.TableFormat.MARKDOWN)
        write_whole(Path(output), f"{table}\n".encode())
        print(f"\nWrote {output}")
    if plot is not None:
        from rome_jax.plots.results import method_bars
        from rome_jax.plots.tracing import save_figure

        save_figure(method_bars(rows, tables.PAPER, title=title), plot)
        print(f"\nWrote {plot}")
