"""The editing method, its hyperparameters, and the files it needs."""

from __future__ import annotations

import os
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from eval.flags import define, model, running
from rome_jax.edit import method as methods
from rome_jax.edit.config import Hyperparameters, MethodName
from rome_jax.edit.hypernetworks.networks import CONFIG_TYPES
from rome_jax.edit.method import METHODS, Editor
from rome_jax.models.registry import LanguageModel, known_config
from rome_jax.moments.published import PUBLISHED
from rome_jax.terminal.waiting import waiting

ALGORITHM = flags.DEFINE_enum(
    "alg_name", "ROME", [str(a) for a in METHODS], "Editing method.", case_sensitive=False
)
ALGORITHMS = flags.DEFINE_list(
    "algs",
    None,
    f"Methods to compare, in the order of the table's rows: some of {', '.join(METHODS)}. Default: every method whose "
    "hyperparameters and files are available for the model.",
)
CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Configuration file with the hyperparameters, such as configs/rome.py:gpt2-xl; --config.FIELD=VALUE changes one of "
    "them. Default: the known hyperparameters of the model.",
)
HPARAMS = flags.DEFINE_string(
    "hparams_fname",
    None,
    "JSON file with the hyperparameters, as in the original code; replaces --config.",
)
SECOND_MOMENTS = flags.DEFINE_string(
    "second_moments",
    None,
    "Second moments of the keys: a file or folder that eval.layer_stats wrote, an .npz file of the original code, or "
    "the word published to download the original's. Default: those of the factworld models; other models have none.",
)
define.alias("second_moments", "covariance")
HYPERNETWORK = flags.DEFINE_string(
    "hypernetwork",
    None,
    "Hypernetwork of MEND or KE: a file that eval.train_hypernetwork wrote, or a published .pt file. Default: that of "
    "the factworld models; other models have none.",
)
HYPERNETWORKS = flags.DEFINE_list(
    "hypernetworks",
    [],
    "Hypernetworks of MEND and KE, as METHOD=FILE,METHOD=FILE; see --hypernetwork of eval.evaluate. Default: those of "
    "the factworld models.",
)
SWEEP = flags.DEFINE_multi_string(
    "sweep",
    [],
    "A hyperparameter and its values, as KEY=VALUE,VALUE,.... Write tuples in parentheses and enums by their values; "
    "layers=0,1 is short for layers=(0,),(1,)",
)
LAYER = flags.DEFINE_integer(
    "layer",
    None,
    "Layer to edit. Default: the layer in the model's hyperparameters.",
    lower_bound=0,
)


def read() -> tuple[MethodName, Hyperparameters]:
    """Returns the method and its hyperparameters.

    Raises:
      ValueError: If the model is unknown, the hyperparameters are invalid or not known for the model, or
        --hypernetwork is given to a method without one.
      FileNotFoundError: If the file of hyperparameters or of second moments does not exist.
    """
    name = model.check()
    check_config_file()
    algorithm = MethodName(ALGORITHM.value)
    source, network = SECOND_MOMENTS.value, HYPERNETWORK.value
    if network is not None and algorithm not in CONFIG_TYPES:
        raise ValueError(
            f"--hypernetwork={network} is only for {' and '.join(CONFIG_TYPES)}: leave it out for {algorithm}."
        )
    config = methods.read_config(algorithm, name, CONFIG.value, HPARAMS.value, network)
    known = known_config(name)
    for layer in config.layers if known else ():
        known.check_layer(layer, "layers")
    absent = source not in (None, PUBLISHED) and not Path(source).exists()
    if config.needs_second_moments and absent:
        raise FileNotFoundError(
            f"no second moments at {source}: give --second_moments a file or folder that eval.layer_stats wrote, an "
            f".npz file of the original code, or {PUBLISHED}."
        )
    return algorithm, config


def check_second_moments(config: Hyperparameters) -> None:
    """Refuses an edit that needs second moments which are not available.

    Raises:
      ValueError: If the model comes without them and --second_moments is not given.
    """
    methods.check_second_moments(SECOND_MOMENTS.value, model.NAME.value, config)


def check_config_file() -> None:
    """Refuses a --config that is not a file.

    Raises:
      FileNotFoundError: If the file does not exist.
    """
    if flags.FLAGS["config"].present:
        path, *_ = config_flags.get_config_filename(flags.FLAGS["config"]).split(":", 1)
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"--config={path} does not exist in {os.getcwd()}: give the path of a file, such as "
                f"{Path(__file__).resolve().parents[2] / 'configs' / 'rome.py'}."
            )


def prepare(
    language_model: LanguageModel, algorithm: MethodName, config: Hyperparameters
) -> Editor:
    """Returns an editor of the model, with the files that the flags name.

    Raises:
      ValueError: If a file does not belong to the model or the method; see `Editor.prepare`.
      OSError: If a file cannot be read or downloaded.
    """
    with waiting(f"compiling and preparing {algorithm}"):
        return Editor.prepare(
            algorithm,
            language_model,
            config,
            moments_source=SECOND_MOMENTS.value,
            hypernetwork_source=HYPERNETWORK.value,
            seed=running.SEED.value,
            chunk_size=running.CHUNK.value,
        )


def rome_layers(model_name: str) -> tuple[int, ...] | None:
    """Returns the layers that ROME edits in a model, or None if they are not known."""
    try:
        return METHODS[MethodName.ROME].for_model(model_name).layers
    except ValueError:
        return None
