"""Reader of hyperparameter files in the layouts of ROME, MEMIT, EMMET, PMET, AlphaEdit, LocFT-BF and EasyEdit.

They are JSON or YAML. EasyEdit has files for MEND, for UltraEdit, whose authors name the edited weights in the same
way, and for R-ROME, which is ROME with `KeyMode.CONSISTENT`.

The files name weights by PyTorch module paths and repeat facts about the model and the machine. Such entries are
checked but not used. An entry that would change a result and is not supported is an error.

Where this library departs from the published code by default, a file selects the published behavior; see
docs/differences.md.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rome_jax.data.request import EditWarning
from rome_jax.edit.baseline_config import (
    FTConfig,
    KEConfig,
    KNConfig,
    MENDConfig,
    RateOrder,
    RowVectors,
    TargetEncoding,
    TargetScoring,
)
from rome_jax.edit.config import Hyperparameters, KeyMode, ROMEConfig, check_names, model_key
from rome_jax.edit.methods.alphaedit import AlphaEditConfig
from rome_jax.edit.methods.emmet import EMMETConfig
from rome_jax.edit.methods.locft_bf import LocFTConfig
from rome_jax.edit.methods.pmet import PMETConfig
from rome_jax.edit.methods.ultra_edit import UltraEditConfig
from rome_jax.edit.spread_config import MEMITConfig
from rome_jax.files.checked import NonNegativeInt, check, shown
from rome_jax.files.records import read_document
from rome_jax.models.families import FAMILIES
from rome_jax.models.interventions import Leaf

# The edited weight by its module path after the prefix "transformer.h.{}.".
_LEAVES = {
    "mlp.c_proj": Leaf.MLP_DOWN,  # GPT-2
    "mlp.fc_out": Leaf.MLP_DOWN,  # GPT-J
    "attn.c_attn": Leaf.ATTN_QKV,
}
_PREFIX = "transformer.h.{}."
_R_ROME = "R-ROME"
_METHOD_NAMES = ("alg_name", "alg")  # entries that name the method
# Paths of other modules, which are the same in every GPT-2 or GPT-J.
_MODULES = {
    "layer_module_tmp",
    "mlp_module_tmp",
    "attn_module_tmp",
    "ln_f_module",
    "lm_head_module",
    "model_name",
}
# Entries about second moments, which have files of their own, and the layer of the loss, which the published code never
# reads.
_STATISTICS = {"v_loss_layer", "mom2_dataset", "mom2_n_samples", "mom2_dtype"}
_INERT: Mapping[type[Hyperparameters], set[str]] = {
    ROMEConfig: _STATISTICS,
    MEMITConfig: _STATISTICS,
    EMMETConfig: _STATISTICS | {"calculate_objective_value"},
    PMETConfig: _STATISTICS | {"rewrite_module_tmps"},
    # The published AlphaEdit has entries of MEMIT that it never reads.
    AlphaEditConfig: _STATISTICS | {"mom2_adjustment", "mom2_update_weight"},
    FTConfig: {"max_length", "wd_power_law"},
    # Entries that the published KN, KE and MEND never read, the number of steps that run at once, the published file
    # that is loaded, and names of classes.
    KNConfig: {"lr_scale", "n_toks", "batch_size"},
    MENDConfig: {
        *("n_toks", "counterfact", "zsre", "mini", "hidden_dim", "act"),
        *("model_class", "tokenizer_class"),
    },
    KEConfig: {"lr_scale", "n_toks", "counterfact", "zsre", "mini"},
    # Names of classes and of the model.
    UltraEditConfig: {
        *("model_class", "tokenizer_class", "class_name", "name", "name_or_path", "model_vec_size"),
    },
    LocFTConfig: {"model_name_or_path"},
}
# Entries of EasyEdit and AlphaEdit that do not affect these methods. They are ignored with a warning.
_IGNORED = {
    *("alg_name", "device", "stats_dir", "results_dir", "model_parallel", "fp16", "max_length"),
    *("batch_size", "tokenizer_name", "evaluation_type", "api_key", "nullspace_threshold", "L2"),
    *("P_loc", "reset_cache", "alg"),
}
# The same for one method: how its authors' programs run, and where they read and write.
_IGNORED_BY: Mapping[type[Hyperparameters], set[str]] = {
    # Most of these belong to the training of the network, which has its own rates once it is trained.
    MENDConfig: {
        *("archive", "lr", "edit_lr", "lr_lr", "init", "opt", "grad_clip", "accumulate_bs", "seed"),
        *("cedit", "cloc", "cbase", "max_epochs", "max_iters", "model_save_pt", "early_stop_key"),
        *("early_stop_patience", "log_interval", "eval_log_interval", "val_interval", "val_steps"),
        *("val_batch_size", "final_eval", "eval_only", "half", "debug", "save", "silent"),
        "verbose",
    },
    UltraEditConfig: {"half", "silent", "batch_size_once", "editor_batch_size"},
    LocFTConfig: {"data_path", "save_model_dir"},
}
_MUST_BE: Mapping[type[Hyperparameters], Mapping[str, Any]] = {
    FTConfig: {"kl_factor": 0.0},
    # The network's form, and a base model that training does not change.
    MENDConfig: {
        "mlp_class": "IDMLP",
        **dict.fromkeys(("norm", "combine", "shared"), True),
        **dict.fromkeys(("one_sided", "x_only", "delta_only", "train_base"), False),
        "dropout": 0.0,
        "no_grad_layers": None,
    },
    # UltraEdit takes all tokens of prompt and target, and the model as it is.
    UltraEditConfig: {"token": "mask", "dropout": 0.0, "no_grad_layers": None, "bit": 0},
    **{
        config_type: {"layer_selection": "all"}
        for config_type in (MEMITConfig, EMMETConfig, PMETConfig, AlphaEditConfig)
    },
}
# What the authors' code of LocFT-BF takes for entries that a file lacks.
_LOCFT_DEFAULTS = {"lr": 5e-5, "batch_size": 8, "num_steps": 20, "weight_decay": 0.0}
# The order of a layer's projections in PyTorch's models.
_MODEL_ORDER = (Leaf.MLP_GATE, Leaf.MLP_UP, Leaf.MLP_DOWN)
# EasyEdit's names of where fine-tuning scores a target.
_OBJECTIVES = {
    "prompt_last": TargetScoring.REFERENCE,
    "target_new": TargetScoring.EACH_TOKEN,
}


def read(path: str | Path, config_type: type[Hyperparameters]) -> Hyperparameters:
    """Reads a hyperparameter file of ROME, MEMIT, AlphaEdit, LocFT-BF or EasyEdit.

    Args:
      path: Path of the JSON or YAML file.
      config_type: Configuration class of the method that the file is for.

    Returns:
      The configuration. Fine-tuning scores targets, KN encodes them, and MEND of GPT-2 XL orders its rates as in the
      published code. A file of R-ROME gives ROME with the consistent key.

    Raises:
      ValueError: If no layout is known for the method, the file does not exist or is not a JSON object, or if an entry
        is unknown, unsupported, of another type or out of range.

    Example:
      >>> import json, pathlib
      >>> path = pathlib.Path("gpt2-xl.json")
      >>> _ = path.write_text(json.dumps({"layers": [17], "fact_token": "subject_last", "v_loss_layer": 47}))
      >>> read(path, ROMEConfig).layers
      (17,)
    """
    content = read_document(path)
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds {type(content).__name__}: give a JSON object of hyperparameters."
        )
    method = config_type.__name__.removesuffix("Config")
    if config_type not in _INERT:
        raise ValueError(
            f"{path}: no layout of hyperparameter files is known for {method}: give its values with --config."
        )
    try:
        for name in _METHOD_NAMES:
            _check_method(name, content.get(name, method), method)
        values, ignored = _ours(content, config_type)
        config = config_type.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path}: {_with_layouts(str(error))}") from error
    if ignored:
        warnings.warn(f"{path}: {method} does not use {', '.join(ignored)}.", EditWarning, 2)
    return config


def _check_method(name: str, value: Any, method: str) -> None:
    """Refuses a file that names another method."""
    # The original and EasyEdit call all kinds of fine-tuning FT, and AlphaEdit shares its hyperparameters with MEMIT.
    aliases = {
        "ROME": ("ROME", _R_ROME),
        "MEMIT": ("MEMIT", "AlphaEdit"),
        "FT": ("FT", "FT-L"),
        "LocFT": ("LocFT", "LocFT-BF"),
    }
    if str(value).casefold() not in map(str.casefold, aliases.get(method, (method,))):
        raise ValueError(f"{name}={shown(value)} is not {method}: give the file of {method}.")


def _with_layouts(message: str) -> str:
    """Adds to a message about an unknown entry which layouts are read."""
    if not message.startswith("no hyperparameter"):
        return message
    return (
        f"{message.removesuffix('.')}, and the layouts of ROME, MEMIT, AlphaEdit, LocFT-BF and EasyEdit are read; "
        "remove what does not belong to them."
    )


def _ours(
    content: Mapping[str, Any], config_type: type[Hyperparameters]
) -> tuple[dict[str, Any], list[str]]:
    """Translates the entries of a file to fields of a configuration, and lists the ignored ones."""
    named = {str(content.get(name)).casefold() for name in _METHOD_NAMES}
    if _R_ROME.casefold() in named:
        content = {"key_mode": KeyMode.CONSISTENT} | {
            name: value for name, value in content.items() if name not in _METHOD_NAMES
        }
    fields = {field.name for field in dataclasses.fields(config_type)}
    dropped = _MODULES | _INERT[config_type]
    if config_type not in (UltraEditConfig, LocFTConfig):  # which have entries of their own for it
        dropped |= {"rewrite_module_tmp"}
    unused = _IGNORED | _IGNORED_BY.get(config_type, set())
    ignored = sorted(set(content) & (unused - dropped - fields))
    values = {name: value for name, value in content.items() if name not in {*dropped, *ignored}}
    for name, required in _MUST_BE.get(config_type, {}).items():
        value = check(type(required), values.pop(name, required), name)
        if value != required:
            raise ValueError(f"{name}={value} is not supported: set it to {required}.")
    if config_type is UltraEditConfig:
        return _ultra_edit(values), ignored
    if config_type is LocFTConfig:
        return _locft(values), ignored
    if config_type is MENDConfig and "inner_params" in values:
        return _mend(values), ignored
    template = content.get("rewrite_module_tmp", _PREFIX + "mlp.c_proj")
    if config_type is PMETConfig:  # its files name the modules to write in a list of their own
        name = "rewrite_module_tmps"
        modules = check(list[str], content.get(name, [template]), name)
        if len(modules) != 1:
            raise ValueError(f"{name}={shown(modules)}: name the down-projection alone.")
        (template,) = modules
    leaf = _leaf(check(str, template, "rewrite_module_tmp"))
    if config_type is FTConfig:
        values = _fine_tuning(values, leaf)
    elif config_type in (KNConfig, MENDConfig, KEConfig):
        values = _from_model_name(values, content.get("model_name", ""), config_type)
    elif leaf is not Leaf.MLP_DOWN:
        raise ValueError(
            f"rewrite_module_tmp={shown(template)} is not the down-projection, which "
            f"{config_type.__name__.removesuffix('Config')} edits."
        )
    return values, ignored


def _fine_tuning(values: dict[str, Any], leaf: Leaf) -> dict[str, Any]:
    """Translates the entries of fine-tuning."""
    values = {"leaves": (leaf.name,), "scoring": TargetScoring.REFERENCE} | values
    if "objective_optimization" in values:
        name = values.pop("objective_optimization")
        if name not in list(_OBJECTIVES):
            raise ValueError(
                f"objective_optimization={shown(name)} is not supported: set it to {' or '.join(_OBJECTIVES)}."
            )
        values["scoring"] = _OBJECTIVES[name]
    # The original sets a bound only if the value is a float. Its files write false for none.
    bound = values.get("norm_constraint")
    if isinstance(bound, int) or str(bound).casefold() == "false":
        values["norm_constraint"] = None
    return values


def _ultra_edit(values: dict[str, Any]) -> dict[str, Any]:
    """Translates the entries of UltraEdit, whose files list the edited modules with their layers."""
    given = [name for name in ("inner_params", "edit_modules") if name in values]
    if len(given) != 1:
        found = (
            "both inner_params and edit_modules name"
            if given
            else "neither inner_params nor edit_modules names"
        )
        raise ValueError(f"{found} the edited modules: give one of the two lists.")
    (name,) = given
    _, layers, leaves = _weights(values.pop(name), name)
    _check_rest(values, UltraEditConfig)
    return values | {"layers": layers, "leaves": [leaf.name for leaf in leaves]}


def _mend(values: dict[str, Any]) -> dict[str, Any]:
    """Translates the entries of EasyEdit for MEND, whose files list the edited weights."""
    name = "inner_params"
    modules, layers, leaves = _weights(values.pop(name), name)
    if "n_hidden" in values:
        values["num_hidden"] = check(NonNegativeInt, values.pop("n_hidden"), "n_hidden")
    _check_rest(values, MENDConfig)
    # The published code trains rates in the order of the list, and applies them in the order of the model.
    order = [leaf for leaf in _MODEL_ORDER if leaf in leaves]
    if modules == list(itertools.product(layers, order)):
        rate_order = RateOrder.TRAINED
    elif len(order) == 2 and modules == list(itertools.product(layers, order[::-1])):
        rate_order = RateOrder.REFERENCE
    else:
        raise ValueError(
            f"{name} does not list the weights in the order of the model, so the published code would mix up their "
            f"learned rates, which is not supported: list them layer by layer, {', '.join(leaf.name for leaf in order)}"
            " in each."
        )
    found = {"layers": layers, "leaves": [leaf.name for leaf in Leaf if leaf in leaves]}
    return {"rate_order": rate_order} | values | found


def _weights(paths: Any, name: str) -> tuple[list[tuple[int, Leaf]], list[int], list[Leaf]]:
    """Returns the weights that a list names, in its order; their layers in ascending order; and those of each layer."""
    modules = [_module(path, name) for path in check(list[str], paths, name)]
    layers = sorted({layer for layer, _ in modules})
    leaves = list(dict.fromkeys(leaf for _, leaf in modules))
    if len(modules) != len(layers) * len(leaves) or len(set(modules)) != len(modules):
        found = "; ".join(
            f"{leaf.name} of {', '.join(str(layer) for layer, own in modules if own is leaf)}"
            for leaf in leaves
        )
        raise ValueError(
            f"{name} does not name the same weights in each layer, once each ({found}), which is not supported: name "
            "the same in each layer."
        )
    return modules, layers, leaves


def _locft(values: dict[str, Any]) -> dict[str, Any]:
    """Translates the entries of LocFT-BF, whose files name one layer and one weight."""
    name = "rewrite_module"
    template = check(str, values.pop(name, ""), name)
    leaf = _projections().get(template.removesuffix(".weight"))
    if leaf is None or not template.endswith(".weight"):
        raise ValueError(
            f"{name}={shown(template)} is not supported: name the kernel of one projection, such as "
            "model.layers.{}.mlp.down_proj.weight."
        )
    layer = check(int, values.pop("layer", None), "layer")
    _check_rest(values, LocFTConfig)
    return _LOCFT_DEFAULTS | values | {"layers": (layer,), "leaves": (leaf.name,)}


def _check_rest(values: Mapping[str, Any], config_type: type[Hyperparameters]) -> None:
    """Refuses entries that are no hyperparameters, and layers and leaves, which other entries of the file say."""
    known = {field.name for field in dataclasses.fields(config_type)}
    check_names(values, known - {"layers", "leaves"})


@functools.cache
def _projections() -> Mapping[str, Leaf]:
    """Returns the projections of all families by their module paths, such as "model.layers.{}.mlp.down_proj"."""
    ours = {"/".join(("blocks", *leaf.value, "kernel")): leaf for leaf in Leaf}
    weights = [weight for family in FAMILIES.values() for weight in family.weights]
    return {
        weight.name.removesuffix(".weight"): ours[weight.path]
        for weight in weights
        if weight.path in ours
    }


def _module(path: str, name: str) -> tuple[int, Leaf]:
    """Returns the layer and the projection of a module path with a number, which may end in ".weight"."""
    template, layer = path.removesuffix(".weight"), -1
    if match := re.search(r"(?<=\.)\d{1,9}(?=\.)", template):
        template, layer = f"{template[: match.start()]}{{}}{template[match.end() :]}", int(match[0])
    leaf = _projections().get(template)
    if leaf not in _MODEL_ORDER:
        raise ValueError(
            f"{name} names {shown(path)}, which is not supported: name projections of the MLP, such as "
            "transformer.h.18.mlp.fc_out or model.layers.29.mlp.down_proj."
        )
    return layer, leaf


def _from_model_name(
    values: dict[str, Any], name: Any, config_type: type[Hyperparameters]
) -> dict[str, Any]:
    """Adds the layers to the entries of KN, MEND or KE, whose files name a model instead."""
    name = check(str, name, "model_name")
    check_names(values, [field.name for field in dataclasses.fields(config_type)])
    found: dict[str, Any] = {}
    if "layers" not in values:
        found["layers"] = config_type.for_model(name).layers
    if config_type is KNConfig:
        found["encoding"] = TargetEncoding.REFERENCE
        found["row_vectors"] = RowVectors.REFERENCE
    if config_type is MENDConfig and model_key(name) == "gpt2-xl":
        found["rate_order"] = RateOrder.REFERENCE
    return found | values


def _leaf(template: str) -> Leaf:
    """Returns the weight of a module path."""
    name = template.removeprefix(_PREFIX)
    if name == template or name not in _LEAVES:
        known = ", ".join(_PREFIX + known for known in _LEAVES)
        raise ValueError(
            f"rewrite_module_tmp={shown(template)} is not supported: use one of {known}."
        )
    return _LEAVES[name]
