"""What comes out of `eval.sequential_edits` and `eval.mass_edits`: a file of numbers, a figure and a few rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rome_jax.models import runs


def report_sequence(report: Mapping[str, Any], directory: str | Path) -> None:
    """Writes sequential.json and sequential.png; prints what was measured after the last edit.

    Args:
      report: of `rome_jax.evaluation.sequence.run_modes`.
      directory: of the files.
    """
    from rome_jax.plots.sequences import plot

    numbers, figure = _places(directory, "sequential")
    runs.write_json(numbers, report)
    plot(report, figure)
    for name, steps in report["runs"].items():
        _print_row(name, steps[-1]["after"])
    print(f"Wrote {numbers} and {figure}")


def report_mass(report: Mapping[str, Any], directory: str | Path) -> None:
    """Writes mass_edits.json and mass_edits.png; prints a row a measurement.

    Args:
      report: of `rome_jax.evaluation.mass_edits.MassEdits.report`.
      directory: of the files.
    """
    from rome_jax.plots.sequences import plot_mass

    numbers, figure = _places(directory, "mass_edits")
    runs.write_json(numbers, report)
    plot_mass(report, figure)
    for name, rows in {"unedited": [report["before"]], **report["runs"]}.items():
        for row in rows:
            _print_row(name, row)
    print(f"Wrote {numbers} and {figure}")


def _places(directory: str | Path, name: str) -> tuple[Path, Path]:
    return Path(directory) / f"{name}.json", Path(directory) / f"{name}.png"


def _print_row(name: str, values: Mapping[str, float]) -> None:
    print(name, *(f"{key} {value:.4g}" for key, value in values.items()), sep="   ")
