"""The results of the benchmark, on disk and as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rome_jax.files.artifacts import write_whole

GIB = 2**30
RESULTS = "results.json"
BEGIN, END = "<!-- tables of benchmarks.real_size -->", "<!-- end of the tables -->"
WHAT = {
    "load": "load",
    "forward": "one forward pass, 2 × 16 tokens",
    "edit": "one edit, two gradient steps",
    "trace": "one traced place, 10 noise samples",
    "score": "one scored batch of 4 cases",
    "merge": "one merge into a copy",
    "merge, donated": "one merge in place",
}

Row = Mapping[str, Any]


def read_results(directory: Path) -> list[Row]:
    """Reads the results of earlier runs; a missing file has none."""
    path = directory / RESULTS
    return json.loads(path.read_text()) if path.is_file() else []


def add_result(directory: Path, row: Row) -> None:
    """Writes a result to disk. It replaces an earlier one of the same run and stage.

    Args:
      directory: Folder of the results.
      row: Figures of one stage, with the "title" of its run and its "stage".
    """
    rows = [
        old
        for old in read_results(directory)
        if (old["title"], old["stage"]) != (row["title"], row["stage"])
    ]
    write_whole(directory / RESULTS, (json.dumps([*rows, row], indent=1) + "\n").encode())


def tables(rows: Sequence[Row]) -> str:
    """Renders one table per run, whose rows are the stages in their fixed order.

    Args:
      rows: Results, in any order.

    Example:
      >>> row = {"title": "gpt2-xl, float32", "stage": "load", "seconds": 9.96, "compile_s": 0, "peak": 6 * GIB}
      >>> print(tables([row | {"weights": 5.8 * GIB}]))
      **gpt2-xl, float32** (weights 5.80 GiB)
      <BLANKLINE>
      | job | s | of which compiling | peak, GiB |
      |---|---|---|---|
      | load | 10.0 | 0.0 | 6.00 |
    """
    blocks = []
    for title in dict.fromkeys(row["title"] for row in rows):
        own = {row["stage"]: row for row in rows if row["title"] == title}
        weights = own.get("load", {}).get("weights")
        about = "" if weights is None else f" (weights {weights / GIB:.2f} GiB)"
        lines = [f"**{title}**{about}", ""]
        lines += ["| job | s | of which compiling | peak, GiB |", "|---|---|---|---|"]
        for stage, what in WHAT.items():
            if stage in own:
                row = own[stage]
                figures = f"{row['seconds']:.1f} | {row['compile_s']:.1f} | {row['peak'] / GIB:.2f}"
                lines.append(f"| {what} | {figures} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def write_report(page: Path, rows: Sequence[Row]) -> None:
    """Replaces the tables of a page.

    Args:
      page: Markdown file with a line `BEGIN` and a line `END`.
      rows: Results.

    Raises:
      ValueError: If the page does not have both lines.
    """
    text = page.read_text()
    if BEGIN not in text or END not in text.split(BEGIN, 1)[-1]:
        raise ValueError(
            f"--report={page} has no place for tables: add the lines {BEGIN!r} and {END!r}."
        )
    before, rest = text.split(BEGIN, 1)
    content = f"{before}{BEGIN}\n\n{tables(rows)}\n\n{END}{rest.split(END, 1)[1]}"
    write_whole(page, content.encode())
