"""Compares runs of eval.sequence: a table and a figure with every score by the number of edits in the model.

    python -m eval.compare_sequences --sequences=rome_1,memit_1,alphaedit_1
    python -m eval.compare_sequences --sequences=rome_1,memit_1 --output=table.md --plot=editors.png

The folders in --sequences are those that eval.sequence wrote to, its --output_dir. A run need not be finished. The
scores are those of all earlier edits, or of the newest ones where there are no others, as after the first batch. The
table is in Markdown.
"""

from __future__ import annotations

from pathlib import Path

from eval import cli
from eval.flags import reports, running
from rome_jax.evaluation.sequence_reports import markdown, names_of, read_report
from rome_jax.files.artifacts import write_whole


def main() -> None:
    """Prints or writes the table, and draws the figure."""
    running.check_plot()
    folders = reports.read_sequences()
    read = [read_report(folder) for folder in folders]
    found = dict(zip(names_of(read, folders), read, strict=True))
    table = markdown(found)
    if running.OUTPUT.value is None:
        print(table)
    else:
        write_whole(Path(running.OUTPUT.value), f"{table}\n".encode())
        print(f"Wrote {running.OUTPUT.value}")
    if running.PLOT.value is not None:
        from rome_jax.plots.sequence_comparison import plot_comparison
        from rome_jax.plots.style import save_figure

        save_figure(plot_comparison(found), running.PLOT.value)
        print(f"Wrote {running.PLOT.value}")


PROGRAM = cli.Program(main, takes="sequences output plot".split(), required=("sequences",))

if __name__ == "__main__":
    PROGRAM.run()
