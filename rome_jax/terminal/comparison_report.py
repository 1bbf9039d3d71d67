"""The report of `eval.compare`: the paper's table, in the terminal and in a file, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rome_jax.evaluation import tables
from rome_jax.evaluation.columns import PAPER, Row
from rome_jax.files.artifacts import write_whole


def report(
    rows: Sequence[Row], title: str, output: str | None = None, plot: str | None = None
) -> None:
    """Prints the table, and writes the table and the figure if files are named.

    Args:
      rows: Rows of the table.
      title: Title of the figure.
      output: File for the table, in Markdown.
      plot: File for the figure: .png, .svg or .pdf.

    Example:
      >>> from rome_jax.evaluation.metrics import Estimate
      >>> report([Row("ROME", 4, {"score": Estimate(90.0, 1.0, 4)})], "factworld-gpt2", output="table.md")
      <BLANKLINE>
      run   cases     S
      ROME      4  90.0
      <BLANKLINE>
      S harmonic mean of efficacy, generalization and specificity. Means × 100.
      <BLANKLINE>
      Wrote table.md
    """
    print(f"\n{tables.render(rows)}")
    if output is not None:
        table = tables.render(rows, tables.TableFormat.MARKDOWN)
        write_whole(Path(output), f"{table}\n".encode())
        print(f"\nWrote {output}")
    if plot is not None:
        from rome_jax.plots.results import method_bars
        from rome_jax.plots.style import save_figure

        save_figure(method_bars(rows, PAPER, title=title), plot)
        print(f"\nWrote {plot}")
