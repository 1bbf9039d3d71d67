"""Trains the hypernetwork of MEND or KE for one model, which stays as it is.

    python -m eval.train_hypernetwork
    python -m eval.train_hypernetwork --alg_name=KE --model_name=factworld-gptj
    python -m eval.train_hypernetwork --model_name=gpt2-xl --data_path=counterfact_train.json --learning_rate=1e-6
    python -m eval.evaluate --alg_name=MEND --hypernetwork=hypernetworks/MEND_factworld-gpt2/hypernetwork.safetensors

With no flags it trains MEND on factworld's tuning facts, of which one in eight is kept for validation; the held-out
facts, on which eval.evaluate evaluates, are never seen. For other models name a file of CounterFact records that will
not be evaluated. The network that validates best is kept; training ends when validation gets no better. A run that was
killed goes on from its last validation when the same command is given again.

Writes OUTPUT_DIR/hypernetwork.safetensors, training.json (settings, versions, all validations) and training.png.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from eval import cli
from rome_jax.edit import method as methods
from rome_jax.edit.hypernetworks import training as hypernetwork_training
from rome_jax.edit.hypernetworks.losses import Examples
from rome_jax.edit.hypernetworks.networks import HypernetworkKind
from rome_jax.edit.hypernetworks.training import TrainingConfig
from rome_jax.edit.method import Algorithm
from rome_jax.evaluation.datasets import DatasetName, load_dataset
from rome_jax.evaluation.hypernetwork_examples import split_records
from rome_jax.factworld.facts import make_world
from rome_jax.factworld_training.edit_examples import split_examples
from rome_jax.models.registry import SHIPPED, load_model
from rome_jax.models.runs import short_name

_ALGORITHM = flags.DEFINE_enum(
    "alg_name", "MEND", [kind.value for kind in HypernetworkKind], "The method."
)
_MODEL = flags.DEFINE_string("model_name", "factworld-gpt2", "Shipped or hub name, or directory.")
_DTYPE = flags.DEFINE_string("dtype", None, "Of the weights, such as bfloat16; default: as stored.")
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Of the network, such as configs/mend.py:gpt2-xl; default: that of the model."
)
_PATH = flags.DEFINE_string(
    "data_path", None, "CounterFact records to learn from; default: factworld's, for its models."
)
_OUTPUT = flags.DEFINE_string(
    "output_dir", None, "Default: hypernetworks/<method>_<model> in the working directory."
)
_RATE = flags.DEFINE_float("learning_rate", None, "Of Adam; default: that of the shipped networks.")
_BATCH = flags.DEFINE_integer("batch_size", 32, "Edits in a step.", lower_bound=1)
_STEPS = flags.DEFINE_integer("max_steps", None, "Of Adam.", lower_bound=1)
_EVERY = flags.DEFINE_integer("validate_every", 100, "Steps between validations.", lower_bound=1)
_PATIENCE = flags.DEFINE_integer(
    "patience", 5, "Validations without a better loss before it ends.", lower_bound=1
)
_FILE_DTYPE = flags.DEFINE_enum(
    "file_dtype", "float32", ["float32", "float16"], "Of the network's parameters in its file."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of initialisation, split and examples.", lower_bound=0)


def read_examples(model_name: str) -> tuple[Examples, Examples, dict[str, str]]:
    """Examples for training and validation, and where they come from.

    Raises:
      ValueError, OSError: none are known for the model, or a file that cannot be read.
    """
    if _PATH.value is not None:
        dataset = load_dataset(DatasetName.CF, path=_PATH.value)
        data = {"source": dataset.source, "sha256": dataset.sha256}
        return *split_records(dataset.records, _SEED.value), data
    if model_name not in SHIPPED:
        raise ValueError(
            f"no examples come with model {model_name!r}: give --data_path, a file of CounterFact records that you "
            "will not evaluate on."
        )
    return *split_examples(make_world(), _SEED.value), {"source": "factworld, tuning facts"}


def read_settings(kind: HypernetworkKind) -> TrainingConfig:
    """The training's settings, from the flags."""
    given = {"learning_rate": _RATE.value, "max_steps": _STEPS.value}
    return TrainingConfig.for_kind(
        kind,
        batch_size=_BATCH.value,
        validate_every=_EVERY.value,
        patience=_PATIENCE.value,
        seed=_SEED.value,
        **{name: value for name, value in given.items() if value is not None},
    )


def main() -> None:
    """Trains, draws the curves, says how well it validates."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the curves need matplotlib: pip install -e '.[plot]'.")
    kind = HypernetworkKind(_ALGORITHM.value)
    config = methods.read_config(Algorithm(kind), _MODEL.value, _CONFIG.value)
    settings = read_settings(kind)
    examples, validation, data = read_examples(_MODEL.value)
    model = load_model(_MODEL.value, dtype=_DTYPE.value)
    name = f"{kind}_{short_name(model).replace('/', '_')}"
    directory = Path(_OUTPUT.value or Path("hypernetworks") / name)
    print(f"Model     {model!r}\nWrites to {directory}")
    hypernetwork_training.train(
        kind,
        model,
        config,
        examples,
        validation,
        settings,
        directory,
        data=data,
        dtype=_FILE_DTYPE.value,
    )
    from rome_jax.plots.hypernetworks import plot

    report = json.loads((directory / hypernetwork_training.REPORT).read_text())
    plot(report, directory / "training.png")
    best = report["best"]
    print(
        f"Best at step {best['step']} of {report['history'][-1]['step']}: {best['success']:.1%} of validation "
        f"paraphrases say the new target, {best['kept']:.1%} of other facts are kept; edit loss {best['edit']:.3f}, "
        f"KL {best['kl']:.4f} nats"
    )


if __name__ == "__main__":
    cli.run(main)
