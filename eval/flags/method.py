"""The editing method, its hyperparameters, and what it needs."""

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
from rome_jax.moments.files import PUBLISHED
from rome_jax.terminal.waiting import waiting

ALGORITHM = flags.DEFINE_enum(
    "alg_name", "ROME", [str(a) for a in METHODS], "The method.", case_sensitive=False
)
ALGORITHMS = flags.DEFINE_list(
    "algs",
    None,
    f"Methods in the order of the rows, among {', '.join(METHODS)}; default: all that can be had for the model.",
)
CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Hyperparameters, such as configs/rome.py:gpt2-xl; --config.FIELD=VALUE changes one. Default: those of the model.",
)
HPARAMS = flags.DEFINE_string("hparams_fname", None, "Hyperparameter file of the original (JSON).")
SECOND_MOMENTS = flags.DEFINE_string(
    "second_moments",
    None,
    "Second moments: what eval.layer_stats wrote, the original's .npz, or published to download it.",
)
define.alias("second_moments", "covariance")
HYPERNETWORK = flags.DEFINE_string(
    "hypernetwork",
    None,
    "Of MEND or KE: what eval.train_hypernetwork wrote, or a published .pt file; default: the model's own.",
)
HYPERNETWORKS = flags.DEFINE_list(
    "hypernetworks",
    [],
    "METHOD=FILE of MEND and KE, as --hypernetwork of eval.evaluate; default: the model's own.",
)
SWEEP = flags.DEFINE_multi_string(
    "sweep",
    [],
    "KEY=VALUE,VALUE,...: a hyperparameter and its values; once for each. Tuples in brackets, enums by their value; "
    "layers=0,1 edits one layer each.",
)
LAYER = flags.DEFINE_integer(
    "layer", None, "Edited layer; default: the shipped one.", lower_bound=0
)


def read() -> tuple[MethodName, Hyperparameters]:
    """The method and its hyperparameters.

    Raises:
      ValueError: no such model, bad hyperparameters, none that are known, or a network for another method.
      FileNotFoundError: no such file.
    """
    name = model.check()
    check_config_file()
    algorithm = MethodName(ALGORITHM.value)
    source, network = SECOND_MOMENTS.value, HYPERNETWORK.value
    if network is not None and algorithm not in CONFIG_TYPES:
        raise ValueError(
            f"--hypernetwork={network} is for {', '.join(CONFIG_TYPES)}: leave it out."
        )
    config = methods.read_config(algorithm, name, CONFIG.value, HPARAMS.value, network)
    known = known_config(name)
    for layer in config.layers if known else ():
        known.check_layer(layer, "layers")
    absent = source not in (None, PUBLISHED) and not Path(source).exists()
    if config.needs_second_moments and absent:
        raise FileNotFoundError(
            f"no second moments at {source}: give what eval.layer_stats wrote, an .npz of the original, or {PUBLISHED}."
        )
    return algorithm, config


def check_second_moments(config: Hyperparameters) -> None:
    """Refuses an edit whose second moments are missing.

    Raises:
      ValueError: the model comes without, and --second_moments is not given.
    """
    methods.check_second_moments(SECOND_MOMENTS.value, model.NAME.value, config)


def check_config_file() -> None:
    """Refuses a --config that is no file here.

    Raises:
      FileNotFoundError: there is none.
    """
    if flags.FLAGS["config"].present:
        path, *_ = config_flags.get_config_filename(flags.FLAGS["config"]).split(":", 1)
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"--config={path} is no file in {os.getcwd()}: give its path, such as "
                f"{Path(__file__).resolve().parents[2] / 'configs' / 'rome.py'}."
            )


def prepare(
    language_model: LanguageModel, algorithm: MethodName, config: Hyperparameters
) -> Editor:
    """The method made ready for a model.

    Raises:
      ValueError, OSError: as `Editor.prepare`.
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
    """The layers that ROME edits in a model; None if they are not known."""
    try:
        return METHODS[MethodName.ROME].for_model(model_name).layers
    except ValueError:
        return None
