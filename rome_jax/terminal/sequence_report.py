"""The reports of `eval.sequential_edits` and `eval.mass_edits`: a file of numbers, a figure, and a few printed rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rome_jax.models import runs


def report_sequence(report: Mapping[str, Any], directory: str | Path) -> None:
    """Writes sequential.json and sequential.png, and prints the measurements after the last edit.

    Args:
      report: As returned by `rome_jax.evaluation.sequence.run_modes`.
      directory: Folder for the files.
    """
    from rome_jax.plots.sequences import plot
    from rome_jax.plots.style import save_figure

    numbers, figure = _paths(directory, "sequential")
    runs.write_json(numbers, report)
    save_figure(plot(report), figure)
    _print_data(report)
    for name, steps in report["runs"].items():
        _print_row(name, steps[-1]["after"])
    print(f"Wrote {numbers} and {figure}")


def report_mass(report: Mapping[str, Any], directory: str | Path) -> None:
    """Writes mass_edits.json and mass_edits.png, and prints one row per measurement.

    Args:
      report: As returned by `rome_jax.evaluation.mass_edits.MassEdits.report`.
      directory: Folder for the files.
    """
    from rome_jax.plots.sequences import plot_mass
    from rome_jax.plots.style import save_figure

    numbers, figure = _paths(directory, "mass_edits")
    runs.write_json(numbers, report)
    save_figure(plot_mass(report), figure)
    _print_data(report["settings"])
    for name, rows in {"unedited": [report["before"]], **report["runs"]}.items():
        for row in rows:
            _print_row(name, row)
    print(f"Wrote {numbers} and {figure}")


def _paths(directory: str | Path, name: str) -> tuple[Path, Path]:
    """Returns the paths of the numbers and of the figure."""
    return Path(directory) / f"{name}.json", Path(directory) / f"{name}.png"


def _print_data(settings: Mapping[str, Any]) -> None:
    """Prints what records of a file were measured with; factworld's measurements need no line."""
    if "dataset" in settings:
        print(f"Data        {settings['dataset']}; perplexity of {settings['perplexity_texts']}")


def _print_row(name: str, values: Mapping[str, float]) -> None:
    """Prints a measurement on one line."""
    print(name, *(f"{key} {value:.4g}" for key, value in values.items()), sep="   ")
