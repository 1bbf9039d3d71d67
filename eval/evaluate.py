"""Evaluates an editing method on CounterFact or zsRE and prints a table of all metrics.

    python -m eval.evaluate
    python -m eval.evaluate --alg_name=FT-L --ds_name=zsre --num_cases=50
    python -m eval.evaluate --model_name=gpt2-xl --config=configs/rome.py:gpt2-xl --second_moments=published
    python -m eval.evaluate --model_name=gpt2-xl --hparams_fname=hparams/ROME/gpt2-xl.json --second_moments=published
    python -m eval.evaluate --continue_from_run=run_000

Without flags it evaluates ROME on 100 cases of a factworld model; from a file it takes all cases. Each case is edited
independently of the others, on the original model. The scores before the edit are stored in RESULTS_DIR/pre and shared
by all methods.

Each case is written to RESULTS_DIR/ALG_NAME/RUN/case_ID.json, in the original code's layout. RUN also holds the
hyperparameters (params.json) and all other settings (run.json). To resume a stopped run, repeat the command with
--continue_from_run; a larger --num_cases adds cases. Several processes can share a run; see docs/clusters.md.
"""

from __future__ import annotations

from eval import cli
from eval.flags import data, method, processes, running
from rome_jax.edit.config import Hyperparameters, MethodName
from rome_jax.edit.variant import MethodVariant
from rome_jax.evaluation import summaries, tables
from rome_jax.evaluation.run import EvaluationRun
from rome_jax.evaluation.run_folder import find_run
from rome_jax.evaluation.run_settings import Settings
from rome_jax.files.groups import ProcessGroup


def main() -> None:
    """Edits and scores the cases, writes their files, and prints the table."""
    algorithm, config = method.read()
    name = MethodVariant.of(algorithm, config)
    known = {"alg_name": str(name), "hyperparameters": config.to_dict()}
    results = running.check_results()
    find_run(results, name, running.CONTINUE.value, known)
    with processes.joined(results) as group:
        _evaluate(algorithm, config, group)


def _evaluate(algorithm: MethodName, config: Hyperparameters, group: ProcessGroup) -> None:
    """Does the work of `main` in one of the processes that share it."""
    inputs = data.load([config])
    # Process 0 collects them if there are none.
    moments = group.agree(
        "second_moments", lambda: method.find_second_moments(inputs.model, [config])
    )
    editor = method.prepare(inputs.model, algorithm, config, moments)
    run = EvaluationRun.open(
        running.RESULTS_DIR.value,
        Settings.of(editor, inputs.dataset, inputs.generation, moments),
        running.CONTINUE.value,
        flags=running.recorded(),
        group=group,
    )
    print(f"Results     {run.directory}")
    with cli.resumes_with(f"--continue_from_run={run.directory.name}"):
        run.evaluate(
            editor,
            inputs.dataset,
            inputs.generation,
            batch_size=running.BATCH.value,
            max_tokens=running.MAX_TOKENS.value,
            group=group,
        )
    if group.index:
        return
    found = summaries.summarize(run.cases(inputs.dataset))
    failures = found.describe_failures()
    print(tables.render(tables.make_rows({f"{editor.name}/{run.directory.name}": found})))
    if failures:
        print(failures)


PROGRAM = cli.Program(
    main,
    takes=(
        "alg_name config config_field hparams_fname templates hypernetwork second_moments model_name dtype precision "
        "mesh revision ds_name data_path "
        "snippets_path tfidf_dir num_cases generation essence seed batch_size chunk_size max_tokens results_dir "
        "continue_from_run conserve_memory distributed coordinator_address num_processes process_id process_timeout"
    ).split(),
    resumable=True,
)

if __name__ == "__main__":
    PROGRAM.run()
