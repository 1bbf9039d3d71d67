"""Tables of summaries, as text, CSV, Markdown or LaTeX: one row per run, below a row for the unedited model."""

from __future__ import annotations

import dataclasses
import enum
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from rome_jax.evaluation import table_formats
from rome_jax.evaluation.columns import COLUMNS, Row
from rome_jax.evaluation.summaries import Source, State, Summary, estimate_metrics
from rome_jax.files.checked import Count, check


class TableFormat(enum.StrEnum):
    """Format of a table."""

    TEXT = "text"
    CSV = "csv"
    MARKDOWN = "markdown"
    LATEX = "latex"


@dataclasses.dataclass
class _Group:
    """Runs on the same model and data: the unedited model's metrics by case, the runs' rows, and their source."""

    unedited: dict[str, dict[str, float]]
    rows: list[Row]
    source: Source | None

    def takes(self, summary: Summary) -> bool:
        """Returns whether a run is on the same model and data.

        If their run.json files do not tell, the unedited model's metrics decide: they have to be equal on all cases
        that both runs have, and there has to be such a case.
        """
        if self.source is not None and summary.source is not None:
            return self.source == summary.source
        shared = self.unedited.keys() & summary.unedited.keys()
        return bool(shared) and all(
            _agree(self.unedited[case], summary.unedited[case]) for case in shared
        )

    def add(self, row: Row, summary: Summary) -> None:
        """Adds a run: its row, and its cases to those of the unedited model."""
        for case, metrics in summary.unedited.items():
            self.unedited.setdefault(case, {}).update(metrics)
        self.rows.append(row)


def make_rows(runs: Mapping[str, Summary]) -> list[Row]:
    """Makes one row for each run, below one row for the unedited model.

    Runs on the same model and data share the row of the unedited model, which is over all of their cases, however many
    cases each run has. If there are several models or data sets, each has a row of its own, followed by its runs.

    Args:
      runs: Summaries by the names that the rows should have.

    Returns:
      The rows from top to bottom. Runs that do not contain scores of the unedited model have no row for it.

    Example:
      >>> from rome_jax.evaluation.summaries import summarize
      >>> correct, wrong = {"rewrite_prompts_exact": [True]}, {"rewrite_prompts_exact": [False]}
      >>> case = {"case_id": 7, "pre": wrong, "post": correct}
      >>> for row in make_rows({"ROME": summarize([case]), "FT": summarize([case])}):
      ...     print(row.name, row.metrics["rewrite_exact"].mean)
      unedited 0.0
      ROME 100.0
      FT 100.0
    """
    groups: list[_Group] = []
    for name, summary in runs.items():
        times = {key: value for key, value in summary.metrics.items() if key == "time"}
        metrics = summary.state(State.POST) | times
        row = Row(name, summary.num_cases, metrics, len(summary.failures))
        group = next((group for group in groups if group.takes(summary)), None)
        if group is None:
            group = _Group({}, [], summary.source)
            groups.append(group)
        group.add(row, summary)
    labels = _labels([group for group in groups if group.unedited])
    table = []
    for group in groups:
        if group.unedited:
            unedited = estimate_metrics(list(group.unedited.values()))
            before = Summary(len(group.unedited), unedited).state(State.PRE)
            table.append(Row(next(labels), len(group.unedited), before))
        table += group.rows
    return table


def _labels(groups: Sequence[_Group]) -> Iterator[str]:
    """Yields the name of each group's unedited row: the model and data if that is unique, else its first run."""
    if len(groups) == 1:
        yield "unedited"
        return
    sources = [group.source and f"{group.source.model}, {group.source.dataset}" for group in groups]
    for source, group in zip(sources, groups, strict=True):
        unique = source is not None and sources.count(source) == 1
        yield f"unedited ({source if unique else group.rows[0].name})"


