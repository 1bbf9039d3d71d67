"""Tables of summaries, as text, CSV, Markdown or LaTeX: a row a run, and one for the unedited model."""

from __future__ import annotations

import csv
import dataclasses
import enum
import io
import itertools
import math
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from rome_jax.evaluation.metrics import Estimate
from rome_jax.evaluation.summaries import State, Summary


class TableFormat(enum.StrEnum):
    """How a table is written."""

    TEXT = "text"
    CSV = "csv"
    MARKDOWN = "markdown"
    LATEX = "latex"


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
      name: of a run, or of what a sweep varies.
      num_cases: behind it.
      metrics: by name, without `pre_` or `post_`.
    """

    name: str
    num_cases: int
    metrics: Mapping[str, Estimate]


@dataclasses.dataclass(frozen=True)
class _Column:
    metric: str
    group: str  # as in the paper
    symbol: str
    meaning: str
    form: str = "z.1f"


# S, ES to NM, GE and RS are the symbols of the paper's CounterFact table (Meng et al. 2022, arXiv 2202.05262).
_COLUMNS = (
    _Column("score", "Score", "S", "harmonic mean of efficacy, generalization and specificity"),
    _Column("rewrite_success", "Efficacy", "ES", "new target preferred"),
    _Column("rewrite_diff", "Efficacy", "EM", "p(new) - p(true)"),
    _Column("rewrite_acc", "Efficacy", "EA", "target tokens right"),
    _Column("paraphrase_success", "Generalization", "PS", "new target preferred on paraphrases"),
    _Column("paraphrase_diff", "Generalization", "PM", "p(new) - p(true) on them"),
    _Column("paraphrase_acc", "Generalization", "PA", "target tokens right on paraphrases"),
    _Column("neighborhood_success", "Specificity", "NS", "true target preferred of neighbors"),
    _Column("neighborhood_diff", "Specificity", "NM", "p(true) - p(new) of neighbors"),
    _Column("neighborhood_acc", "Specificity", "SA", "target tokens right of neighbors"),
    _Column("ngram_entropy", "Fluency", "GE", "n-gram entropy in bits"),
    _Column("reference_score", "Consistency", "RS", "TF-IDF similarity to reference texts"),
    _Column("essence_score", "Essence", "PPL", "perplexity of the subject's text"),
    _Column("attribute_success", "Attribute", "AS", "new target preferred of those that have it"),
    _Column("rewrite_acc_by_token", "By token", "ET", "EA of token ids"),
    _Column("paraphrase_acc_by_token", "By token", "PT", "PA of token ids"),
    _Column("neighborhood_acc_by_token", "By token", "ST", "SA of token ids"),
    _Column("rewrite_exact", "Exact match", "EX", "greedy text says the new target"),
    _Column("paraphrase_exact", "Exact match", "PX", "it does on paraphrases"),
    _Column("portability_exact", "Portability", "PO", "it says what follows from the new fact"),
    _Column("time", "Time", "s", "seconds an edit", "z.3f"),
)

# The columns of the paper's tables: symbol -> metric. CounterFact has no accuracies, zsRE little else.
PAPER: Mapping[str, str] = {
    column.symbol: column.metric
    for column in _COLUMNS
    if column.group
    in ("Score", "Efficacy", "Generalization", "Specificity", "Fluency", "Consistency")
}


def make_rows(runs: Mapping[str, Summary]) -> list[Row]:
    """A row for each run, below one for the unedited model, which runs share that agree on it.

    They agree if they have as many cases, and what both measured is equal to 0.01 of the printed × 100. Runs of other
    cases or another model come below a row of their own.

    Args:
      runs: summaries by the names that the rows should have.

    Example:
      >>> [row.name for row in make_rows({"ROME": summarize(cases)})]  # doctest: +SKIP
      ['unedited', 'ROME']
    """
    groups: list[tuple[dict[str, Estimate], list[Row]]] = []
    for name, summary in runs.items():
        before = summary.state(State.PRE)
        times = {key: value for key, value in summary.metrics.items() if key == "time"}
        row = Row(name, summary.num_cases, summary.state(State.POST) | times)
        for unedited, rows in groups:
            if row.num_cases == rows[0].num_cases and all(
                _same(unedited[metric], before[metric]) for metric in unedited.keys() & before
            ):
                unedited |= before
                rows.append(row)
                break
        else:
            groups.append((before, [row]))
    table = []
    for unedited, rows in groups:
        if unedited:
            name = "unedited" if len(groups) == 1 else f"unedited ({rows[0].name})"
            table.append(Row(name, rows[0].num_cases, unedited))
        table += rows
    return table


def render_runs(runs: Mapping[str, Summary], table_format: TableFormat = TableFormat.TEXT) -> str:
    """One table for CounterFact and one for zsRE, of the runs that are there; CSV has them in one.

    Args:
      runs: their summaries by name.
      table_format: of the tables.
    """
    datasets: dict[bool, dict[str, Summary]] = {}
    for name, summary in runs.items():
        datasets.setdefault("post_rewrite_acc" in summary.metrics, {})[name] = summary
    parts = [make_rows(of_dataset) for of_dataset in datasets.values()]
    if table_format is TableFormat.CSV:
        parts = [list(itertools.chain(*parts))]
    return "\n\n".join(render(rows, table_format) for rows in parts)


def run_names(directories: Sequence[Path]) -> list[str]:
    """Method and run of each folder, such as ROME/run_000; whole paths where these are not unique."""
    short = [f"{run.absolute().parent.name}/{run.name}" for run in directories]
    return short if len(set(short)) == len(short) else [str(run) for run in directories]


def select(rows: Sequence[Row], metrics: Collection[str]) -> list[Row]:
    """The same rows with some of their metrics.

    Example:
      >>> select([Row("ROME", 4, {"score": Estimate(90.0, 1.0, 4), "time": Estimate(1.0, 0.0, 4)})], ["score"])
      [Row(name='ROME', num_cases=4, metrics={'score': Estimate(mean=90.0, spread=1.0, count=4)})]
    """
    return [
        dataclasses.replace(
            row, metrics={name: value for name, value in row.metrics.items() if name in metrics}
        )
        for row in rows
    ]


def _same(one: Estimate, other: Estimate) -> bool:
    return one.count == other.count and all(
        math.isclose(a, b, rel_tol=1e-4, abs_tol=0.01) or (math.isnan(a) and math.isnan(b))
        for a, b in ((one.mean, other.mean), (one.spread, other.spread))
    )


def render(
    rows: Sequence[Row], table_format: TableFormat = TableFormat.TEXT, *, width: int = 110
) -> str:
    """The table, without a newline at its end.

    Each metric is shown with its 95 % interval. Columns that no row has are left out; a single case has no interval.

    Args:
      rows: of runs, or made otherwise.
      table_format: LaTeX needs the package booktabs; CSV has full precision and all metrics.
      width: of text, whose further columns follow below the first.

    Raises:
      ValueError: no rows.

    Example:
      >>> print(render([Row("ROME", 4, {"score": Estimate(90.0, 1.0, 4)})], TableFormat.MARKDOWN))
      | run  | cases |  Score S |
      | :--- | ----: | -------: |
      | ROME |     4 | 90.0±1.0 |
    """
    if not rows:
        raise ValueError("rows is empty: give at least one.")
    columns = [column for column in _COLUMNS if any(column.metric in row.metrics for row in rows)]
    match table_format:
        case TableFormat.TEXT:
            return _text(rows, columns, width)
        case TableFormat.CSV:
            return _csv(rows)
        case TableFormat.MARKDOWN:
            return _markdown(rows, columns)
        case TableFormat.LATEX:
            return _latex(rows, columns)


def _cell(row: Row, column: _Column, plus_minus: str = "±") -> str:
    """Mean and interval; a lone mean where there is no interval; nothing where the row lacks the metric."""
    if (value := row.metrics.get(column.metric)) is None:
        return ""
    mean, half = _number(value.mean, column.form), _number(value.half_width, column.form)
    return (
        f"{mean}{plus_minus}{half}" if value.count > 1 and math.isfinite(value.half_width) else mean
    )


def _number(value: float, form: str) -> str:
    return f"{value:{form if abs(value) < 1e5 else '.1e'}}"


def _aligned(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """Pads cells to the widths of their columns, the first one's to the right."""
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return [
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    ]


