"""Evaluates an editing method at every point of a grid of hyperparameters.

    python -m eval.sweep --sweep=layers=0,1,2
    python -m eval.sweep --sweep=layers=0,1,2 --sweep=clamp_norm_factor=4,20 --num_cases=20
    python -m eval.sweep --alg_name=FT-L --sweep=norm_constraint=None,1e-3,7e-3 --generation
    python -m eval.sweep --model_name=gpt2-xl --second_moments=published --sweep="layers=(15,),(16,17)"

Each point is an evaluation as in eval.evaluate, without generated texts unless --generation is given. The sweep takes
the first --num_cases cases: tuning requests for a factworld model. Report the chosen hyperparameters on other cases,
because the best point of a sweep looks better than it is.

The results are sweep.csv and a figure in RESULTS_DIR/sweeps/NAME, and one folder per point, which eval.summarize reads.
To resume a stopped sweep, repeat the command. More values or cases add to the existing results.
"""

from __future__ import annotations

from eval import cli
from eval.flags import data, method, running
from rome_jax.evaluation.grid import Grid
from rome_jax.evaluation.sweep import Sweep
from rome_jax.factworld.records import Role
from rome_jax.files.places import check_name
from rome_jax.plots.style import check_matplotlib
from rome_jax.terminal.sweep_report import report


def main() -> None:
    """Evaluates all points, writes and prints the table, and draws the figure."""
    if running.SWEEP_NAME.value is not None:
        check_name(running.SWEEP_NAME.value, "--sweep_name")
    algorithm, config = method.read()
    grid = Grid.parse(method.SWEEP.value, config)
    if len(grid.axes) < 3:
        check_matplotlib("the figure")
    results = running.check_results()
    configs = [point.config for point in grid.points]
    inputs = data.load(configs, Role.TUNING)
    sweep = Sweep(
        grid,
        algorithm,
        inputs.model,
        inputs.dataset,
        inputs.generation,
        method.find_second_moments(inputs.model, configs),
        running.SEED.value,
        method.HYPERNETWORK.value,
        method.read_templates(config),
    )
    directory = results / "sweeps" / (running.SWEEP_NAME.value or sweep.name)
    print(f"Results     {directory}")
    chunk = method.chunk_size(inputs.model, configs)
    sizes = {"batch_size": running.BATCH.value, "chunk_size": chunk}
    found = sweep.run(directory, results / "pre", **sizes, max_tokens=running.MAX_TOKENS.value)
    report(sweep, found, directory, running.FIGURE_FORMAT.value)


PROGRAM = cli.Program(
    main,
    takes=(
        "alg_name config config_field hparams_fname templates hypernetwork second_moments sweep model_name dtype "
        "precision ds_name data_path snippets_path tfidf_dir num_cases generation essence seed batch_size chunk_size "
        "max_tokens results_dir sweep_name figure_format mesh revision"
    ).split(),
    defaults={"num_cases": 50, "generation": False},
    resumable=True,
)

if __name__ == "__main__":
    PROGRAM.run()
