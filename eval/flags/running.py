"""How much is done, how it is divided, and where the results go."""

from __future__ import annotations

from pathlib import Path

from absl import flags

from eval.flags import define
from rome_jax.evaluation.scoring import MAX_TOKENS as DEFAULT_TOKENS
from rome_jax.evaluation.tables import TableFormat
from rome_jax.files import extras
from rome_jax.files.artifacts import check_writable

CASES = flags.DEFINE_integer(
    "num_cases", None, "Cases, edits or prompts: the first of their file.", lower_bound=1
)
define.alias("num_cases", "dataset_size_limit", "num_records", "num_prompts", "num_edits")
GENERATION = flags.DEFINE_bool("generation", True, "Generate texts, and judge them: much slower.")
define.alias("generation", "generation_tests")
define.opposite("generation", "skip_generation_tests")
SEED = flags.DEFINE_integer("seed", 0, "Of all that is drawn by chance.", lower_bound=0)

BATCH = flags.DEFINE_integer(
    "batch_size", 32, "Cases that are edited and scored, or learnt from, together.", lower_bound=1
)
CHUNK = flags.DEFINE_integer(
    "chunk_size", 8, "Requests optimised together; bounds the memory.", lower_bound=1
)
MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens",
    DEFAULT_TOKENS,
    "Token columns in one forward pass, or in the cache of one generation; bounds the memory.",
    lower_bound=256,
)
CONSERVE_MEMORY = flags.DEFINE_bool(
    "conserve_memory", False, "Of the original; changes nothing, as no copy of the weights is kept."
)

OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Directory for what is written.")
define.alias("output_dir", "stats_dir")
RESULTS_DIR = flags.DEFINE_string("results_dir", "results", "Holds a folder a method.")
CONTINUE = flags.DEFINE_string("continue_from_run", None, "Run to resume, such as run_000.")
SWEEP_NAME = flags.DEFINE_string(
    "sweep_name", None, "Folder of the sweep; default: method, model, data and keys."
)

DIR_NAME = flags.DEFINE_list(
    "dir_name",
    [],
    "Methods in --results_dir, such as ROME or ROME,FT; or paths to their folders or to those of single runs.",
)
RUNS = flags.DEFINE_list("runs", [], "Runs of each method, such as run_000; default: all.")
FIRST = flags.DEFINE_integer(
    "first_n_cases",
    None,
    "Cases of a run to read, in order of case id; default: all.",
    lower_bound=1,
)
ORIGINAL = flags.DEFINE_bool(
    "original",
    False,
    "Instead, the original's summary as JSON: (mean, σ) of its metrics, a run each.",
)
FORMAT = flags.DEFINE_enum_class("format", TableFormat.TEXT, TableFormat, "Of the table.")
OUTPUT = flags.DEFINE_string("output", None, "A file for the table.")
PLOT = flags.DEFINE_string("plot", None, "A file for the figure: .png, .svg or .pdf.")
FIGURE_FORMAT = flags.DEFINE_enum(
    "figure_format", "pdf", ["pdf", "svg", "png"], "Of the figures.", case_sensitive=False
)

# Decide no number, but belong to the record of a run.
RECORDED = ("num_cases", "seed", "batch_size", "chunk_size", "max_tokens", "dtype")


def recorded() -> dict[str, object]:
    """What is written down of a run besides its settings."""
    return {name: flags.FLAGS[name].value for name in RECORDED}


def check_results() -> Path:
    """The folder of --results_dir, if it can be written to.

    Raises:
      OSError: it cannot be written to.
    """
    return check_writable(RESULTS_DIR.value, "--results_dir")


def check_output(default: str | Path | None = None) -> Path:
    """The folder of --output_dir, if it can be written to.

    Args:
      default: the folder if the flag is not given.

    Raises:
      OSError: it cannot be written to.
    """
    return check_writable(OUTPUT_DIR.value or default, "--output_dir")


def check_files() -> None:
    """Refuses a table or figure that could not be written.

    Raises:
      OSError: --output or --plot names a place that cannot be written to.
      MissingPackageError: a figure, and no matplotlib.
    """
    for flag in (OUTPUT, PLOT):
        if flag.value is not None:
            check_writable(Path(flag.value).parent, f"--{flag.name}")
    if PLOT.value is not None:
        extras.check("matplotlib", "plot", f"--plot={PLOT.value}")
