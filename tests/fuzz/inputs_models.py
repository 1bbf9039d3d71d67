"""Functions of models, generated texts, and second moments."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import rome_jax
from rome_jax import models, moments
from rome_jax.models.interventions import Leaf
from rome_jax.moments import inputs as moment_inputs
from rome_jax.moments.limits import Limit
from tests.fuzz.call import BELOW_ONE, TEXTS, WORDS, Call
from tests.fuzz.examples import tiny

_MODEL = "factworld-gpt2"
_NOWHERE = {
    "nonsense": "nowhere/nothing",
    "empty": "",
    "long": "a" * 5000,
    "folder": ".",
    "surrogate": "\ud800",
    "nul": "a\0b",
}
_LAYER = {"beyond": 99, "minus": -1}
_LAYERS: dict[str, Any] = {
    "beyond": [99],
    "minus": [-1],
    "half": [0.5],
    "nan": [float("nan")],
    "text": "abc",
    "nulls": [None],
    "true": [True],
    "lists": [[0]],
}


@functools.cache
def _factworld() -> Any:
    return rome_jax.load_model(_MODEL)


def _generate(**given: Any) -> None:
    rome_jax.generate_text(tiny(), **{"prompts": ["the cat"], **given})


def _batch() -> Any:
    return rome_jax.encode(tiny().tokenizer, ["the cat"])


def _capture(**given: Any) -> None:
    model = tiny()
    rome_jax.capture(model.params, model.config, _batch(), (rome_jax.Site.MLP_OUT,), **given)


def _collect(**given: Any) -> None:
    corpus = moments.Corpus("fuzz", "1", 1, lambda first: iter(["the cat is in"][first:]))
    options = {"layers": [0], "directory": "stats", "progress": False}
    moments.collect_second_moments(tiny(), corpus, **{**options, **given})


def _moment(**given: Any) -> Any:
    return rome_jax.SecondMoment(**{"mean": np.eye(3), "count": 10, **given})


CALLS: tuple[Call, ...] = (
    Call(
        "Sampling",
        "models",
        rome_jax.Sampling,
        {"temperature": 1.0, "top_k": 5},
        {"temperature": {"minus": -1.0}, "top_k": BELOW_ONE},
    ),
    Call(
        "generate_text",
        "models",
        _generate,
        {"max_new_tokens": 2, "stop_token": 0},
        {
            "max_new_tokens": BELOW_ONE,
            "stop_token": {"minus": -1},
            "prompts": {key: [value] for key, value in TEXTS.items()} | {"none": []},
        },
        names=("text", "sequence", "max_length"),
    ),
    Call(
        "generate_text.max_length",
        "models",
        _generate,
        {"max_length": 4},
        {"max_length": {**BELOW_ONE, "beyond": 10**6}},
        names=("max_new_tokens", "context"),
    ),
    Call("clean_text", "models", models.clean_text, {"text": "Rome."}),
    Call(
        "top_tokens",
        "models",
        lambda **given: models.top_tokens(np.zeros((1, 40)), tiny().tokenizer, **given),
        {"k": 2},
        {"k": {**BELOW_ONE, "beyond": 41}},
    ),
    Call("capture", "models", _capture, {"stop": 1}, {"stop": _LAYER}, loose=True),
    Call(
        "check_layer",
        "models",
        lambda **given: tiny().config.check_layer(**given),
        {"layer": 0},
        {"layer": _LAYER},
    ),
    Call(
        "layer_name",
        "models",
        lambda layer: models.layer_name(tiny().config, Leaf.MLP_DOWN, layer),
        {"layer": 0},
        {"layer": _LAYER},
    ),
    Call(
        "split_axes",
        "models",
        lambda **given: models.split_axes(tiny().config, **given),
        {"num_devices": 1},
        {"num_devices": {**BELOW_ONE, "odd": 7}},
        names=("devices",),
    ),
    Call(
        "parse_mesh",
        "models",
        models.parse_mesh,
        {"text": "data:1,model:1"},
        {"text": TEXTS | {"axis": "heads:1", "many": "data:999", "half": "model:1.5"}},
        names=("mesh",),
    ),
    Call(
        "load_model",
        "models",
        rome_jax.load_model,
        {"name_or_directory": _MODEL, "precision": "high"},
        {
            "name_or_directory": _NOWHERE,
            "dtype": {"nonsense": "float7", "int": "int8", "surrogate": "\ud800", "number": 17},
            "precision": {"nonsense": "highly", "number": 3},
        },
        loose=True,
        names=("model",),
    ),
    Call(
        "load_orbax",
        "models",
        rome_jax.load_orbax,
        None,
        {"directory": _NOWHERE},
        names=("checkpoint", "model.json"),
    ),
    Call(
        "Limit",
        "models",
        Limit,
        {"tokens": 10},
        {"tokens": BELOW_ONE, "articles": {"both": 3, "half": 0.5, "text": "abc"}},
    ),
    Call(
        "read_layers",
        "models",
        lambda text: moment_inputs.read_layers(text, None, "gpt2"),
        {"text": "0,2-3"},
        {
            "text": WORDS
            | {
                "range": "3-1",
                "endless": "0-999999999999",
                "digits": "9" * 5000,
                "half": "1.5",
                "surrogate": "\ud800",
            }
        },
        loose=True,
        names=("--layers",),
    ),
    Call(
        "read_limits",
        "models",
        moment_inputs.read_limits,
        {"values": ["10", "all"]},
        {
            "values": {
                key: [value]
                for key, value in (
                    WORDS | {"half": "1.5", "surrogate": "\ud800", "digits": "9" * 5000}
                ).items()
            }
        },
        loose=True,
        names=("--num_tokens",),
    ),
    Call(
        "SecondMoment",
        "models",
        _moment,
        {"count": 10},
        {
            "count": BELOW_ONE,
            "mean": {
                "nan": np.full((3, 3), np.nan),
                "inf": np.full((3, 3), np.inf),
                "flat": np.ones(3),
                "oblong": np.ones((2, 3)),
                "texts": np.full((3, 3), "a"),
                "objects": np.full((3, 3), None),
                "none": None,
                "text": "abc",
            },
        },
    ),
    Call(
        "NullSpace",
        "models",
        lambda **given: moments.NullSpace(**{"basis": np.eye(3), **given}),
        {"layer": 0},
        {
            "layer": {"minus": -1},
            "basis": {
                "nan": np.full((3, 3), np.nan),
                "inf": np.full((3, 3), np.inf),
                "ones": np.ones((3, 2)),
                "flat": np.ones(3),
                "wide": np.ones((2, 3)),
                "texts": np.full((3, 3), "a"),
                "objects": np.full((3, 3), None),
                "none": None,
                "text": "abc",
            },
        },
    ),
    Call(
        "NullSpace.of_projection",
        "models",
        moments.NullSpace.of_projection,
        {"projection": np.eye(3)},
        {
            "projection": {
                "nan": np.full((3, 3), np.nan),
                "inf": np.full((3, 3), np.inf),
                "ones": np.ones((3, 3)),
                "zeros": np.zeros((3, 3)),
                "flat": np.ones(3),
                "oblong": np.ones((2, 3)),
                "texts": np.full((3, 3), "a"),
            },
        },
        loose=True,
    ),
    Call(
        "SecondMoment.solve",
        "models",
        lambda keys: _moment().solve(keys),
        {"keys": np.ones(3)},
        {"keys": {"short": np.ones(2), "nan": np.full(3, np.nan), "inf": np.full(3, np.inf)}},
        names=("width",),
    ),
    Call(
        "load_shipped",
        "models",
        rome_jax.load_shipped,
        {"name": _MODEL},
        {"name": _NOWHERE},
        names=("model",),
    ),
    Call(
        "moments.load",
        "models",
        moments.load,
        None,
        {"path": _NOWHERE | {"text": "abc"}},
        names=("second moments",),
    ),
    Call(
        "moments.read",
        "models",
        lambda layers: moments.read(None, layers, _factworld()),
        {"layers": [0]},
        {"layers": _LAYERS},
        loose=True,
        prepare=_factworld,
    ),
    Call(
        "moments.read.source",
        "models",
        lambda source: moments.read(source, [0], tiny()),
        None,
        {"source": _NOWHERE | {"npz": "absent.npz"}},
        names=("second moments",),
    ),
    Call(
        "load_reference",
        "models",
        moments.load_reference,
        None,
        {"path": _NOWHERE},
        names=("second moments",),
    ),
    Call(
        "read_provenance",
        "models",
        moments.read_provenance,
        None,
        {"path": _NOWHERE},
        names=("second moment", "safetensors"),
    ),
    Call(
        "accumulate",
        "models",
        lambda layers: moments.accumulate(tiny().params, tiny().config, [_batch()], layers=layers),
        {"layers": [0]},
        {"layers": _LAYERS | {"none": []}},
        loose=True,
    ),
    Call(
        "collect_second_moments",
        "models",
        _collect,
        {"sequence_length": 8, "batch_tokens": 16, "checkpoint_seconds": 1.0},
        {
            "sequence_length": {**BELOW_ONE, "beyond": 10**6},
            "batch_tokens": {**BELOW_ONE, "huge": 2**60},
            "checkpoint_seconds": {"minus": -1.0},
            "layers": _LAYERS | {"none": []},
        },
    ),
)
