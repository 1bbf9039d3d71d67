"""Functions that compute, change, and store edits."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rome_jax
from rome_jax import edit
from rome_jax.edit import METHODS, Provenance, TrainingConfig
from rome_jax.edit.config import MethodName
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate
from tests.edit.networks import KE_CONFIG, MEND_CONFIG, random_hypernetwork
from tests.fuzz.call import BELOW_ONE, Call
from tests.fuzz.examples import random_edit, tiny

_MODEL = "factworld-gpt2"
_TEMPLATES = {
    "none": [],
    "no-slot": ["{}", "Rome."],
    "not-first": ["A. {}"],
    "numbers": [3],
    "nulls": [None],
    "surrogate": ["{}", "\ud800{}"],
    "object": {"a": 1},
}


def _of_config(name: MethodName) -> Iterator[Call]:
    """Yields the ways in which the hyperparameters of a method are made."""
    known = "gpt2-xl" if name in (MethodName.MEND, MethodName.KE) else _MODEL
    config_type = METHODS[name].config_type

    def values() -> dict[str, Any]:
        config = METHODS[name].for_model(known)
        found = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        return {key: 0.5 if value is None else value for key, value in found.items()}

    def plain() -> dict[str, Any]:
        return METHODS[name].for_model(known).to_dict()

    layers = {"layers": {"twice": [1, 1], "minus": [-1], "none": []}}
    more = {"fuzz": {"number": 1}}
    read = config_type.from_dict
    yield Call(
        f"{name}.from_dict",
        "configs",
        lambda **given: read(given),
        plain,
        layers | more,
        typed=values,
    )
    yield Call(f"{name}.config", "configs", config_type, values, layers)
    names = {"nonsense": "nowhere", "empty": "", "long": "a" * 5000, "nul": "a\0b"}
    for_model = METHODS[name].for_model
    yield Call(
        f"{name}.for_model",
        "configs",
        lambda **given: for_model(**given),
        {"model_name": known},
        {"model_name": names},
        names=("model",),
    )


def _compute(name: MethodName, **given: Any) -> None:
    """Computes an edit of `tiny()`."""
    request = rome_jax.EditRequest("{} is in", "Rome", "Spain")
    options: dict[str, Any] = {"templates": ["{}"], "hypernetwork": None}
    config: Any = METHODS[name].config_type(layers=(0,))
    if config.needs_second_moments:  # with eigenvalues below the threshold of AlphaEdit
        width = tiny().config.mlp_width
        options["second_moments"] = {0: rome_jax.SecondMoment(1e-3 * np.eye(width), width)}
    if name in (MethodName.MEND, MethodName.KE):
        config = MEND_CONFIG if name is MethodName.MEND else KE_CONFIG
        options["hypernetwork"] = _network(name)
    given = {"requests": [request], **options, **given}
    METHODS[name].compute_deltas(tiny(), config=config, **given)


@functools.cache
def _network(name: MethodName) -> Any:
    config = MEND_CONFIG if name is MethodName.MEND else KE_CONFIG
    return random_hypernetwork(config, tiny().config)


def _of_method(name: MethodName) -> Call:
    """Returns the call of the method."""
    templates = METHODS[name].samples_templates
    return Call(
        f"{name}.compute_deltas",
        "edits",
        lambda **given: _compute(name, **given),
        {"chunk_size": 1},
        {
            "chunk_size": BELOW_ONE,
            "requests": {"none": [], "texts": ["a"], "nulls": [None], "null": None},
        }
        | ({"templates": _TEMPLATES} if templates else {}),
        prepare=lambda: _network(name) if name in (MethodName.MEND, MethodName.KE) else tiny(),
        names=("template",),
    )


def _apply_delta(left: Any, right: Any, layer: Any) -> None:
    update = LowRankUpdate(Leaf.MLP_DOWN, jnp.asarray(layer), jnp.asarray(left), jnp.asarray(right))
    rome_jax.apply_delta(tiny().params, Delta((update,)))


def _delta() -> dict[str, Any]:
    config = tiny().config
    return {"left": np.ones((config.mlp_width, 1)), "right": np.ones((config.width, 1)), "layer": 0}


def _record(**given: Any) -> None:
    one = random_edit()
    deltas = jax.tree.map(lambda leaf: leaf[None], one.delta)
    config = rome_jax.ROMEConfig((1,))
    edit.record_edits(
        tiny(),
        list(one.provenance.requests),
        **{"method": "ROME", "config": config, "deltas": deltas, **given},
    )


def _provenance() -> dict[str, Any]:
    return dataclasses.asdict(random_edit().provenance)


def _provenance_values(name: str) -> dict[str, Any]:
    bad: dict[str, Any] = {
        "half": 1.5,
        "nan": math.nan,
        "object": {"fuzz": 1},
        "nulls": [None],
        "true": True,
    }
    if name in ("config", "model"):
        bad.pop("object")
    if name != "seed":
        bad |= {"null": None} if name not in ("model", "layers") else {}
    return bad


CALLS: tuple[Call, ...] = (
    *(call for name in MethodName for call in _of_config(name)),
    *map(_of_method, MethodName),
    Call(
        "TrainingConfig",
        "configs",
        TrainingConfig,
        {
            "learning_rate": 1e-3,
            "batch_size": 4,
            "edit_weight": 0.1,
            "margin_decay": 0.8,
            "max_steps": 10,
            "clip": 1.0,
            "seed": 0,
        },
        {
            "learning_rate": {"zero": 0.0, "minus": -1.0},
            "max_steps": {"zero": 0},
            "margin_decay": {"two": 2.0},
        },
    ),
    Call(
        "sample_templates",
        "edits",
        lambda lengths: edit.sample_templates(tiny(), jax.random.key(0), lengths),
        {"lengths": ((5, 1),)},
        {
            "lengths": {
                "flat": [5, 1],
                "zero": [(5, 0)],
                "minus": [(-1, 1)],
                "half": [(5.5, 1)],
                "three": [(1, 2, 3)],
                "text": "abc",
                "beyond": [(10**6, 1)],
                "endless": [(5, 10**9)],
            }
        },
        names=("length", "context"),
        loose=True,
    ),
    Call(
        "tokenize_requests",
        "edits",
        lambda templates, context_length: edit.tokenize_requests(
            tiny().tokenizer,
            [rome_jax.EditRequest("{} is in", "Rome", "Spain")],
            templates,
            rome_jax.FactToken.SUBJECT_LAST,
            context_length,
        ),
        {"templates": ["{}"], "context_length": 64},
        {
            "templates": {key: bad for key, bad in _TEMPLATES.items() if key != "not-first"},
            "context_length": BELOW_ONE,
        },
        names=("template",),
    ),
    Call(
        "Editor.prepare",
        "edits",
        lambda **given: edit.Editor.prepare(
            MethodName.MEMIT, tiny(), rome_jax.MEMITConfig((0,), mom2_adjustment=False), **given
        ),
        {"seed": 0, "chunk_size": 1, "templates": ["{}"]},
        {"seed": {"minus": -1}, "chunk_size": BELOW_ONE, "templates": _TEMPLATES},
        names=("template",),
    ),
    Call(
        "read_config",
        "configs",
        lambda **given: edit.read_config(**{"algorithm": MethodName.ROME, **given}),
        {"model_name": _MODEL},
        {
            "algorithm": {"nonsense": "X", "number": 3},
            "model_name": {"nonsense": "nowhere", "empty": "", "long": "a" * 5000},
            "hparams_fname": {"missing": "absent.json", "empty": "", "long": "a" * 5000},
            "changes": {"nonsense": {"fuzz": 1}, "null": {"layers": None}, "nan": {"v_lr": "nan"}},
        },
        names=("model", "there is no file", "hyperparameter", "folder", "layers", "v_lr"),
    ),
    Call(
        "apply_delta",
        "edits",
        _apply_delta,
        _delta,
        {
            "left": {"flat": np.ones(3), "short": np.ones((3, 1)), "rank": np.ones((4 * 32, 2))},
            "right": {"flat": np.ones(3), "short": np.ones((3, 1)), "empty": np.ones((0, 1))},
            "layer": {"beyond": 99, "minus": -1},
        },
        loose=True,
        typed=dict,
        names=("update", "delta", "MLP_DOWN"),
    ),
    Call(
        "record_edits",
        "edits",
        _record,
        {"method": "ROME", "seed": 0, "hypernetwork": "abc"},
        {"method": {"empty": ""}, "templates": {"numbers": [3], "nulls": [None], "text": 3.5}},
        prepare=random_edit,
    ),
    Call(
        "save_edits",
        "edits",
        lambda path: rome_jax.save_edits(path, [random_edit()]),
        {"path": "edit.safetensors"},
        {
            "path": {
                "suffix": "edit.bin",
                "long": "a" * 5000 + ".safetensors",
                "folder": "/proc/nowhere/edit.safetensors",
                "empty": "",
                "nul": "a\0.safetensors",
            }
        },
        loose=True,
        names=("/proc/nowhere",),
        prepare=random_edit,
    ),
    Call(
        "load_edits",
        "edits",
        rome_jax.load_edits,
        None,
        {
            "path": {
                "missing": "absent.safetensors",
                "long": "a" * 5000 + ".safetensors",
                "folder": "/proc",
                "empty": "",
                "nul": "a\0.safetensors",
            }
        },
        names=("edits", "file"),
    ),
    *(
        Call(
            f"Provenance.{name}",
            "edits",
            lambda **given: Provenance.from_dict(_provenance() | given),
            dict,
            {name: _provenance_values(name)},
            prepare=random_edit,
        )
        for name in ("method", "requests", "config", "templates", "seed", "model", "layers")
    ),
)