def _agree(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Returns whether two scores of a case have metrics in common, all of them equal up to rounding."""
    shared = one.keys() & other.keys()
    return bool(shared) and all(
        math.isclose(one[name], other[name], rel_tol=1e-4, abs_tol=1e-4) for name in shared
    )


def render_runs(
    runs: Mapping[str, Summary],
    table_format: TableFormat = TableFormat.TEXT,
    metrics: Collection[str] | None = None,
) -> str:
    """Renders one table for the runs on CounterFact and one for those on zsRE; CSV has both in one table.

    Args:
      runs: Summaries by name.
      table_format: Format of the tables.
      metrics: The metrics to show, as returned by `parse_columns`; by default all.

    Raises:
      ValueError: If there is no run.
    """
    datasets: dict[bool, dict[str, Summary]] = {}
    for name, summary in runs.items():
        datasets.setdefault(_is_zsre(summary), {})[name] = summary
    parts = [make_rows(of_dataset) for of_dataset in datasets.values()]
    if table_format is TableFormat.CSV:
        parts = [list(itertools.chain(*parts))]
    if metrics is not None:
        parts = [select(rows, metrics) for rows in parts]
    return "\n\n".join(render(rows, table_format) for rows in parts)


def _is_zsre(summary: Summary) -> bool:
    """Returns whether a run has accuracies alone; MEMIT's code writes them for CounterFact, too."""
    metrics = summary.metrics
    return "post_rewrite_acc" in metrics and "post_rewrite_success" not in metrics


def run_names(directories: Sequence[Path]) -> list[str]:
    """Returns method and run of each folder, such as ROME/run_000, or whole paths if these are not unique."""
    short = [f"{run.absolute().parent.name}/{run.name}" for run in directories]
    return short if len(set(short)) == len(short) else [str(run) for run in directories]


def select(rows: Sequence[Row], metrics: Collection[str]) -> list[Row]:
    """Returns the same rows with only some of their metrics.

    Example:
      >>> from rome_jax.evaluation.metrics import Estimate
      >>> row = Row("ROME", 4, {"score": Estimate(90.0, 1.0, 4), "time": Estimate(1.0, 0.0, 4)})
      >>> [list(one.metrics) for one in select([row], ["score"])]
      [['score']]
    """
    return [
        dataclasses.replace(
            row, metrics={name: value for name, value in row.metrics.items() if name in metrics}
        )
        for row in rows
    ]


def render(
    rows: Sequence[Row], table_format: TableFormat = TableFormat.TEXT, *, width: int = 120
) -> str:
    """Renders a table, without a newline at its end.

    Each metric is shown with its 95 % interval, if it has one. Columns that no row has are left out.

    Args:
      rows: Rows of runs, or others.
      table_format: LaTeX needs the package booktabs. CSV has full precision, and the ends of the intervals, σ, and the
        number of cases in columns of their own.
      width: Width of text in characters; columns that do not fit follow below.

    Raises:
      ValueError: If there are no rows, there is no such format, or the width is not a whole number of at least 1.

    Example:
      >>> from rome_jax.evaluation.metrics import Estimate
      >>> row = Row("ROME", 4, {"score": Estimate(90.0, 1.0, 4, 85.3, 95.0)})
      >>> print(render([row], TableFormat.MARKDOWN))
      | run  | cases |           Score S |
      | :--- | ----: | ----------------: |
      | ROME |     4 | 90.0 [85.3, 95.0] |
    """
    table_format, width = (
        check(TableFormat, table_format, "table_format"),
        check(Count, width, "width"),
    )
    if not rows:
        raise ValueError("rows is empty: give at least one.")
    columns = [column for column in COLUMNS if any(column.metric in row.metrics for row in rows)]
    match table_format:
        case TableFormat.TEXT:
            return table_formats.text(rows, columns, width)
        case TableFormat.CSV:
            return table_formats.comma_separated(rows)
        case TableFormat.MARKDOWN:
            return table_formats.markdown(rows, columns)
        case TableFormat.LATEX:
            return table_formats.latex(rows, columns)
