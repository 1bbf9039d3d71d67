"""Trains the hypernetwork of MEND or KE for one model, whose weights do not change.

    python -m eval.train_hypernetwork
    python -m eval.train_hypernetwork --alg_name=KE --model_name=factworld-gptj
    python -m eval.train_hypernetwork --model_name=gpt2-xl --data_path=counterfact_train.json --learning_rate=1e-6
    python -m eval.evaluate --alg_name=MEND --hypernetwork=hypernetworks/MEND_factworld-gpt2/hypernetwork.safetensors

Without flags it trains MEND on the tuning facts of factworld; the held-out facts, which eval.evaluate uses, are never
seen. For other models give --data_path, a file of CounterFact records that will not be evaluated, and --config.layers
if no layers are known. One example in eight is kept for validation. Training ends when the validation loss stops
improving, and the best network is kept.

The results are hypernetwork.safetensors, training.json and training.png in --output_dir, by default
hypernetworks/METHOD_MODEL. To resume a stopped run from its last validation, repeat the command.
"""

from __future__ import annotations

from pathlib import Path

from eval import cli
from eval.flags import data, method, model, running, training
from rome_jax.edit.hypernetworks import training as hypernetwork_training
from rome_jax.edit.variant import MethodVariant
from rome_jax.factworld_training.edit_examples import read_examples
from rome_jax.files.checked import shown
from rome_jax.models.registry import SHIPPED
from rome_jax.models.runs import short_name
from rome_jax.plots.style import check_matplotlib
from rome_jax.terminal.hypernetwork_report import report


def main() -> None:
    """Trains the network, draws the curves, and reports the best validation."""
    check_matplotlib("the figure of the curves")
    settings = training.read_settings(MethodVariant(method.ALGORITHM.value).method)
    model.check()
    _check_given()
    kind, config = method.read()
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
        dtype=running.FILE_DTYPE.value,
    )
    report(directory)


def _check_given() -> None:
    """Refuses a model that comes without layers of the method or without examples, unless flags give them.

    Raises:
      ValueError: If flags are missing; the message names all of them.
    """
    name, algorithm = model.NAME.value, MethodVariant(method.ALGORITHM.value).method
    missing = []
    if not method.knows_layers(algorithm, name):
        missing.append("--config.layers with the layers to edit")
    if data.PATH.value is None and name not in SHIPPED:
        missing.append("--data_path with a file of CounterFact records to train on")
    if missing:
        raise ValueError(
            f"{algorithm} has no defaults to train with for model {shown(name)}: give {' and '.join(missing)}."
        )


PROGRAM = cli.Program(
    main,
    takes=(
        "alg_name config config_field model_name dtype precision mesh data_path output_dir learning_rate batch_size "
        "max_steps validate_every patience file_dtype seed revision"
    ).split(),
    defaults={"alg_name": "MEND"},
    resumable=True,
)

if __name__ == "__main__":
    PROGRAM.run()
