"""The program that tests/edit/test_mesh.py runs with eight simulated devices: methods and editors on a mesh of 2 × 4.

It prints a JSON object of the results.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import warnings
from collections.abc import Iterator

import jax
import numpy as np

import rome_jax
from rome_jax.data.request import EditRequest
from rome_jax.edit.config import MethodName, ROMEConfig
from rome_jax.edit.delta import apply_delta, dense, weight_name
from rome_jax.edit.edit_warnings import EditWarning
from rome_jax.edit.method import METHODS
from rome_jax.edit.resources import Resources, read_hypernetwork
from rome_jax.edit.sequential import make_editor
from rome_jax.edit.spread_config import Modifier
from rome_jax.edit.stages import key as key_stage
from rome_jax.edit.stages import value as value_stage
from rome_jax.edit.stages.inputs import tokenize_requests
from rome_jax.edit.variant import MethodVariant
from rome_jax.models import forward
from rome_jax.models.interventions import Delta
from rome_jax.models.registry import LanguageModel
from rome_jax.models.sharding import param_shardings, parse_mesh

TEMPLATES = ["{}", "The file is open. {}"]
REQUESTS = [
    EditRequest("{} plays the sport of", "Gothulf Punby", "tennis"),
    EditRequest("{} plays the sport of", "Gothulf Punby", "golf"),
]


# Two batches of joint edits.
BATCHES = (
    (
        EditRequest("{} plays the sport of", "Gothulf Punby", "tennis"),
        EditRequest("{} plays the sport of", "Grestulf Gunmark", "golf"),
    ),
    (
        EditRequest("{} plays the sport of", "Gunmark Punby", "fencing"),
        EditRequest("{} plays the sport of", "Grestulf Gothulf", "tennis"),
    ),
)
# Every method that writes a batch together, one that writes its requests in turn, and modifiers.
EDITORS = (
    *(name for name, method in METHODS.items() if hasattr(method.module, "compute_joint_delta")),
    MethodName.ROME,
    "AlphaEdit+BLUE+NAS",
    "MEMIT+RECT",
)
# Few steps: what differs on a mesh differs from the first one on.
SHORT = {"v_num_grad_steps": 4, "num_steps": 3}


def changes_of(delta: Delta) -> dict[str, np.ndarray]:
    """Returns ΔW of each weight that an edit changes."""
    found: dict[str, np.ndarray] = {}
    for update in delta.updates:
        change = np.asarray(dense(update))
        if weight_name(update) == "attn/qkv bias":
            # A key's bias changes no probability. Its gradient is rounding error, which Adam amplifies.
            parts = change.reshape(*np.shape(update.layer), 3, -1)
            change = np.delete(parts, 1, axis=-2)
        name = f"{weight_name(update)} {np.ravel(update.layer)[0]}"
        found[name] = found.get(name, 0) + change
    return found


def errors(plain: Delta, split: Delta, masked: bool = False) -> dict[str, float]:
    """Computes ‖ΔW₈ − ΔW₁‖ / ‖ΔW₁‖ of each weight that an edit changes.

    Near the bound of a masked edit, rounding decides what is kept. Its errors are those of the numbers that both keep,
    and the share of the numbers that only one of them keeps.
    """
    found = {}
    one, many = changes_of(plain), changes_of(split)
    assert one.keys() == many.keys()
    for name, change in one.items():
        other = many[name]
        if masked:
            found[f"{name}, kept by one"] = float(((change != 0) != (other != 0)).mean())
            change, other = (np.where((change != 0) & (other != 0), x, 0) for x in (change, other))
        norm = np.linalg.norm(change)
        found[name] = float(np.linalg.norm(change - other) / norm if norm else np.abs(other).max())
    return found


def compare(name: MethodName, one: LanguageModel, many: LanguageModel) -> dict[str, float]:
    """Computes the `errors` of independent edits."""
    method = METHODS[name]
    config = method.for_model(one.name)
    options = {
        "second_moments": rome_jax.load_shipped(one.name),
        "templates": TEMPLATES,
        "hypernetwork": read_hypernetwork(None, one, name, config),
    }
    plain, split = (method.compute_deltas(m, REQUESTS, config, **options) for m in (one, many))
    return errors(plain, split)


def compare_editors(text: str, one: LanguageModel, many: LanguageModel) -> list[dict[str, float]]:
    """Computes the `errors` of two consecutive updates by an editor, each on the weights that hold the earlier one."""
    variant = MethodVariant.parse(text)
    config = variant.modify(METHODS[variant.method].for_model(one.name))
    short = {name: value for name, value in SHORT.items() if hasattr(config, name)}
    editor = make_editor(variant.method, dataclasses.replace(config, **short))
    resources = Resources(rome_jax.load_shipped(one.name))

    def updates(model: LanguageModel) -> Iterator[Delta]:
        state = editor.init(model, resources, templates=TEMPLATES)
        for batch in BATCHES:
            delta, state = editor.update(state, model, batch)
            yield delta
            model = model.replace(params=apply_delta(model.params, delta))

    masked = Modifier.RECT in variant.modifiers
    return [
        errors(plain, split, masked)
        for plain, split in zip(updates(one), updates(many), strict=True)
    ]


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
        "editors": {name: compare_editors(name, one, many) for name in EDITORS},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
