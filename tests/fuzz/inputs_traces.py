"""Functions of causal tracing."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np

import rome_jax
from rome_jax import trace
from rome_jax.models.patches import PatchMode
from rome_jax.trace import Distribution, Measure, Noise, NoiseLevel, TraceKind
from tests.fuzz.call import BELOW_ONE, TEXTS, WORDS, Call
from tests.fuzz.examples import tiny

_TEXT, _SUBJECT = "the cat is in", "cat"
_NOISE = Noise(Distribution.GAUSSIAN, 0.1)


def _prompt() -> Any:
    return rome_jax.TracePrompt.of(tiny().tokenizer, _TEXT, _SUBJECT)


def _noise() -> np.ndarray:
    first, stop = _prompt().span
    return np.full((2, stop - first, tiny().config.width), 0.1, np.float32)


@functools.cache
def _runs() -> Any:
    return trace.start(tiny(), _prompt(), _noise())


def _scores(**given: Any) -> None:
    trace.scores(_runs(), **{"tokens": np.array([1]), "layers": np.array([1]), **given})


def _verify(**given: Any) -> None:
    shape = len(_runs().prompt.ids), tiny().config.num_layers
    trace.verify(_runs(), np.zeros(shape), **given)


_WINDOW = {"zero": 0, "minus": -1, "beyond": 99}
_PLACES: dict[str, Any] = {
    "beyond": [99],
    "minus": [-1],
    "half": [0.5],
    "nan": [math.nan],
    "texts": ["a"],
    "nulls": [None],
}

CALLS: tuple[Call, ...] = (
    Call(
        "TracePrompt.of",
        "edits",
        lambda **given: rome_jax.TracePrompt.of(tiny().tokenizer, **given),
        {"text": _TEXT, "subject": _SUBJECT, "target": "Rome"},
        {
            "subject": {"absent": "dog", "empty": ""},
            "text": {"empty": ""},
            "target": {"empty": ""},
            "characters": {
                "other": (0, 3),
                "half": (0.5, 3),
                "text": "abc",
                "three": (4, 5, 7),
                "number": 3,
            },
        },
        names=("prompt",),
    ),
    Call(
        "find_prompt",
        "edits",
        lambda target: trace.find_prompt(
            tiny(), trace.KnownFact(0, _SUBJECT, "Rome", _TEXT), target
        ),
        {"target": "Rome"},
        {"target": {"empty": ""}},
    ),
    Call(
        "parse_noise",
        "edits",
        trace.parse_noise,
        {"text": "s3"},
        {
            "text": WORDS
            | {
                "zero": "0",
                "s": "s",
                "snan": "snan",
                "uinf": "uinf",
                "t2": "t2",
                "s1e400": "s1e400",
                "digits": "9" * 400,
            }
        },
        names=("noise_level",),
    ),
    Call(
        "NoiseLevel",
        "edits",
        NoiseLevel,
        {"distribution": Distribution.GAUSSIAN, "value": 0.1, "relative": False},
        {"value": {"minus": -1.0}},
    ),
    Call(
        "Noise",
        "edits",
        Noise,
        {"distribution": Distribution.GAUSSIAN, "value": 0.1},
        {"value": {"minus": -1.0}},
    ),
    Call(
        "Noise.draw",
        "edits",
        lambda **given: _NOISE.draw(jax.random.key(0), **given),
        {"samples": 2, "tokens": 1, "width": 8},
        dict.fromkeys(("samples", "tokens", "width"), BELOW_ONE),
    ),
    Call(
        "fit_noise",
        "edits",
        lambda **given: trace.fit_noise(
            tiny(), NoiseLevel(Distribution.GAUSSIAN, 3.0, True), **given
        ),
        {"subjects": ["the cat"]},
        {"subjects": {key: [value] for key, value in TEXTS.items()} | {"none": []}},
        typed=dict,
    ),
    Call(
        "embedding_moments",
        "edits",
        lambda **given: trace.embedding_moments(tiny(), **given),
        {"texts": ["the cat"]},
        {"texts": {key: [value] for key, value in TEXTS.items()} | {"none": []}},
        typed=dict,
    ),
    Call(
        "default_window",
        "edits",
        trace.default_window,
        {"num_layers": 6},
        {"num_layers": BELOW_ONE},
    ),
    Call(
        "start",
        "edits",
        lambda **given: trace.start(tiny(), _prompt(), **{"noise": _noise(), **given}),
        {"mode": PatchMode.ADD, "measure": Measure.PROBABILITY},
        {
            "noise": {
                "flat": np.ones(3),
                "empty": np.ones((0, 1, 1)),
                "texts": np.full((1, 1, 1), "a"),
                "none": None,
            }
        },
    ),
    Call(
        "trace",
        "edits",
        lambda **given: trace.trace(_runs(), **given),
        {"kind": TraceKind.MLP, "window": 2, "chunk_columns": 64},
        {"window": _WINDOW, "chunk_columns": BELOW_ONE, "tokens": _PLACES},
        prepare=_runs,
    ),
    Call(
        "scores",
        "edits",
        _scores,
        dict,
        {"tokens": _PLACES | {"two": [1, 2]}, "layers": _PLACES},
        prepare=_runs,
    ),
    Call(
        "screen_states",
        "edits",
        lambda **given: trace.screen_states(_runs(), **given),
        {"kind": TraceKind.MLP, "window": 2},
        {"window": _WINDOW},
        prepare=_runs,
    ),
    Call("verify", "edits", _verify, {"top": 1}, {"top": BELOW_ONE}, prepare=_runs),
    Call(
        "Protocol",
        "edits",
        lambda **given: trace.Protocol(_NOISE, **given),
        {
            "samples": 2,
            "seed": 0,
            "mode": PatchMode.ADD,
            "window": 2,
            "measure": Measure.PROBABILITY,
            "subject_last": False,
            "screen": 0,
            "chunk_columns": 64,
        },
        dict.fromkeys(("samples", "window", "chunk_columns"), BELOW_ONE)
        | {"seed": {"minus": -1}, "screen": {"minus": -1}},
    ),
    Call(
        "open_facts",
        "edits",
        trace.open_facts,
        {"name": "factworld"},
        {"name": {"missing": "absent.json", "empty": "", "long": "a" * 5000, "nul": "a\0b"}},
        loose=True,
        names=("there is no", "path"),
    ),
    Call(
        "load_trace",
        "edits",
        trace.load_trace,
        None,
        {"path": {"missing": "absent.npz", "empty": "", "long": "a" * 5000, "nul": "a\0b"}},
        names=("there is no", "trace"),
    ),
    Call(
        "KnownFact",
        "edits",
        trace.KnownFact,
        {"known_id": 0, "subject": "cat", "attribute": "Rome", "prompt": "the cat is in"},
        {"known_id": {"minus": -1}},
    ),
)
