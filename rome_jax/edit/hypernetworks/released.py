"""Conversion of the published PyTorch checkpoints of MEND and KE.

`mend-10tok-gpt2-xl.pt` and similar files come from the training code of MEND (Mitchell et al., 2022), which also
trained KE under the name EFK. A checkpoint has no fingerprint, so only its shapes show whether it fits a model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from rome_jax.edit.baseline_config import KEConfig, MENDConfig
from rome_jax.edit.config import MethodName
from rome_jax.edit.hypernetworks.networks import Hypernetwork
from rome_jax.edit.stages.gradients import projection_sizes
from rome_jax.files.checked import shown
from rome_jax.models.convert_torch import read_tensors
from rome_jax.models.huggingface import stores_transposed
from rome_jax.models.interventions import Leaf
from rome_jax.models.registry import LanguageModel

Tensors = Mapping[str, np.ndarray]

_NAMES = {Leaf.MLP_UP: "mlp_c_fc", Leaf.MLP_DOWN: "mlp_c_proj"}  # the names in PyTorch's GPT-2


def read(path: str | Path, model: LanguageModel, config: MENDConfig | KEConfig) -> Hypernetwork:
    """Reads a published checkpoint; this needs torch, from the extra `convert`.

    Args:
      path: The .pt file.
      model: The model that the network was trained for.
      config: The hyperparameters of the method. Those of the published files are `MENDConfig.for_model("gpt2-xl")` and
        `KEConfig.for_model("gpt2-xl")`.

    Returns:
      The hypernetwork, without a fingerprint.

    Raises:
      CheckpointError: If the file is absent or damaged.
      MissingPackageError: If torch is not installed.
      ValueError: If the checkpoint is of another method, configuration or model, with the tensor that is absent or has
        another shape; if the configuration edits a gate; or if the method is KE and the model is of the GPT-J family.

    Example:
      >>> config = MENDConfig.for_model("gpt2-xl")  # doctest: +SKIP
      >>> network = read("mend-10tok-gpt2-xl.pt", model, config)  # doctest: +SKIP
      >>> deltas = mend.compute_deltas(model, requests, config, hypernetwork=network)  # doctest: +SKIP
    """
    if Leaf.MLP_GATE in config.leaves:
        raise ValueError(
            "leaves names MLP_GATE, which no published checkpoint edits: leave it out, or train a network of your own."
        )
    tensors = {
        re.sub(r"^model/(gtn\.|mend\.)?", "", name): tensor
        for name, tensor in read_tensors(path).items()
        if name.startswith("model/")
    }
    find = _Finder(path, tensors)
    if isinstance(config, MENDConfig):
        kind, variables = MethodName.MEND, _mend(find, model, config)
    else:
        kind, variables = MethodName.KE, _ke(find, model, config)
    return Hypernetwork(kind, config, variables, model.name, None, {"file": Path(path).name})


class _Finder:
    """The tensors of a checkpoint by name, with a check of their shapes."""

    def __init__(self, path: str | Path, tensors: Tensors) -> None:
        self.path, self.tensors = path, tensors

    def __call__(self, name: str, *shape: int | None) -> jnp.ndarray:
        """Returns a tensor, which must have this shape; None allows any size."""
        found = self.tensors.get(name)
        if found is None or not _fits(found.shape, shape):
            expected = " × ".join("any" if size is None else str(size) for size in shape)
            actual = "absent" if found is None else " × ".join(map(str, found.shape))
            raise ValueError(
                f"{self.path} is not a checkpoint of this method, model and configuration: {name} is {actual}, not "
                f"{expected}."
            )
        array = np.asarray(found, np.float32)
        if not np.isfinite(array).all():
            raise ValueError(
                f"{self.path} is damaged ({name} holds NaN or infinity): download it again."
            )
        return jnp.asarray(array)


def _fits(actual: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    """Returns whether a shape is the expected one, in which None allows any size."""
    sizes_fit = (want in (None, size) for want, size in zip(expected, actual, strict=False))
    return len(actual) == len(expected) and all(sizes_fit)


def _mend(find: _Finder, model: LanguageModel, config: MENDConfig) -> dict[str, Any]:
    """Converts the variables of MEND."""
    modes = len(config.layers)
    rates = find("edit_lrs", modes * len(config.leaves)).reshape(modes, -1)
    # The published training lists c_proj before c_fc for GPT-2 XL, which stores weights as [in, out], and fc_in before
    # fc_out for GPT-J, which stores them as [out, in].
    listed = (Leaf.MLP_DOWN, Leaf.MLP_UP)
    if stores_transposed(model.config, Leaf.MLP_UP):
        listed = listed[::-1]
    order = [leaf for leaf in listed if leaf in config.leaves]
    rates = rates[:, jnp.array([order.index(leaf) for leaf in config.leaves])]
    params: dict[str, Any] = {"rates": rates}
    statistics = {}
    for leaf in config.leaves:
        size_x, size_y = projection_sizes(model.config, leaf)
        prefix = f"({size_x}, {size_y})"
        params[leaf.name] = {
            f"layer_{index}": _low_rank_layer(
                find, f"{prefix}.mlp.layers.{index}", size_x + size_y, config
            )
            for index in range(config.num_hidden + 1)
        }
        count = find(f"{prefix}.k", 1)[0]
        statistics[leaf.name] = {
            name: {
                "count": count,
                "mean": find(f"{prefix}.{theirs}_mean", width),
                "squares": find(f"{prefix}.{theirs}_std", width) ** 2 * (count - 1),
            }
            for name, theirs, width in (("x", "u", size_x), ("delta", "v", size_y))
        }
    return {"params": params, "statistics": statistics}


def _low_rank_layer(find: _Finder, prefix: str, size: int, config: MENDConfig) -> dict[str, Any]:
    """Converts the parameters of one of MEND's low-rank layers."""
    rank, modes = min(config.rank, size), len(config.layers)
    return {
        "u": find(f"{prefix}.u", size, rank).T,
        "v": find(f"{prefix}.v", rank, size).T,
        "bias": find(f"{prefix}.bias", size),
        "scale": find(f"{prefix}.mode_scale.weight", modes, size),
        "shift": find(f"{prefix}.mode_shift.weight", modes, size),
    }


