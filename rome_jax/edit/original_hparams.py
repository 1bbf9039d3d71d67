"""Reader of the published hyperparameter files, hparams/<method>/<model>.json.

The files name weights by PyTorch module paths and repeat facts about the model. Such entries are checked but not used.
An entry that would change a result and is not supported is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rome_jax.data.published import read_json
from rome_jax.edit.baseline_config import (
    FTConfig,
    KEConfig,
    KNConfig,
    MENDConfig,
)
from rome_jax.edit.config import Hyperparameters, MEMITConfig, ROMEConfig
from rome_jax.models.interventions import Leaf

# The edited weight by its module path after the prefix "transformer.h.{}.".
_LEAVES = {
    "mlp.c_proj": Leaf.MLP_DOWN,  # GPT-2
    "mlp.fc_out": Leaf.MLP_DOWN,  # GPT-J
    "attn.c_attn": Leaf.ATTN_QKV,
}
_PREFIX = "transformer.h.{}."
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
    FTConfig: {"max_length", "wd_power_law"},
    # Entries that the published KN and KE never read, the number of steps that run at once, and the published file that
    # is loaded.
    KNConfig: {"lr_scale", "n_toks", "batch_size"},
    MENDConfig: {"n_toks", "counterfact", "zsre", "mini"},
    KEConfig: {"lr_scale", "n_toks", "counterfact", "zsre", "mini"},
}
_MUST_BE: Mapping[type[Hyperparameters], Mapping[str, Any]] = {
    FTConfig: {"kl_factor": 0},
    MEMITConfig: {"layer_selection": "all"},
}


def read(path: str | Path, config_type: type[Hyperparameters]) -> Hyperparameters:
    """Reads a published hyperparameter file.

    Args:
      path: Path of the JSON file.
      config_type: Configuration class of the method that the file is for.

    Returns:
      The configuration.

    Raises:
      ValueError: If the file does not exist or is not a JSON object, or if an entry is unknown, unsupported or out of
        range.

    Example:
      >>> import json, pathlib
      >>> path = pathlib.Path("gpt2-xl.json")
      >>> _ = path.write_text(json.dumps({"layers": [17], "fact_token": "subject_last", "v_loss_layer": 47}))
      >>> read(path, ROMEConfig).layers
      (17,)
    """
    content, _ = read_json(Path(path))
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds {type(content).__name__}: give a JSON object of hyperparameters."
        )
    try:
        return config_type.from_dict(_ours(content, config_type))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _ours(content: Mapping[str, Any], config_type: type[Hyperparameters]) -> dict[str, Any]:
    """Translates the entries of a file to fields of a configuration."""
    dropped = _MODULES | _INERT[config_type] | {"rewrite_module_tmp"}
    values = {name: value for name, value in content.items() if name not in dropped}
    for name, required in _MUST_BE.get(config_type, {}).items():
        if (value := values.pop(name, required)) != required:
            raise ValueError(f"{name}={value} is not supported: set it to {required}.")
    leaf = _leaf(content.get("rewrite_module_tmp", _PREFIX + "mlp.c_proj"))
    if config_type is FTConfig:
        values["leaves"] = (leaf.name,)
        values["norm_constraint"] = (
            values.get("norm_constraint") or None
        )  # the original writes false
    elif config_type in (
        KNConfig,
        MENDConfig,
        KEConfig,
    ):  # these files name a model instead of layers
        values["layers"] = config_type.for_model(content.get("model_name", "")).layers
    elif leaf is not Leaf.MLP_DOWN:
        raise ValueError(
            f"rewrite_module_tmp={content['rewrite_module_tmp']!r} is not the down-projection, which "
            f"{config_type.__name__.removesuffix('Config')} edits."
        )
    return values


def _leaf(template: str) -> Leaf:
    """Returns the weight of a module path."""
    name = template.removeprefix(_PREFIX)
    if name == template or name not in _LEAVES:
        known = ", ".join(_PREFIX + known for known in _LEAVES)
        raise ValueError(f"rewrite_module_tmp={template!r} is not supported: use one of {known}.")
    return _LEAVES[name]
