"""The table of functions whose arguments are damaged."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import rome_jax
from rome_jax import evaluation
from rome_jax.data import tokens
from rome_jax.data.corpus import open_corpus
from rome_jax.edit import METHODS, Provenance, TrainingConfig
from rome_jax.edit.config import MethodName
from rome_jax.evaluation import comparison, datasets
from rome_jax.evaluation.columns import parse_columns
from rome_jax.evaluation.grid import Grid
from rome_jax.evaluation.mass_edits import read_counts
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate
from rome_jax.moments import inputs as moment_inputs
from rome_jax.moments.limits import Limit
from rome_jax.trace import noise, parse_facts
from tests.fuzz.call import Call
from tests.fuzz.cases import Case
from tests.fuzz.examples import random_edit, tiny

_MODEL = "factworld-gpt2"


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


def _apply_delta(left: Any, right: Any, layer: Any) -> None:
    update = LowRankUpdate(Leaf.MLP_DOWN, jnp.asarray(layer), jnp.asarray(left), jnp.asarray(right))
    rome_jax.apply_delta(tiny().params, Delta((update,)))


def _delta() -> dict[str, Any]:
    config = tiny().config
    return {"left": np.ones((config.mlp_width, 1)), "right": np.ones((config.width, 1)), "layer": 0}


def _compute(**options: Any) -> None:
    request = rome_jax.EditRequest("{} is in", "Rome", "Spain")
    config = rome_jax.FTConfig((0,))
    rome_jax.fine_tune.compute_deltas(tiny(), [request], config, **options)


def _request(**changes: Any) -> Any:
    return rome_jax.EditRequest(**changes)


def _texts(text: str) -> None:
    rome_jax.encode(tiny().tokenizer, [text])


def _find_runs(**given: Any) -> None:
    Path("results/ROME/run_000").mkdir(parents=True)
    Path("results/ROME/run_000/case_7.json").touch()
    evaluation.find_runs(**given)


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


_WORDS = {
    "nonsense": "nonsense",
    "empty": "",
    "nan": "nan",
    "inf": "inf",
    "1e400": "1e400",
    "minus": "-1",
}

CALLS: tuple[Call, ...] = (
    *(call for name in MethodName for call in _of_config(name)),
    Call(
        "EditRequest",
        "data",
        _request,
        lambda: {
            "prompt": "{} is in",
            "subject": "Rome",
            "target_new": "Spain",
            "target_true": "Italy",
            "case_id": 3,
        },
        {
            "prompt": {"no-slot": "is in", "two-slots": "{} {}", "empty": ""},
            "subject": {"empty": "", "spaces": "  ", "null": None},
            "target_new": {"empty": "", "spaces": "  ", "null": None},
            "case_id": {"minus": -1},
        },
    ),
    *(
        Call(
            parse.__name__,
            "data",
            parse,
            lambda good=good: {"records": [good]},
            {
                "records": {
                    "null": None,
                    "text": "abc",
                    "number": 17,
                    "object": {},
                    "empty": [],
                    "nulls": [None],
                }
                | {"texts": ["a"], "numbers": [1], "lists": [[]], "nothing": [{}], "nan": math.nan}
            },
            names=("record", "facts", "list"),
        )
        for parse, good in (
            (
                datasets.parse_counterfact,
                {
                    "requested_rewrite": {
                        "prompt": "{} is",
                        "subject": "a",
                        "target_new": {"str": "b"},
                        "target_true": {"str": "c"},
                    },
                    "paraphrase_prompts": [],
                    "neighborhood_prompts": [],
                },
            ),
            (
                datasets.parse_zsre,
                {
                    "subject": "a",
                    "src": "Where is a?",
                    "rephrase": "a?",
                    "answers": ["b"],
                    "loc": "nq question: c",
                    "loc_ans": "d",
                },
            ),
            (parse_facts, {"known_id": 0, "subject": "a", "attribute": "b", "prompt": "a is"}),
        )
    ),
    Call(
        "load_dataset",
        "data",
        lambda limit: datasets.load_dataset(
            datasets.DatasetName.CF, model_name=_MODEL, limit=limit
        ),
        lambda: {"limit": 1},
        {"limit": {"zero": 0, "minus": -1}},
        loose=True,
    ),
    Call(
        "open_corpus",
        "data",
        lambda **given: (Path("a.txt").write_text("Rome."), list(open_corpus(**given).read(0))),
        lambda: {"name": "a.txt", "sample_by": "line"},
        {"name": {"missing": "b.txt", "empty": "", "folder": "nothing/", "long": "a" * 5000}},
        loose=True,
    ),
    Call(
        "Limit",
        "models",
        Limit,
        lambda: {"tokens": 10},
        {"tokens": {"zero": 0, "minus": -1}},
        loose=True,
    ),
    Call(
        "parse_noise",
        "edits",
        noise.parse_noise,
        lambda: {"text": "s3"},
        {
            "text": _WORDS
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
        loose=True,
    ),
    Call(
        "TracePrompt.of",
        "edits",
        lambda **given: rome_jax.TracePrompt.of(tiny().tokenizer, **given),
        lambda: {"text": "the cat is in", "subject": "cat", "target": "Rome"},
        {"subject": {"absent": "dog", "empty": ""}, "text": {"empty": ""}, "target": {"empty": ""}},
        names=("prompt",),
    ),
    Call(
        "parse_columns",
        "data",
        parse_columns,
        lambda: {"names": ["ES"]},
        {"names": {"nonsense": ["X"], "empty": [], "blank": [""], "surrogate": ["\ud800"]}},
        loose=True,
    ),
    Call(
        "read_counts",
        "data",
        read_counts,
        lambda: {"values": ["1", "10"]},
        {
            "values": {
                key: [value]
                for key, value in (_WORDS | {"zero": "0", "huge": "9" * 30, "half": "1.5"}).items()
            }
        },
        loose=True,
        names=("--counts",),
    ),
    Call(
        "Grid.parse",
        "configs",
        lambda text: Grid.parse([text], rome_jax.ROMEConfig.for_model(_MODEL)).points,
        lambda: {"text": "v_lr=0.1,1"},
        {
            "text": _WORDS
            | {f"v_lr-{key}": f"v_lr={value}" for key, value in _WORDS.items()}
            | {
                "layers": "layers=-1",
                "twice": "v_lr=1,1",
                "unknown": "fuzz=1",
                "code": "v_lr=__import__('os')",
                "steps": "v_num_grad_steps=1.5",
                "deep": "layers=" + "(" * 500 + ")" * 500,
                "digits": "v_num_grad_steps=" + "9" * 5000,
                "e400": "v_lr=1e400",
                "bool": "v_lr=True",
            }
        },
        loose=True,
    ),
    Call(
        "read_layers",
        "models",
        lambda text: moment_inputs.read_layers(text, None, "gpt2"),
        lambda: {"text": "0,2-3"},
        {
            "text": _WORDS
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
        lambda: {"values": ["10", "all"]},
        {
            "values": {
                key: [value]
                for key, value in (_WORDS | {"half": "1.5", "surrogate": "\ud800"}).items()
            }
        },
        loose=True,
        names=("--num_tokens",),
    ),
    Call(
        "select_algorithms",
        "configs",
        comparison.select_algorithms,
        lambda: {"names": ["ROME"]},
        {
            "names": {
                "nonsense": ["X"],
                "blank": [""],
                "surrogate": ["\ud800"],
                "twice": ["ROME", "X"],
            }
        },
        loose=True,
        names=("--algs",),
    ),
    Call(
        "Sampling",
        "models",
        rome_jax.Sampling,
        lambda: {"temperature": 1.0, "top_k": 5},
        {"temperature": {"minus": -1.0}, "top_k": {"zero": 0, "minus": -1}},
    ),
    Call(
        "generate_text",
        "models",
        lambda **given: rome_jax.generate_text(tiny(), ["the cat"], **given),
        lambda: {"max_new_tokens": 2},
        {"max_new_tokens": {"zero": 0, "minus": -1}},
        loose=True,
    ),
    Call(
        "encode",
        "models",
        _texts,
        lambda: {"text": "the cat"},
        {"text": {"empty": "", "null": None, "number": 3}},
        loose=True,
    ),
    Call(
        "pad",
        "models",
        tokens.pad,
        lambda: {"sequences": [[1, 2], [3]]},
        {"sequences": {"empty": [], "blank": [[]]}, "context_length": {"short": 1}},
        loose=True,
        names=("sequence",),
    ),
    Call(
        "load_model",
        "models",
        rome_jax.load_model,
        lambda: {"name_or_directory": _MODEL, "precision": "high"},
        {
            "name_or_directory": {
                "nonsense": "nowhere/nothing",
                "empty": "",
                "long": "a" * 5000,
                "folder": ".",
            },
            "dtype": {"nonsense": "float7", "int": "int8", "surrogate": "\ud800", "number": 17},
        },
        loose=True,
    ),
    Call(
        "TrainingConfig",
        "configs",
        TrainingConfig,
        lambda: {
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
        "SecondMoment",
        "models",
        rome_jax.SecondMoment,
        lambda: {"mean": np.eye(3), "count": 10},
        {
            "mean": {
                "nan": np.full((3, 3), np.nan),
                "inf": np.full((3, 3), np.inf),
                "flat": np.ones(3),
                "oblong": np.ones((2, 3)),
            }
            | {"texts": np.full((3, 3), "a"), "objects": np.full((3, 3), None)}
        },
        loose=True,
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
        "fine_tune.compute_deltas",
        "configs",
        _compute,
        lambda: {"chunk_size": 1},
        {"chunk_size": {"zero": 0, "minus": -1}},
        loose=True,
    ),
    Call(
        "find_runs",
        "data",
        _find_runs,
        lambda: {"results_dir": "results", "methods": ["ROME"], "runs": ["run_000"]},
        {
            "methods": {
                "nonsense": ["X"],
                "empty": [],
                "surrogate": ["\ud800"],
                "up": [".."],
                "long": ["a" * 5000],
            },
            "runs": {"nonsense": ["X"], "up": ["../.."]},
        },
        loose=True,
        names=("--dir_name", "--results_dir", "--runs"),
    ),
    Call(
        "save_edits",
        "edits",
        lambda path: rome_jax.save_edits(path, [random_edit()]),
        lambda: {"path": "edit.safetensors"},
        {
            "path": {
                "suffix": "edit.bin",
                "long": "a" * 5000 + ".safetensors",
                "folder": "/proc/nowhere/edit.safetensors",
            }
        },
        loose=True,
    ),
    *(
        Call(
            f"Provenance.{name}",
            "edits",
            lambda **given: Provenance.from_dict(_provenance() | given),
            dict,
            {name: _provenance_values(name)},
        )
        for name in ("method", "requests", "config", "templates", "seed", "model", "layers")
    ),
)


def cases() -> Iterator[Case]:
    """Yields all cases of bad arguments."""
    for call in CALLS:
        yield from call.cases()
