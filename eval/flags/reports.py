"""The columns of tables, and the sizes of the reports on the embedded models."""

from __future__ import annotations

from absl import flags

from eval.flags import define
from rome_jax.evaluation.columns import parse_columns
from rome_jax.evaluation.mass_edits import MOST
from rome_jax.evaluation.tables import TableFormat

COLUMNS = flags.DEFINE_list(
    "columns",
    None,
    "Columns of the table: paper for those of the paper (S, ES, EM, PS, PM, NS, NM, GE, RS; for zsRE the accuracies), "
    "full for all, or symbols such as ES,PS,NS. Default: paper, and full for CSV.",
)
SWEEP_CASES = flags.DEFINE_integer(
    "num_sweep_cases",
    100,
    "Number of tuning requests for each layer of the sweep; 0 leaves out the sweep.",
    lower_bound=0,
    upper_bound=define.MOST,
)
TRACED = flags.DEFINE_integer(
    "num_traced",
    100,
    "Number of facts to trace; 0 leaves out tracing.",
    lower_bound=0,
    upper_bound=define.MOST,
)
COUNTS = flags.DEFINE_list(
    "counts",
    ["1", "10", "30", "100", "300", "1000"],
    f"Numbers of edits at which the model is measured, each from 1 to {MOST}.",
)
EVERY = flags.DEFINE_integer(
    "every", 10, "Number of edits between two measurements.", lower_bound=1, upper_bound=define.MOST
)


def read_columns(table_format: TableFormat) -> tuple[str, ...]:
    """Returns the metrics that --columns names.

    Args:
      table_format: Format of the table, which decides the default.

    Raises:
      ValueError: If a column is unknown.
    """
    default = "full" if table_format is TableFormat.CSV else "paper"
    return parse_columns([default] if COLUMNS.value is None else COLUMNS.value)
