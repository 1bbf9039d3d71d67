"""Compares editing methods on the same cases: the paper's table, a row a method below one for the unedited model.

    python -m eval.compare
    python -m eval.compare --algs=FT-L,KN,ROME --dataset_size_limit=20 --skip_generation_tests
    python -m eval.compare --output=table.md --plot=docs/baselines.png
    python -m eval.compare --model_name=gpt2-xl --algs=FT-L,MEMIT,ROME --second_moments=published

With no flags it evaluates every method on 200 held-out facts of an embedded model, with the hyperparameters that belong
to it. A method that cannot be made ready for the model is left out, and a line says why; if --algs names it, that is an
error.

Every method has a run as eval.evaluate makes it. What was stopped goes on when the same command is given again, and
more cases or methods add to what is there.

Results: RESULTS_DIR/comparisons/MODEL_DATA/ALG_NAME/case_ID.json, which eval.summarize reads too.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from absl import flags

from eval import cli
from eval.flags import evaluation as evaluation_flags
from rome_jax.edit.method import METHODS, Editor
from rome_jax.evaluation import tables
from rome_jax.evaluation.comparison import (
    evaluate,
    model_config,
    parse_hypernetworks,
    prepare_each,
    select_algorithms,
)
from rome_jax.factworld.records import Role
from rome_jax.files.artifacts import write_whole
from rome_jax.models.runs import short_name

flags.adopt_module_key_flags(evaluation_flags)
_ALGS = flags.DEFINE_list(
    "algs",
    None,
    f"Methods in the order of the rows, among {', '.join(METHODS)}; default: all that can be had for the model.",
)
_HYPERNETWORKS = flags.DEFINE_list(
    "hypernetworks",
    [],
    "METHOD=FILE of MEND and KE, as --hypernetwork of eval.evaluate; default: the model's own.",
)
_LIMIT = flags.DEFINE_integer(
    "dataset_size_limit", 200, "First records to evaluate.", lower_bound=1
)
_SKIP = flags.DEFINE_bool("skip_generation_tests", False, "Generate no texts: much faster.")
_OUTPUT = flags.DEFINE_string("output", None, "A file for the table, in Markdown.")
_PLOT = flags.DEFINE_string("plot", None, "A file for the figure: .png, .svg or .pdf.")

_OF_ONE_METHOD = ("alg_name", "config", "hparams_fname", "hypernetwork")
# Flags that decide no number but belong to the record of a run.
_RECORDED = ("dataset_size_limit", "seed", "batch_size", "chunk_size", "max_tokens", "dtype")


def main() -> None:
    """Evaluates the methods, prints and writes the table, draws the figure."""
    for name in _OF_ONE_METHOD:
        if flags.FLAGS[name].present:
            raise ValueError(
                f"--{name} is about one method: give --algs, or take eval.evaluate for a method by itself."
            )
    if _PLOT.value is not None and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install -e '.[plot]'.")
    second_moments, strict = evaluation_flags.SECOND_MOMENTS.value, _ALGS.value is not None
    algorithms = select_algorithms(_ALGS.value)
    networks = parse_hypernetworks(_HYPERNETWORKS.value, algorithms)
    configs = prepare_each(
        algorithms,
        lambda algorithm: model_config(
            algorithm, flags.FLAGS.model_name, second_moments, networks.get(algorithm)
        ),
        strict=strict,
    )
    inputs = evaluation_flags.load_inputs(
        list(configs.values()), limit=_LIMIT.value, role=Role.HELD_OUT, generation=not _SKIP.value
    )
    editors = prepare_each(
        configs,
        lambda algorithm: Editor.prepare(
            algorithm,
            inputs.model,
            configs[algorithm],
            moments_source=second_moments,
            hypernetwork_source=networks.get(algorithm),
            seed=evaluation_flags.SEED.value,
            chunk_size=evaluation_flags.CHUNK.value,
        ),
        strict=strict,
    )
    found = evaluate(
        evaluation_flags.RESULTS.value,
        editors,
        inputs.dataset,
        inputs.generation,
        moments_source=second_moments,
        batch_size=evaluation_flags.BATCH.value,
        max_tokens=evaluation_flags.MAX_TOKENS_FLAG.value,
        flags={name: flags.FLAGS[name].value for name in _RECORDED},
    )
    rows = tables.select(tables.make_rows(found), tables.PAPER.values())
    print(f"\n{tables.render(rows, width=120)}")
    if _OUTPUT.value is not None:
        table = tables.render(rows, tables.TableFormat.MARKDOWN)
        write_whole(Path(_OUTPUT.value), f"{table}\n".encode())
        print(f"\nWrote {_OUTPUT.value}")
    if _PLOT.value is not None:
        from rome_jax.plots.results import method_bars
        from rome_jax.plots.tracing import save_figure

        title = f"{short_name(inputs.model)}, {len(inputs.dataset.records)} cases"
        save_figure(method_bars(rows, tables.PAPER, title=title), _PLOT.value)
        print(f"\nWrote {_PLOT.value}")


if __name__ == "__main__":
    cli.run(main)
