"""Evaluates an editing method at every point of a grid of hyperparameters: a table and a figure.

    python -m eval.sweep --sweep=layers=0,1,2
    python -m eval.sweep --sweep=layers=0,1,2 --sweep=clamp_norm_factor=4,20 --num_records=20
    python -m eval.sweep --alg_name=FT-L --sweep=norm_constraint=None,1e-3,7e-3 --generation_tests
    python -m eval.sweep --model_name=gpt2-xl --second_moments=published --sweep="layers=(15,),(16,17)"

Every point is a run as eval.evaluate makes it; a sweep that was stopped goes on when the same command is given again.
More values or more records add to what is there.

What looks best on the records of a sweep looks better than it is: report a choice on other records. An embedded model
is swept on its tuning requests, and evaluated on its held-out ones; of a file the sweep takes the first --num_records.

Results: RESULTS_DIR/sweeps/NAME/sweep.csv and sweep.pdf, and a folder a point, which eval.summarize reads too.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from absl import flags

from eval import cli
from eval.flags import evaluation as evaluation_flags
from rome_jax.evaluation.grid import Grid
from rome_jax.evaluation.sweep import Sweep, text_table, write_csv
from rome_jax.factworld.records import Role
from rome_jax.models.runs import short_name

flags.adopt_module_key_flags(evaluation_flags)
_SWEEP = flags.DEFINE_multi_string(
    "sweep",
    [],
    "KEY=VALUE,VALUE,...: a hyperparameter and its values; once for each. Tuples in brackets, enums by their value; "
    "layers=0,1 edits one layer each.",
)
_RECORDS = flags.DEFINE_integer(
    "num_records", 50, "First records to evaluate at each point.", lower_bound=1
)
_GENERATION = flags.DEFINE_bool("generation_tests", False, "Generate texts too: much slower.")
_NAME = flags.DEFINE_string(
    "sweep_name", None, "Folder of the sweep; default: method, model, data and keys."
)
_FORMAT = flags.DEFINE_enum("figure_format", "pdf", ["pdf", "svg", "png"], "Of the figure.")


def main() -> None:
    """Evaluates all points, writes and prints the table, draws the figure."""
    algorithm, config = evaluation_flags.read_method()
    grid = Grid.parse(_SWEEP.value, config)
    drawn = len(grid.axes) < 3
    if drawn and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the figure needs matplotlib: pip install -e '.[plot]'.")
    inputs = evaluation_flags.load_inputs(
        [point.config for point in grid.points],
        limit=_RECORDS.value,
        role=Role.TUNING,
        generation=_GENERATION.value,
    )
    model, dataset = inputs.model, inputs.dataset
    sweep = Sweep(
        grid,
        algorithm,
        model,
        dataset,
        inputs.generation,
        evaluation_flags.SECOND_MOMENTS.value,
        evaluation_flags.SEED.value,
        evaluation_flags.HYPERNETWORK.value,
    )
    results = Path(evaluation_flags.RESULTS.value)
    directory = results / "sweeps" / (_NAME.value or sweep.name)
    print(f"Results     {directory}")
    found = sweep.run(
        directory,
        results / "pre",
        batch_size=evaluation_flags.BATCH.value,
        chunk_size=evaluation_flags.CHUNK.value,
        max_tokens=evaluation_flags.MAX_TOKENS_FLAG.value,
    )
    write_csv(directory / "sweep.csv", grid, found)
    print(f"\n{text_table(found)}\n\nWrote {directory / 'sweep.csv'}")
    if not drawn:
        print("No figure: it shows one or two hyperparameters, not more.")
        return
    from rome_jax.plots.sweeps import draw
    from rome_jax.plots.tracing import save_figure

    figure = directory / f"sweep.{_FORMAT.value}"
    count = f"{len(dataset.records)} records"
    save_figure(draw(grid, found, f"{algorithm} on {short_name(model)}, {count}"), figure)
    print(f"      {figure}")


if __name__ == "__main__":
    cli.run(main)
