"""The hypernetworks that were published as PyTorch checkpoints, as ours.

`mend-10tok-gpt2-xl.pt` and its like come from the training code of MEND (Mitchell et al., 2022), which also trained KE,
there called EFK. A checkpoint knows no fingerprint; that it fits the model is checked by its shapes.
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
from rome_jax.models.config import Family
from rome_jax.models.convert_torch import read_tensors
from rome_jax.models.interventions import Leaf
from rome_jax.models.registry import LanguageModel

Tensors = Mapping[str, np.ndarray]

# The order of each layer's weights in the configuration of the published training.
RATE_LEAVES = (Leaf.MLP_DOWN, Leaf.MLP_UP)
_NAMES = {Leaf.MLP_UP: "mlp_c_fc", Leaf.MLP_DOWN: "mlp_c_proj"}  # as PyTorch's GPT-2 names them


def read(path: str | Path, model: LanguageModel, config: MENDConfig | KEConfig) -> Hypernetwork:
    """Reads a published checkpoint; needs torch, from the extra `convert`.

    Args:
      path: of the .pt file.
      model: that it was trained for.
      config: of its method; `MENDConfig.for_model("gpt2-xl")` is what was published.

    Raises:
      CheckpointError: torch is not installed, no such file, or a damaged one.
      ValueError: a checkpoint of another method, configuration or model: which tensor is absent or of another shape; or
        KE and a model of GPT-J's family.

    Example:
      >>> config = MENDConfig.for_model("gpt2-xl")  # doctest: +SKIP
      >>> network = read("mend-10tok-gpt2-xl.pt", model, config)  # doctest: +SKIP
      >>> deltas = mend.compute_deltas(model, requests, config, hypernetwork=network)  # doctest: +SKIP
    """
    tensors = {
        re.sub(r"^model/(gtn\.|mend\.)?", "", name): tensor
        for name, tensor in read_tensors(path).items()
        if name.startswith("model/")
    }
    kind = MethodName.MEND if isinstance(config, MENDConfig) else MethodName.KE
    find = _Finder(path, tensors)
    variables = (_mend if kind is MethodName.MEND else _ke)(find, model, config)
    return Hypernetwork(kind, config, variables, model.name, None, {"file": Path(path).name})


class _Finder:
    """Tensors by name, checked."""

    def __init__(self, path: str | Path, tensors: Tensors):
        self.path, self.tensors = path, tensors

    def __call__(self, name: str, *shape: int | None) -> jnp.ndarray:
        """The tensor, whose shape must be this; None allows any size."""
        found = self.tensors.get(name)
        fits = found is not None and len(found.shape) == len(shape)
        if not fits or any(w not in (None, s) for w, s in zip(shape, found.shape, strict=True)):
            wanted = " × ".join("any" if size is None else str(size) for size in shape)
            there = "is not there" if found is None else f"is {' × '.join(map(str, found.shape))}"
            raise ValueError(
                f"{self.path} is no checkpoint of this method, model and configuration: {name} {there}, not {wanted}."
            )
        return jnp.asarray(found, jnp.float32)


def _mend(find: _Finder, model: LanguageModel, config: MENDConfig) -> dict[str, Any]:
    modes = len(config.layers)
    rates = find("edit_lrs", modes * len(config.leaves)).reshape(modes, -1)
    order = [leaf for leaf in RATE_LEAVES if leaf in config.leaves]
    rates = rates[:, jnp.array([order.index(leaf) for leaf in config.leaves])]
    params, statistics = {"rates": rates}, {}
    for leaf in config.leaves:
        size_x, size_y = projection_sizes(model.config, leaf)
        prefix, size = f"({size_x}, {size_y})", size_x + size_y
        rank = min(config.rank, size)
        params[leaf.name] = {}
        for index in range(config.num_hidden + 1):
            layer = f"{prefix}.mlp.layers.{index}"
            params[leaf.name][f"layer_{index}"] = {
                "u": find(f"{layer}.u", size, rank).T,
                "v": find(f"{layer}.v", rank, size).T,
                "bias": find(f"{layer}.bias", size),
                "scale": find(f"{layer}.mode_scale.weight", modes, size),
                "shift": find(f"{layer}.mode_shift.weight", modes, size),
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


def _ke(find: _Finder, model: LanguageModel, config: KEConfig) -> dict[str, Any]:
    if model.config.family is Family.GPTJ:
        raise ValueError(
            f"no KE checkpoint was published for the family of {model.name!r}, whose weights PyTorch keeps transposed: "
            "use one of GPT-2."
        )
    width, hidden = model.config.width, config.lstm_width
    prefix = "editor.condition"
    condition = {
        # The published code adds a padding token.
        "embedding": {"embedding": find(f"{prefix}.embedding.weight", None, width)},
        "linear": {
            "kernel": find(
                f"{prefix}.linear._linear_layers.0.weight", config.condition_width, 2 * hidden
            ).T,
            "bias": find(f"{prefix}.linear._linear_layers.0.bias", config.condition_width),
        },
    }
    for name, suffix in (("forward", ""), ("backward", "_reverse")):
        lstm = f"{prefix}.lstm._module"
        inputs = find(f"{lstm}.weight_ih_l0{suffix}", 4 * hidden, width)
        states = find(f"{lstm}.weight_hh_l0{suffix}", 4 * hidden, hidden)
        bias = sum(find(f"{lstm}.bias_{part}_l0{suffix}", 4 * hidden) for part in ("ih", "hh"))
        condition[name] = {}
        for gate, own in zip("ifgo", jnp.split(jnp.arange(4 * hidden), 4), strict=True):
            condition[name][f"i{gate}"] = {"kernel": inputs[own].T}
            condition[name][f"h{gate}"] = {"kernel": states[own].T, "bias": bias[own]}
    params = {"condition": condition}
    for leaf in config.leaves:
        for layer in config.layers:
            weight = f"transformer_h_{layer}_{_NAMES[leaf]}_weight"
            params[f"{leaf.name}_{layer}"] = _conditioner(find, model, config, leaf, weight)
    return {"params": params}


def _conditioner(
    find: _Finder, model: LanguageModel, config: KEConfig, leaf: Leaf, weight: str
) -> dict[str, Any]:
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
