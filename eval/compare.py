"""Compares editing methods on the same cases and prints the paper's table.

    python -m eval.compare
    python -m eval.compare --algs=FT-L,KN,ROME --num_cases=20 --nogeneration
    python -m eval.compare --alg_name=MEMIT+RECT --num_cases=20 --nogeneration
    python -m eval.compare --output=table.md --plot=docs/baselines.png
    python -m eval.compare --model_name=gpt2-xl --algs=FT-L,MEMIT,ROME --second_moments=published

The table has one row per method, below one row for the unedited model. With no flags, every method is evaluated on 200
held-out facts of an embedded model, with the hyperparameters known for that model. A method that is not available for
the model is left out, and a line says why; if --algs names it, that is an error. --alg_name names a single method, with
the same effect.

Every method has a run like those of eval.evaluate. A stopped comparison resumes when the same command is given again,
and more cases or methods add to the existing results.

Results: RESULTS_DIR/comparisons/MODEL_DATA/ALG_NAME/case_ID.json, which eval.summarize reads too.
"""

from __future__ import annotations

from eval import cli
from eval.flags import data, method, model, running
from rome_jax.evaluation import comparison, tables
from rome_jax.evaluation.columns import PAPER
from rome_jax.models.runs import short_name
from rome_jax.terminal.comparison_report import report


def main() -> None:
    """Evaluates the methods, prints and writes the table, and draws the figure."""
    name, results = model.check(), running.check_results()
    running.check_plot()
    names = method.read_names()
    algorithms, strict = comparison.select_algorithms(names), names is not None
    networks = comparison.parse_hypernetworks(method.HYPERNETWORKS.value, algorithms)
    source = method.SECOND_MOMENTS.value
    configs = comparison.read_configs(algorithms, name, source, networks, strict=strict)
    shared = {"seed": running.SEED.value, "templates": method.read_templates()}
    inputs = data.load(list(configs.values()))
    shared["chunk_size"] = method.chunk_size(inputs.model, configs.values())
    moments = method.find_second_moments(inputs.model, configs.values())
    editors = comparison.prepare_editors(
        inputs.model, configs, moments, networks, strict=strict, **shared
    )
    found = comparison.evaluate(
        results,
        editors,
        inputs.dataset,
        inputs.generation,
        moments_source=moments,
        batch_size=running.BATCH.value,
        max_tokens=running.MAX_TOKENS.value,
        flags=running.recorded(),
    )
    rows = tables.select(tables.make_rows(found), PAPER.values())
    title = f"{short_name(inputs.model)}, {len(inputs.dataset.records)} cases"
    report(rows, title, running.OUTPUT.value, running.PLOT.value)


_ONE_METHOD = "applies to one method: leave it out, or use eval.evaluate for a single method"
PROGRAM = cli.Program(
    main,
    takes=(
        "algs alg_name hypernetworks templates second_moments model_name dtype precision mesh ds_name data_path "
        "snippets_path tfidf_dir num_cases generation essence seed batch_size chunk_size max_tokens results_dir output "
        "plot revision"
    ).split(),
    defaults={"num_cases": 200, "alg_name": None},
    resumable=True,
    refused=dict.fromkeys(("config", "config_field", "hparams_fname", "hypernetwork"), _ONE_METHOD),
)

if __name__ == "__main__":
    PROGRAM.run()
