"""The Markdown page of a check, built from its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu.runner import Stage

Row = Mapping[str, Any]


def render(stages: Sequence[Stage], rows: Sequence[Row], about: Mapping[str, str]) -> str:
    """Renders the page.

    Args:
      stages: Stages of the check; each becomes a section.
      rows: Measurements, which have a "table", and outcomes of parts, which have a "status".
      about: Entries of the head, by label.

    Example:
      >>> render([], [], {"commit": "abc"}).splitlines()[2]
      '- commit: abc'
    """
    lines = ["# A check on one device", ""]
    lines += [f"- {label}: {value}" for label, value in about.items()] + [""]
    for stage in stages:
        own = [row for row in rows if row["stage"] == stage.name]
        lines += [f"## {stage.name}", "", stage.about, ""]
        tables: dict[str, list[Row]] = {}
        for row in own:
            if "table" in row:
                tables.setdefault(row["table"], []).append(row["row"])
        for name, entries in tables.items():
            lines += [f"**{name}**", "", *table(entries), ""]
        lines += _outcomes([row for row in own if "status" in row])
    return "\n".join(lines).rstrip() + "\n"


def table(entries: Sequence[Row]) -> list[str]:
    """Renders rows as the lines of a Markdown table whose columns are all keys of the rows."""
    columns = list(dict.fromkeys(column for entry in entries for column in entry))
    lines = ["| " + " | ".join(map(_cell, columns)) + " |", "|" + "---|" * len(columns)]
    for entry in entries:
        lines.append("| " + " | ".join(_cell(entry.get(column)) for column in columns) + " |")
    return lines


def _cell(value: Any) -> str:
    """Formats one value."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _outcomes(outcomes: Sequence[Row]) -> list[str]:
    """Renders one line per part, followed by the last output of a part that failed."""
    lines = []
    for outcome in outcomes:
        line = f"- {outcome['part']}: {outcome['status']}, {outcome['seconds']:g} s"
        if outcome["status"] != "failed":
            lines.append(line + (f" ({outcome['message']})" if outcome["message"] else ""))
        else:
            lines += [line, "", "```", outcome["message"].replace("```", "'''"), "```", ""]
    return [*lines, ""] if lines else lines
