"""The editing method, its hyperparameters, and the files it needs."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from eval.flags import define, model, running
from rome_jax.edit import method as methods
from rome_jax.edit import resources
from rome_jax.edit.config import Hyperparameters, MethodName
from rome_jax.edit.hypernetworks.networks import CONFIG_TYPES
from rome_jax.edit.method import METHODS, Editor
from rome_jax.edit.spread_config import Modifier
from rome_jax.edit.stages import contexts
from rome_jax.edit.variant import MethodVariant
from rome_jax.evaluation.grid import parse_values
from rome_jax.models.registry import LanguageModel, known_config
from rome_jax.moments import sources
from rome_jax.moments.sources import Source
from rome_jax.scaling import plan
from rome_jax.terminal.statistics_report import source_line
from rome_jax.terminal.waiting import waiting

ALGORITHM = define.DEFINE_parsed(
    "alg_name",
    "ROME",
    MethodVariant.parse,
    f"Editing method, one of {', '.join(METHODS)}. The methods that spread an edit over layers as MEMIT does also take "
    f"modifiers, some of {', '.join(Modifier)}, as in MEMIT+RECT. In eval.compare it is --algs with one method.",
)
ALGORITHMS = flags.DEFINE_list(
    "algs",
    None,
    f"Methods to compare, in the order of the table's rows: some of {', '.join(METHODS)}, with modifiers as in "
    "MEMIT+RECT. Default: every method whose "
    "hyperparameters and files are available for the model.",
)
CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Configuration file with the hyperparameters, such as configs/rome.py:gpt2-xl; --config.FIELD=VALUE changes one of "
    "them, also of --hparams_fname or the default. Default: the known hyperparameters of the model.",
)
FIELDS = flags.DEFINE_multi_string(
    "config_field",
    [],
    "A hyperparameter and its value, as FIELD=VALUE, that applies on top of the file or of the known hyperparameters. "
    "Without --config, --config.FIELD=VALUE means the same",
)
HPARAMS = flags.DEFINE_string(
    "hparams_fname",
    None,
    "File with the hyperparameters in the layout of ROME, MEMIT, AlphaEdit, LocFT-BF or EasyEdit, JSON or YAML; "
    "replaces --config. --config.FIELD=VALUE changes one of them.",
)
TEMPLATES = flags.DEFINE_string(
    "templates",
    None,
    "File of context templates, to repeat an earlier run: a JSON list, or text with one template per line. The first "
    "is {}, and each ends in {}. Default: sampled from the model by --seed.",
)
SECOND_MOMENTS = flags.DEFINE_string(
    "second_moments",
    None,
    "Second moments of the keys: a file or folder that eval.layer_stats wrote, an .npz file of the original code, for "
    "AlphaEdit also the null_space_project.pt of its authors, with which nullspace_threshold is not used, or "
    "one of these words: cached, those that eval.layer_stats wrote to its default folder; shipped, those in the "
    "package, of the factworld models and of layers 2 to 4 of smollm2-135m; published, the original's, which are "
    "downloaded; self, collected once over texts that the model samples. Default: the first of these four that has "
    "all edited layers; a line says which.",
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


def read() -> tuple[MethodName, Hyperparameters]:
    """Returns the method and its hyperparameters.

    Raises:
      ValueError: If the model is unknown, the hyperparameters are invalid or not known for the model, or
        --hypernetwork or --second_moments is given to a method that does not use it.
      FileNotFoundError: If the file of hyperparameters or of second moments does not exist.
    """
    name = model.check()
    check_config_file()
    variant = MethodVariant(ALGORITHM.value)
    algorithm = variant.method
    source, network = SECOND_MOMENTS.value, HYPERNETWORK.value
    if network is not None and algorithm not in CONFIG_TYPES:
        raise ValueError(
            f"--hypernetwork={network} is only for {' and '.join(CONFIG_TYPES)}: leave it out for {algorithm}."
        )
    config = methods.read_config(
        *(algorithm, name, CONFIG.value, HPARAMS.value, network, read_fields(FIELDS.value)),
        modifiers=variant.modifiers,
    )
    config = variant.modify(config)
    known = known_config(name)
    for layer in config.layers if known else ():
        known.check_layer(layer, "layers")
    read_templates(config)
    if source is not None and not config.needs_second_moments:
        raise ValueError(
            f"--second_moments={source}: {algorithm} does not use second moments with these hyperparameters, leave it "
            "out."
        )
    if source not in (None, *Source) and not os.path.exists(source):
        raise FileNotFoundError(
            f"no second moments at {source}: give --second_moments a file or folder that eval.layer_stats wrote, an "
            f".npz file of the original code, AlphaEdit's null_space_project.pt, or one of {', '.join(Source)}."
        )
    return algorithm, config


def read_names() -> list[str] | None:
    """Returns the names of the methods to compare, of --algs or the one of --alg_name; None for all methods.

    Raises:
      ValueError: If both flags are given.
    """
    # ALGORITHM.value refuses None, its default in eval.compare.
    one = flags.FLAGS[ALGORITHM.name].value
    if one is None:
        return ALGORITHMS.value
    if ALGORITHMS.value is not None:
        raise ValueError("--alg_name and --algs both name the methods to compare: leave one out.")
    return [one]


def knows_layers(algorithm: MethodName, model_name: str) -> bool:
    """Returns whether flags or the known hyperparameters of a model say which layers a method edits."""
    if flags.FLAGS["config"].present or "layers" in read_fields(FIELDS.value):
        return True
    try:
        METHODS[algorithm].for_model(model_name)
    except ValueError:
        return False
    return True


def read_fields(texts: Sequence[str]) -> dict[str, Any]:
    """Parses the values of --config_field.

    Args:
      texts: Texts of the form FIELD=VALUE. A value is a Python literal, the name of an enum member, or a text.

    Returns:
      The values by field.

    Raises:
      ValueError: If a text has another form, or a field is given twice.

    Example:
      >>> read_fields(["v_lr=1e-1", "layers=(5,6)"])
      {'v_lr': 0.1, 'layers': (5, 6)}
    """
    fields: dict[str, Any] = {}
    for text in texts:
        field, sign, value = text.partition("=")
        if not sign or field in fields:
            raise ValueError(f"--config.{text}: give each field once, as FIELD=VALUE.")
        parsed = parse_values(value)
        fields[field] = parsed[0] if len(parsed) == 1 else tuple(parsed) or value
    return fields


def read_templates(config: Hyperparameters | None = None) -> tuple[str, ...] | None:
    """Returns the context templates of --templates, or None if they are to be sampled.

    Args:
      config: Hyperparameters of the method, which must use templates; None for several methods.

    Raises:
      DataError: If the file does not exist or is malformed.
      ValueError: If the method does not use templates.
    """
    if TEMPLATES.value is None:
        return None
    if config is not None and config.template_lengths is None:
        raise ValueError(
            f"--templates={TEMPLATES.value}: {ALGORITHM.value} does not use context templates, leave it out."
        )
    return contexts.read_templates(TEMPLATES.value)


def check_second_moments(config: Hyperparameters) -> None:
    """Refuses an edit that needs second moments which are not available, before a large model is loaded.

    Raises:
      ValueError: If --second_moments=shipped, and the model comes without them, or --second_moments is a file of null
        spaces, which the method does not take.
    """
    resources.check_second_moments(SECOND_MOMENTS.value, model.NAME.value, config)


def find_second_moments(
    language_model: LanguageModel, configs: Iterable[Hyperparameters]
) -> str | None:
    """Decides where the second moments of all edited layers come from, and collects them if there are none.

    A line says which source is taken, before anything is computed.

    Args:
      language_model: The model to edit.
      configs: The hyperparameters of all edits.

    Returns:
      The place, as `Editor.prepare` takes it and results record it: a path, "published", or None for the package.

    Raises:
      ValueError: If the model does not have a layer, or the folder of its statistics belongs to other settings.
      OSError: If a download breaks off, or a file cannot be written.
    """
    edited = [config.written_layers for config in configs if config.needs_second_moments]
    layers = sorted({layer for layers in edited for layer in layers})
    if not layers:
        return None
    choice = sources.choose(SECOND_MOMENTS.value, layers, language_model)
    if choice.source is not None:
        print(source_line(choice, given=SECOND_MOMENTS.value is not None), flush=True)
    if choice.source is Source.SELF:
        sources.collect_own(language_model, layers, command=_collecting(layers))
    return choice.place


def _collecting(layers: Sequence[int]) -> str:
    """Returns the command that collects the second moments of some layers over the model's own texts."""
    given = [flag for flag in (model.NAME, model.REVISION, model.DTYPE) if flag.value is not None]
    arguments = [f"--{flag.name}={flag.value}" for flag in given]
    listed = ",".join(map(str, layers))
    return shlex.join(
        ["python", "-m", "eval.layer_stats", *arguments, "--dataset=self", f"--layers={listed}"]
    )


