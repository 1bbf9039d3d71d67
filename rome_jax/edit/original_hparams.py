"""Hyperparameter files of the original, hparams/<method>/<model>.json, read as configurations of ours.

They name the weights by PyTorch module paths and repeat what the model knows of itself; such entries are checked, not
taken. What changes a result and is not supported is an error.
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

# The weight that is edited, by its module path; "transformer.h.{}." goes before.
_LEAVES = {
    "mlp.c_proj": Leaf.MLP_DOWN,  # GPT-2
    "mlp.fc_out": Leaf.MLP_DOWN,  # GPT-J
    "attn.c_attn": Leaf.ATTN_QKV,
}
_PREFIX = "transformer.h.{}."
# Other modules' paths: they are where every GPT-2 or GPT-J has them.
_MODULES = {
    "layer_module_tmp",
    "mlp_module_tmp",
    "attn_module_tmp",
    "ln_f_module",
    "lm_head_module",
    "model_name",
}
# Of statistics, which come with a file of their own; and the layer of the loss, which the original never reads.
_STATISTICS = {"v_loss_layer", "mom2_dataset", "mom2_n_samples", "mom2_dtype"}
_INERT = {
    ROMEConfig: _STATISTICS,
    MEMITConfig: _STATISTICS,
    FTConfig: {"max_length", "wd_power_law"},
    # What the original's KN and KE never read, how many steps run at once, and which published file is loaded.
    KNConfig: {"lr_scale", "n_toks", "batch_size"},
    MENDConfig: {"n_toks", "counterfact", "zsre", "mini"},
    KEConfig: {"lr_scale", "n_toks", "counterfact", "zsre", "mini"},
}
_MUST_BE = {FTConfig: {"kl_factor": 0}, MEMITConfig: {"layer_selection": "all"}}


def read(path: str | Path, config_type: type[Hyperparameters]) -> Hyperparameters:
    """The configuration that a file of the original gives.

    Args:
      path: of the JSON file.
      config_type: of the method that it is for.

    Raises:
      ValueError: no such file, no JSON object, or an entry that is unknown, unsupported or out of range, named.

    Example:
      >>> read("hparams/ROME/gpt2-xl.json", ROMEConfig).layers  # doctest: +SKIP
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
    """The original's entries under our names and with our values."""
    dropped = _MODULES | _INERT[config_type] | {"rewrite_module_tmp"}
    values = {name: value for name, value in content.items() if name not in dropped}
    for name, wanted in _MUST_BE.get(config_type, {}).items():
        if (value := values.pop(name, wanted)) != wanted:
            raise ValueError(f"{name}={value} is not supported: set it to {wanted}.")
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
    ):  # the layers of the model that the file names
        values["layers"] = config_type.for_model(content.get("model_name", "")).layers
    elif leaf is not Leaf.MLP_DOWN:
        raise ValueError(
            f"rewrite_module_tmp={content['rewrite_module_tmp']!r} is not the down-projection, which "
            f"{config_type.__name__.removesuffix('Config')} edits."
        )
    return values


def _leaf(template: str) -> Leaf:
    name = template.removeprefix(_PREFIX)
    if name == template or name not in _LEAVES:
        known = ", ".join(_PREFIX + known for known in _LEAVES)
        raise ValueError(
            f"rewrite_module_tmp={template!r} is not supported: it may be one of {known}."
        )
    return _LEAVES[name]