def _ke(find: _Finder, model: LanguageModel, config: KEConfig) -> dict[str, Any]:
    """Converts the variables of KE."""
    if stores_transposed(model.config, Leaf.MLP_UP):
        raise ValueError(
            f"no KE checkpoint was published for the family of {shown(model.name)}, whose weights PyTorch keeps "
            "transposed: use a model of the GPT-2 family."
        )
    params = {"condition": _condition(find, model, config)}
    for leaf in config.leaves:
        for layer in config.layers:
            weight = f"transformer_h_{layer}_{_NAMES[leaf]}_weight"
            params[f"{leaf.name}_{layer}"] = _conditioner(find, model, config, leaf, weight)
    return {"params": params}


def _condition(find: _Finder, model: LanguageModel, config: KEConfig) -> dict[str, Any]:
    """Converts the parameters of KE's recurrent network."""
    prefix, linear = "editor.condition", "editor.condition.linear._linear_layers.0"
    # The published code adds a padding token to the vocabulary.
    embedding = find(f"{prefix}.embedding.weight", None, model.config.width)
    return {
        "embedding": {"embedding": embedding},
        "linear": {
            "kernel": find(f"{linear}.weight", config.condition_width, 2 * config.lstm_width).T,
            "bias": find(f"{linear}.bias", config.condition_width),
        },
        "forward": _lstm(find, model, config, suffix=""),
        "backward": _lstm(find, model, config, suffix="_reverse"),
    }


def _lstm(
    find: _Finder, model: LanguageModel, config: KEConfig, suffix: str
) -> dict[str, dict[str, jnp.ndarray]]:
    """Converts the parameters of one direction of the LSTM."""
    hidden, prefix = config.lstm_width, "editor.condition.lstm._module"
    inputs = find(f"{prefix}.weight_ih_l0{suffix}", 4 * hidden, model.config.width)
    states = find(f"{prefix}.weight_hh_l0{suffix}", 4 * hidden, hidden)
    input_bias, state_bias = (
        find(f"{prefix}.bias_{part}_l0{suffix}", 4 * hidden) for part in ("ih", "hh")
    )
    bias = input_bias + state_bias
    gates = {}
    for gate, rows in zip("ifgo", jnp.split(jnp.arange(4 * hidden), 4), strict=True):
        gates[f"i{gate}"] = {"kernel": inputs[rows].T}
        gates[f"h{gate}"] = {"kernel": states[rows].T, "bias": bias[rows]}
    return gates


def _conditioner(
    find: _Finder, model: LanguageModel, config: KEConfig, leaf: Leaf, weight: str
) -> dict[str, Any]:
    """Converts the parameters of the conditioner of one weight."""
    sizes = (
        config.condition_width,
        config.hidden_width,
        2 * sum(projection_sizes(model.config, leaf)) + 1,
    )
    found = {}
    for name, index, rows, columns in (("hidden", 0, *sizes[:2]), ("out", 2, *sizes[1:])):
        prefix = f"editor.conditioners.{weight}_conditioner.conditioners.{index}"
        found[name] = {
            "kernel": find(f"{prefix}.weight_v", columns, rows).T,
            "bias": find(f"{prefix}.bias", columns),
        }
        scale = find(f"{prefix}.weight_g", columns, 1)[:, 0]
        found[f"{name}_norm"] = {f"{name}/kernel/scale": scale}
    return found