def check_config_file() -> None:
    """Refuses a --config that is not a file, or that does not give a configuration.

    Raises:
      FileNotFoundError: If the file does not exist.
      ValueError: If its get_config returns something else than a ConfigDict.
    """
    if flags.FLAGS["config"].present:
        path, *_ = config_flags.get_config_filename(flags.FLAGS["config"]).split(":", 1)
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"--config={path} does not exist in {os.getcwd()}: give the path of a file, such as "
                f"{Path(__file__).resolve().parents[2] / 'configs' / 'rome.py'}."
            )
        if not isinstance(CONFIG.value, ConfigDict):
            raise ValueError(
                f"--config={path}: get_config returns {type(CONFIG.value).__name__}: return a ConfigDict of "
                "ml_collections."
            )


def prepare(
    language_model: LanguageModel,
    algorithm: MethodName,
    config: Hyperparameters,
    moments: str | None,
) -> Editor:
    """Returns an editor of the model, with the files that the flags name.

    Args:
      language_model: The model to edit.
      algorithm: Name of the method.
      config: Hyperparameters.
      moments: Where its second moments are; see `find_second_moments`.

    Raises:
      ValueError: If a file does not belong to the model or the method; see `Editor.prepare`.
      OSError: If a file cannot be read or downloaded.
    """
    with waiting(f"compiling and preparing {algorithm}"):
        return Editor.prepare(
            algorithm,
            language_model,
            config,
            moments_source=moments,
            hypernetwork_source=HYPERNETWORK.value,
            seed=running.SEED.value,
            chunk_size=chunk_size(language_model, [config]),
            templates=read_templates(config),
        )


def chunk_size(language_model: LanguageModel, configs: Iterable[Hyperparameters]) -> int:
    """Returns --chunk_size; auto becomes the number that fits this machine's device, which a line says.

    Args:
      language_model: The model to edit.
      configs: The hyperparameters of all edits.
    """
    if running.CHUNK.value == define.AUTO:
        size = plan.chunk_size(language_model.config, language_model.params, list(configs))
        flags.FLAGS[running.CHUNK.name].value = size  # results record the number
        print(f"Chunk size  {size}: what --chunk_size=auto takes on this device", flush=True)
    return running.CHUNK.value


def rome_layers(model_name: str) -> tuple[int, ...] | None:
    """Returns the layers that ROME edits in a model, or None if they are not known."""
    try:
        return METHODS[MethodName.ROME].for_model(model_name).layers
    except ValueError:
        return None