def _text(rows: Sequence[Row], columns: Sequence[_Column], width: int) -> str:
    head = ["run", "cases", *(column.symbol for column in columns)]
    body = [
        [row.name, str(row.num_cases), *(_cell(row, column) or "-" for column in columns)]
        for row in rows
    ]
    names, *others = zip(*_aligned([head, *body]), strict=True)
    blocks = [[names]]  # of columns; each block has the names again
    for column in others:
        if len(blocks[-1]) > 1 and sum(2 + len(c[0]) for c in (*blocks[-1], column)) - 2 > width:
            blocks.append([names])
        blocks[-1].append(column)
    tables = ["\n".join("  ".join(line) for line in zip(*block, strict=True)) for block in blocks]
    legend = "; ".join(f"{column.symbol} {column.meaning}" for column in columns)
    unscaled = [column.symbol for column in columns if column.symbol in ("PPL", "s")]
    scale = f"× 100 but {' and '.join(unscaled)}" if unscaled else "× 100"
    legend = f"{legend}. Means {scale}, ± 1.96 σ/√n over cases."
    return "\n\n".join([*tables, textwrap.fill(legend, width)])


def _csv(rows: Sequence[Row]) -> str:
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.metrics))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    of_metric = ("", "_half_width", "_std", "_cases")
    writer.writerow(["run", "cases", *(f"{m}{part}" for m in metrics for part in of_metric)])
    for row in rows:
        cells: list[object] = [row.name, row.num_cases]
        for metric in metrics:
            if (value := row.metrics.get(metric)) is None:
                cells += [""] * len(of_metric)
            else:
                cells += [value.mean, value.half_width, value.spread, value.count]
        writer.writerow(cells)
    return file.getvalue().rstrip("\n")


def _markdown(rows: Sequence[Row], columns: Sequence[_Column]) -> str:
    head = ["run", "cases", *(f"{column.group} {column.symbol}" for column in columns)]
    body = [
        [
            re.sub(r"([\\`*_|<\[])", r"\\\1", row.name),
            str(row.num_cases),
            *(_cell(row, column) for column in columns),
        ]
        for row in rows
    ]
    head, *body = _aligned([head, *body])
    rule = [":" + "-" * (len(head[0]) - 1), *("-" * (len(cell) - 1) + ":" for cell in head[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body))


_LATEX_ESCAPES = str.maketrans(
    {character: f"\\{character}" for character in "_%&#${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


def _latex(rows: Sequence[Row], columns: Sequence[_Column]) -> str:
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
                str(row.num_cases),
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


def _latex_cell(row: Row, column: _Column) -> str:
    return f"${cell}$" if (cell := _cell(row, column, r" \pm ")) else "--"
