"""The program that tests/edit/test_mesh.py runs with eight simulated devices: every method on a mesh of 2 × 4.

It prints a JSON object of the results.
"""

from __future__ import annotations

import json
import math
import re
import warnings

import jax
import numpy as np

import rome_jax
from rome_jax.data.request import EditRequest
from rome_jax.edit.config import MethodName, ROMEConfig
from rome_jax.edit.delta import dense, weight_name
from rome_jax.edit.edit_warnings import EditWarning
from rome_jax.edit.method import METHODS
from rome_jax.edit.resources import read_hypernetwork
from rome_jax.edit.stages import key as key_stage
from rome_jax.edit.stages import value as value_stage
from rome_jax.edit.stages.inputs import tokenize_requests
from rome_jax.models import forward
from rome_jax.models.registry import LanguageModel
from rome_jax.models.sharding import param_shardings, parse_mesh

TEMPLATES = ["{}", "The file is open. {}"]
REQUESTS = [
    EditRequest("{} plays the sport of", "Gothulf Punby", "tennis"),
    EditRequest("{} plays the sport of", "Gothulf Punby", "golf"),
]


def compare(name: MethodName, one: LanguageModel, many: LanguageModel) -> dict[str, float]:
    """Computes ‖ΔW₈ − ΔW₁‖ / ‖ΔW₁‖ of each weight that a method changes."""
    method = METHODS[name]
    config = method.for_model(one.name)
    options = {
        "second_moments": rome_jax.load_shipped(one.name),
        "templates": TEMPLATES,
        "hypernetwork": read_hypernetwork(None, one, name, config),
    }
    plain, split = (method.compute_deltas(m, REQUESTS, config, **options) for m in (one, many))
    found = {}
    for a, b in zip(plain.updates, split.updates, strict=True):
        change, other = np.asarray(dense(a)), np.asarray(dense(b))
        if weight_name(a) == "attn/qkv bias":
            # A key's bias changes no probability. Its gradient is rounding error, which Adam amplifies.
            change, other = (np.delete(x.reshape(2, 3, -1), 1, axis=1) for x in (change, other))
        norm = np.linalg.norm(change)
        error = np.linalg.norm(change - other) / norm if norm else np.abs(other).max()
        found[f"{weight_name(a)} {int(a.layer[0])}"] = float(error)
    return found


def collectives(text: str) -> dict[str, int]:
    """Returns the number of elements of the largest array of each kind of communication in a compiled program."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    found: dict[str, int] = {}
    for shapes, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text):
        for shape in re.findall(r"\w+\[([\d,]+)\]", shapes):
            found[kind] = max(found.get(kind, 0), math.prod(map(int, shape.split(","))))
    return found


def communication(model: LanguageModel) -> dict[str, dict[str, int]]:
    """Compiles a forward pass and the programs of an edit with ROME; returns the `collectives` of each."""
    params, config = model.params, ROMEConfig.for_model(model.name)
    inputs = tokenize_requests(model.tokenizer, REQUESTS, TEMPLATES, config.fact_token, 256)
    (layer,) = config.layers
    arguments = (params, model.config, inputs.batch, inputs.fact, layer, None, inputs.shared)
    states = key_stage.layer_states(*arguments)
    prefix = inputs.num_prefix
    suffix = value_stage.freeze_prefix(
        params, model.config, inputs.batch, prefix, states.hidden, layer, inputs.shared
    )
    programs = {
        "forward": forward.logits.lower(params, model.config, inputs.batch),
        "states": key_stage.layer_states.lower(*arguments),
        "value": value_stage._optimize.lower(
            params,
            model.config,
            value_stage.ValueSettings.of(config),
            inputs.targets.shift(-prefix),
            inputs.essence.shift(-prefix),
            suffix,
            inputs.by_context(states.value)[0][:, None],
            layer,
            config.v_num_grad_steps,
            None,
            jax.numpy.float32(1),
        ),
    }
    return {name: collectives(lowered.compile().as_text()) for name, lowered in programs.items()}


def statistics_error(one: LanguageModel, many: LanguageModel) -> float:
    """Computes ‖C₈ − C₁‖ / ‖C₁‖ of the second moment of layer 1."""
    batch = rome_jax.encode(one.tokenizer, [request.text for request in REQUESTS], multiple=32)
    plain, split = (
        np.asarray(rome_jax.moments.accumulate(m.params, m.config, [batch], layers=[1])[1].mean)
        for m in (one, many)
    )
    return float(np.linalg.norm(plain - split) / np.linalg.norm(plain))


def main() -> None:
    """Prints the results."""
    warnings.simplefilter("ignore", EditWarning)
    one = rome_jax.load_model("factworld-gpt2")
    shardings = param_shardings(one.config, parse_mesh("data:2,model:4"))
    many = one.replace(params=jax.device_put(one.params, shardings))
    rome = METHODS[MethodName.ROME]
    delta = rome.compute_deltas(
        many,
        REQUESTS,
        rome.for_model(one.name),
        second_moments=rome_jax.load_shipped(one.name),
        templates=TEMPLATES,
    )
    (update,) = delta.updates
    found = {
        "devices": len(jax.devices()),
        "weight": one.params["blocks"]["mlp"]["down"]["kernel"][0].size,
        "communication": communication(many),
        "factors": [list(factor.sharding.spec) for factor in (update.left, update.right)],
        "statistics": statistics_error(one, many),
        "methods": {name: compare(name, one, many) for name in METHODS},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
