"""The size of a run, its batches, and the places of its results."""

from __future__ import annotations

from pathlib import Path

from absl import flags

from eval.flags import define
from rome_jax.evaluation.scoring import MAX_TOKENS as DEFAULT_TOKENS
from rome_jax.evaluation.tables import TableFormat
from rome_jax.files.places import check_writable
from rome_jax.moments.files import DTYPES
from rome_jax.plots.style import check_figure_path, check_matplotlib

CASES = flags.DEFINE_integer(
    "num_cases",
    None,
    "Number of cases, edits or prompts, counted from the start of the data. If no default is shown: 100 for a "
    "factworld model, otherwise all.",
    lower_bound=1,
    upper_bound=define.MOST,
)
define.alias("num_cases", "dataset_size_limit", "num_records", "num_prompts", "num_edits")
GENERATION = flags.DEFINE_bool(
    "generation", True, "Generate texts and measure fluency, consistency and essence; much slower."
)
define.alias("generation", "generation_tests")
define.opposite("generation", "skip_generation_tests")
SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of everything that is random.", lower_bound=0, upper_bound=2**32 - 1
)

BATCH = flags.DEFINE_integer(
    "batch_size",
    32,
    "Number of cases per batch of edits and scores, of edits that eval.sequence writes together, or of examples per "
    "training step. If no default is shown: all edits in one batch.",
    lower_bound=1,
    upper_bound=define.MOST,
)
CHUNK = define.DEFINE_integer_or_auto(
    "chunk_size",
    8,
    "Number of requests that are optimized together; bounds the memory. The word auto takes what fits the device, up "
    "to the size at which edits are fastest; eval.plan says what fits.",
    lower_bound=1,
)
MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens",
    DEFAULT_TOKENS,
    "Number of tokens, padding included, in one forward pass or in the cache of one generation; bounds the memory.",
    lower_bound=256,
    upper_bound=define.MOST,
)
CONSERVE_MEMORY = flags.DEFINE_bool(
    "conserve_memory",
    False,
    "Flag of the original code, accepted and ignored: no copy of the weights is kept anyway.",
)

OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Folder to write to. Default: as the description of the program says."
)
define.alias("output_dir", "stats_dir")
FILE_DTYPE = flags.DEFINE_enum(
    "file_dtype",
    "float32",
    list(DTYPES),
    "Type of the numbers in the written files. float16 halves their size. In files of second moments, C is scaled to a "
    "diagonal of ones first.",
    case_sensitive=False,
)
RESULTS_DIR = flags.DEFINE_string("results_dir", "results", "Folder of the results of all runs.")
CONTINUE = flags.DEFINE_string(
    "continue_from_run", None, "Run to resume, such as run_000. Default: begin a new run."
)
SWEEP_NAME = flags.DEFINE_string(
    "sweep_name",
    None,
    "Name of the sweep's folder. Default: method, model, data set and the names of the swept hyperparameters.",
)

DIR_NAME = flags.DEFINE_list(
    "dir_name",
    [],
    "Methods in --results_dir, such as ROME,FT; or paths to the folders of methods or of single runs.",
)
RUNS = flags.DEFINE_list("runs", [], "Runs of each method, such as run_000,run_001. Default: all.")
FIRST = flags.DEFINE_integer(
    "first_n_cases",
    None,
    "Number of cases to read from each run, in order of case id. Default: all.",
    lower_bound=1,
    upper_bound=define.MOST,
)
ORIGINAL = flags.DEFINE_bool(
    "original",
    False,
    "Print the original code's summary instead: for each run its metrics as (mean, standard deviation), in JSON.",
)
FORMAT = flags.DEFINE_enum_class("format", TableFormat.TEXT, TableFormat, "Format of the table.")
OUTPUT = flags.DEFINE_string("output", None, "File to write the table to. Default: the terminal.")
PLOT = flags.DEFINE_string(
    "plot", None, "File to draw a figure to: .png, .svg or .pdf. Default: no figure."
)
FIGURE_FORMAT = flags.DEFINE_enum(
    "figure_format",
    "pdf",
    ["pdf", "svg", "png"],
    "File format of the figures.",
    case_sensitive=False,
)

# These change no result beyond rounding, but belong to the record of a run.
RECORDED = (
    "num_cases",
    "seed",
    "batch_size",
    "chunk_size",
    "max_tokens",
    "dtype",
    "mesh",
    "revision",
)


def recorded() -> dict[str, object]:
    """Returns the flags that are recorded in addition to the settings of a run."""
    return {name: flags.FLAGS[name].value for name in RECORDED}


def read_batch_size(num_edits: int) -> int:
    """Returns --batch_size; the number of all edits if it is not given and the program has no default for it.

    Args:
      num_edits: Number of all edits.
    """
    size = flags.FLAGS[BATCH.name].value  # BATCH.value cannot be None
    return num_edits if size is None else size


def check_results() -> Path:
    """Returns the folder of --results_dir.

    Raises:
      OSError: If it cannot be written to.
    """
    return check_writable(RESULTS_DIR.value, "--results_dir")


def check_output(default: str | Path | None = None) -> Path:
    """Returns the folder of --output_dir.

    Args:
      default: The folder if the flag is not given.

    Raises:
      OSError: If it cannot be written to.
    """
    return check_writable(OUTPUT_DIR.value or default, "--output_dir")


def check_plot() -> None:
    """Refuses a figure that could not be drawn.

    Raises:
      ValueError: If --plot ends in no format of figures.
      MissingPackageError: If --plot is given and matplotlib is not installed.
    """
    if PLOT.value is not None:
        check_figure_path(PLOT.value, "--plot")
        check_matplotlib(f"--plot={PLOT.value}")
