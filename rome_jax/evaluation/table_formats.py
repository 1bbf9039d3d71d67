"""The formats of tables: text, CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
import textwrap
from collections.abc import Sequence

from rome_jax.evaluation.columns import Column, Row
from rome_jax.evaluation.metrics import Estimate

_UNSCALED = ("PPL", "s")


def text(rows: Sequence[Row], columns: Sequence[Column], width: int) -> str:
    """Renders aligned text with a legend; columns beyond the width follow in further blocks, with the names again."""
    names = _aligned(["run", *(row.name for row in rows)], left=True)
    others = [_aligned(["cases", *(row.cases for row in rows)])]
    others += [_aligned(_cells(rows, column, "-", column.symbol)) for column in columns]
    blocks = [[names]]  # lists of columns
    for column in others:
        if len(blocks[-1]) > 1 and sum(2 + len(c[0]) for c in (*blocks[-1], column)) - 2 > width:
            blocks.append([names])
        blocks[-1].append(column)
    tables = [
        "\n".join("  ".join(line).rstrip() for line in zip(*block, strict=True)) for block in blocks
    ]
    return "\n\n".join([*tables, textwrap.fill(_legend(rows, columns), width)])


def _legend(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Returns the meanings of the columns, and what the numbers are."""
    legend = "; ".join(f"{column.symbol} {column.meaning}" for column in columns)
    unscaled = [column.symbol for column in columns if column.symbol in _UNSCALED]
    scale = f"× 100 except {' and '.join(unscaled)}" if unscaled else "× 100"
    legend += f". Means {scale}"
    if any(value.has_interval for row in rows for value in row.metrics.values()):
        legend += ", with 95 % intervals over cases (Wilson for rates, bootstrap for the others)"
    return legend + "."


def comma_separated(rows: Sequence[Row]) -> str:
    """Renders CSV in full precision: mean, ends of the interval, σ, and number of cases of each metric."""
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.metrics))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    parts = ("", "_low", "_high", "_std", "_cases")
    failed = ["failed"] if any(row.num_failed for row in rows) else []
    writer.writerow(
        ["run", "cases", *failed, *(f"{metric}{part}" for metric in metrics for part in parts)]
    )
    for row in rows:
        cells: list[object] = [row.name, row.num_cases, *([row.num_failed] if failed else [])]
        for metric in metrics:
            if (value := row.metrics.get(metric)) is None:
                cells += [""] * len(parts)
            else:
                interval = (value.low, value.high) if value.has_interval else ("", "")
                spread = "" if math.isnan(value.spread) else value.spread
                cells += [value.mean, *interval, spread, value.count]
        writer.writerow(cells)
    return file.getvalue().rstrip("\n")


def markdown(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Renders a Markdown table; headings are the columns' groups and symbols."""
    names = [re.sub(r"([\\`*_|<\[])", r"\\\1", row.name) for row in rows]
    cells = [
        _aligned(["run", *names], left=True),
        _aligned(["cases", *(row.cases for row in rows)]),
    ]
    for column in columns:
        cells.append(_aligned([f"{column.group} {column.symbol}", *_cells(rows, column, "")]))
    first, *others = [len(column[0]) for column in cells]
    rule = [":" + "-" * (first - 1), *("-" * (size - 1) + ":" for size in others)]
    head, *body = zip(*cells, strict=True)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body))


_LATEX_ESCAPES = str.maketrans(
    {character: f"\\{character}" for character in "_%&#${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


def latex(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Renders a LaTeX table for the package booktabs; intervals are in smaller type."""
    groups, rules, start = ["", ""], [], 3
    for group, members in itertools.groupby(columns, key=lambda column: column.group):
        size = len(list(members))
        groups.append(rf"\multicolumn{{{size}}}{{c}}{{{group}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + size - 1}}}")
        start += size
    lines = [
        groups,
        ["Run", "Cases", *(column.symbol for column in columns)],
        *(
            [
                row.name.translate(_LATEX_ESCAPES),
                row.cases,
                *(_latex_cell(row, column) for column in columns),
            ]
            for row in rows
        ),
    ]
    top, symbols, *body = (f"{' & '.join(line)} \\\\" for line in lines)
    return "\n".join(
        [
            "% \\usepackage{booktabs}",
            rf"\begin{{tabular}}{{l{'r' * (len(columns) + 1)}}}",
            r"\toprule",
            top,
            " ".join(rules),
            symbols,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _latex_cell(row: Row, column: Column) -> str:
    """Returns a cell in math mode, or a dash if the row lacks the metric."""
    if (value := row.metrics.get(column.metric)) is None:
        return "--"
    mean, interval = _parts(value, column.form)
    return rf"${mean}\ {{\scriptstyle {interval}}}$" if interval else f"${mean}$"


def cell_text(value: Estimate, form: str = "z.1f") -> str:
    """Returns a mean and its interval as tables show them.

    Args:
      value: The estimate.
      form: Format of its numbers.

    Example:
      >>> cell_text(Estimate(99.5, 7.1, 200, 97.2, 99.9)), cell_text(Estimate(99.5, 0.0, 1))
      ('99.5 [97.2, 99.9]', '99.5')
    """
    return " ".join(filter(None, _parts(value, form)))


def _parts(value: Estimate, form: str) -> tuple[str, str]:
    """Returns the text of a mean and of its interval, which is empty if there is none."""
    mean, low, high = (_number(number, form) for number in (value.mean, value.low, value.high))
    return mean, f"[{low}, {high}]" if value.has_interval else ""


def _number(value: float, form: str) -> str:
    """Formats a number; very large ones in scientific notation."""
    return f"{value:{form if abs(value) < 1e5 else '.1e'}}"


def _cells(rows: Sequence[Row], column: Column, absent: str, head: str | None = None) -> list[str]:
    """Returns a column's cells: means are aligned at their ends, intervals at their beginnings."""
    parts = [] if head is None else [(head, "")]
    for row in rows:
        value = row.metrics.get(column.metric)
        parts.append((absent, "") if value is None else _parts(value, column.form))
    means, intervals = zip(*parts, strict=True)
    if not any(intervals):
        return list(means)
    pairs = zip(_aligned(means), _aligned(intervals, left=True), strict=True)
    return [f"{mean} {interval}" for mean, interval in pairs]


def _aligned(cells: Sequence[str], left: bool = False) -> list[str]:
    """Pads cells to the width of the longest one."""
    width = max(map(len, cells))
    return [cell.ljust(width) if left else cell.rjust(width) for cell in cells]
