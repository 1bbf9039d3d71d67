"""Evaluates an editing method on CounterFact or zsRE: every metric, one result file a case, and the paper's table.

    python -m eval.evaluate
    python -m eval.evaluate --alg_name=FT-L --ds_name=zsre --dataset_size_limit=50
    python -m eval.evaluate --model_name=gpt2-xl --config=configs/rome.py:gpt2-xl --second_moments=published
    python -m eval.evaluate --model_name=gpt2-xl --hparams_fname=hparams/ROME/gpt2-xl.json --second_moments=published
    python -m eval.evaluate --continue_from_run=run_000

With no flags it evaluates ROME on 100 cases of an embedded model's own facts. Each case is edited independently of the
others; many are edited and scored side by side. A run that was stopped goes on with --continue_from_run and the same
flags; a larger --dataset_size_limit adds cases. Scores before the edit are kept in RESULTS_DIR/pre and shared by all
methods.

Results: RESULTS_DIR/ALG_NAME/run_ID/case_ID.json and params.json in the original's layout, and run.json, which says how
they came about.
"""

from __future__ import annotations

from absl import flags

from eval import cli
from eval.flags import evaluation as evaluation_flags
from rome_jax.edit.method import Editor
from rome_jax.evaluation import summaries, tables
from rome_jax.evaluation.run import EvaluationRun, Settings
from rome_jax.factworld.records import Role

flags.adopt_module_key_flags(evaluation_flags)
_LIMIT = flags.DEFINE_integer(
    "dataset_size_limit",
    None,
    "First records to evaluate; default: 100 of an embedded model's, else all.",
    lower_bound=1,
)
_SKIP = flags.DEFINE_bool("skip_generation_tests", False, "Generate no texts: much faster.")
_CONTINUE = flags.DEFINE_string("continue_from_run", None, "Run to go on with, such as run_000.")

# Flags that decide no number but belong to the record of a run.
_RECORDED = ("dataset_size_limit", "seed", "batch_size", "chunk_size", "max_tokens", "dtype")


def main() -> None:
    """Edits, scores, writes, and prints the table."""
    algorithm, config = evaluation_flags.read_method()
    inputs = evaluation_flags.load_inputs(
        [config], limit=_LIMIT.value, role=Role.HELD_OUT, generation=not _SKIP.value
    )
    editor = Editor.prepare(
        algorithm,
        inputs.model,
        config,
        moments_source=evaluation_flags.SECOND_MOMENTS.value,
        hypernetwork_source=evaluation_flags.HYPERNETWORK.value,
        seed=evaluation_flags.SEED.value,
        chunk_size=evaluation_flags.CHUNK.value,
    )
    settings = Settings.of(
        editor, inputs.dataset, inputs.generation, evaluation_flags.SECOND_MOMENTS.value
    )
    run = EvaluationRun.open(
        evaluation_flags.RESULTS.value,
        settings,
        _CONTINUE.value,
        flags={name: flags.FLAGS[name].value for name in _RECORDED},
    )
    print(f"Results     {run.directory}")
    run.evaluate(
        editor,
        inputs.dataset,
        inputs.generation,
        batch_size=evaluation_flags.BATCH.value,
        max_tokens=evaluation_flags.MAX_TOKENS_FLAG.value,
    )
    found = summaries.summarize(run.cases(inputs.dataset))
    print(tables.render(tables.make_rows({f"{algorithm}/{run.directory.name}": found})))


if __name__ == "__main__":
    cli.run(main)
