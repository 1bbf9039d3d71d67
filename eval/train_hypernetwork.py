"""Trains the hypernetwork of MEND or KE for one model, which stays as it is.

    python -m eval.train_hypernetwork
    python -m eval.train_hypernetwork --alg_name=KE --model_name=factworld-gptj
    python -m eval.train_hypernetwork --model_name=gpt2-xl --data_path=counterfact_train.json --learning_rate=1e-6
    python -m eval.evaluate --alg_name=MEND --hypernetwork=hypernetworks/MEND_factworld-gpt2/hypernetwork.safetensors

With no flags it trains MEND on factworld's tuning facts, of which one in eight is kept for validation; the held-out
facts, on which eval.evaluate evaluates, are never seen. For other models name a file of CounterFact records that will
not be evaluated. The network that validates best is kept; training ends when validation gets no better. A run that was
killed resumes from its last validation when the same command is given again.

Writes OUTPUT_DIR/hypernetwork.safetensors, training.json (settings, versions, all validations) and training.png; the
directory is hypernetworks/<method>_<model> by default.
"""

from __future__ import annotations

from pathlib import Path

from eval import cli
from eval.flags import data, method, model, running, training
from rome_jax.edit.hypernetworks import training as hypernetwork_training
from rome_jax.factworld_training.edit_examples import read_examples
from rome_jax.files import extras
from rome_jax.models.runs import short_name
from rome_jax.terminal.hypernetwork_report import report


def main() -> None:
    """Trains, draws the curves, says how well it validates."""
    extras.check("matplotlib", "plot", "the figure of the curves")
    kind, config = method.read()
    settings = training.read_settings(kind)
    running.check_output("hypernetworks")
    examples, validation, source = read_examples(
        model.NAME.value, data.PATH.value, running.SEED.value
    )
    loaded = model.load()
    name = f"{kind}_{short_name(loaded).replace('/', '_')}"
    directory = running.check_output(Path("hypernetworks", name))
    print(f"Model     {loaded!r}\nWrites to {directory}")
    hypernetwork_training.train(
        kind,
        loaded,
        config,
        examples,
        validation,
        settings,
        directory,
        data=source,
        dtype=training.FILE_DTYPE.value,
    )
    report(directory)


PROGRAM = cli.Program(
    main,
    takes=(
        "alg_name config model_name dtype precision data_path output_dir learning_rate batch_size max_steps "
        "validate_every patience file_dtype seed"
    ).split(),
    defaults={"alg_name": "MEND"},
    resumable=True,
)

if __name__ == "__main__":
    PROGRAM.run()
