"""The columns of tables, and the sizes of the reports on the embedded models."""

from __future__ import annotations

from absl import flags

from eval.flags import define
from rome_jax.evaluation.columns import parse_columns
from rome_jax.evaluation.sequence import read_counts
from rome_jax.evaluation.sequence_measurement import measure_points
from rome_jax.evaluation.tables import TableFormat
from rome_jax.files.checked import shown

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
    None,
    "Numbers of edits at which the model is measured, at the end of the batch that reaches each. Default: --every.",
)
EVERY = flags.DEFINE_integer(
    "every",
    10,
    "Number of batches of edits between two measurements.",
    lower_bound=1,
    upper_bound=define.MOST,
)
SEQUENCES = flags.DEFINE_list(
    "sequences",
    None,
    "Folders of eval.sequence runs, separated by commas, in the order of the table.",
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


def read_sequences() -> list[str]:
    """Returns the folders that --sequences names.

    Raises:
      ValueError: If it names none, or a name is empty.
    """
    folders = [folder.strip() for folder in SEQUENCES.value]
    if not all(folders) or not folders:
        raise ValueError(
            f"--sequences={shown(','.join(folders))} has an empty name: give folders of eval.sequence runs, such as "
            "rome_1,memit_1."
        )
    return folders


def read_points(num_edits: int, batch_size: int) -> tuple[int, ...]:
    """Returns the numbers of edits at which eval.sequence measures a model, by --counts or --every.

    Args:
      num_edits: Number of all edits.
      batch_size: Number of edits in a batch.

    Raises:
      ValueError: If both flags are given, or a count is not a whole number from 1 to `num_edits`.
    """
    if COUNTS.value is None:
        return measure_points(num_edits, batch_size, every=EVERY.value)
    if EVERY.present:
        raise ValueError("--counts and --every both say when to measure: leave one out.")
    counts = read_counts(COUNTS.value, num_edits)
    return measure_points(num_edits, batch_size, counts=counts)
