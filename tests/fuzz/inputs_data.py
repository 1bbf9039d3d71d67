"""Functions of data sets, scores, and the results of runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

import rome_jax
from rome_jax import evaluation
from rome_jax.data import tokens
from rome_jax.data.corpus import open_corpus
from rome_jax.evaluation import comparison, datasets
from rome_jax.evaluation.columns import Row, parse_columns
from rome_jax.evaluation.grid import Grid
from rome_jax.evaluation.metrics import Estimate
from rome_jax.evaluation.sequence import read_counts
from rome_jax.trace import parse_facts
from tests.fuzz.call import BELOW_ONE, TEXTS, WORDS, Call
from tests.fuzz.examples import tiny

_MODEL = "factworld-gpt2"
_REQUEST = {
    "prompt": "{} is in",
    "subject": "Rome",
    "target_new": "Spain",
    "target_true": "Italy",
    "case_id": 3,
}
_COUNTERFACT = {
    "requested_rewrite": {
        "prompt": "{} is",
        "subject": "a",
        "target_new": {"str": "b"},
        "target_true": {"str": "c"},
    },
    "paraphrase_prompts": [],
    "neighborhood_prompts": [],
}
_ZSRE = {
    "subject": "a",
    "src": "Where is a?",
    "rephrase": "a?",
    "answers": ["b"],
    "loc": "nq question: c",
    "loc_ans": "d",
}
_FLAT = {"prompt": "a is", "subject": "a", "target_new": "b", "ground_truth": "c"}
_FACT = {"known_id": 0, "subject": "a", "attribute": "b", "prompt": "a is"}
_RECORDS: dict[str, Any] = {
    "null": None,
    "text": "abc",
    "number": 17,
    "object": {},
    "empty": [],
    "nulls": [None],
    "texts": ["a"],
    "numbers": [1],
    "lists": [[]],
    "nothing": [{}],
    "nan": math.nan,
}


def _find_runs(**given: Any) -> None:
    Path("results/ROME/run_000").mkdir(parents=True)
    Path("results/ROME/run_000/case_7.json").touch()
    evaluation.find_runs(**given)


def _read_cases(**given: Any) -> None:
    case = {"case_id": 7, "post": {"rewrite_prompts_exact": [True]}}
    Path("case_7.json").write_text(json.dumps(case))
    evaluation.read_cases(**given)


def _open_corpus(**given: Any) -> None:
    Path("a.txt").write_text("Rome.")
    list(open_corpus(**given).read(0))


CALLS: tuple[Call, ...] = (
    Call(
        "EditRequest",
        "data",
        rome_jax.EditRequest,
        _REQUEST,
        {
            "prompt": {"no-slot": "is in", "two-slots": "{} {}", "empty": ""},
            "subject": {"empty": "", "spaces": "  ", "null": None},
            "target_new": {"empty": "", "spaces": "  ", "null": None},
        },
    ),
    *(
        Call(
            parse.__name__,
            "data",
            parse,
            {"records": [good]},
            {"records": _RECORDS},
            names=("record", "facts", "list", "case 0"),
        )
        for parse, good in (
            (datasets.parse_counterfact, _COUNTERFACT),
            (datasets.parse_zsre, _ZSRE),
            (datasets.parse_one_paraphrase, _FLAT),
            (parse_facts, _FACT),
        )
    ),
    Call(
        "load_dataset",
        "data",
        lambda **given: datasets.load_dataset(**{"model_name": _MODEL, **given}),
        {"name": datasets.DatasetName.CF, "limit": 1, "seed": 0},
        {"limit": BELOW_ONE, "seed": {"minus": -1}, "role": {"nonsense": "x", "number": 3}},
    ),
    Call(
        "load_dataset.path",
        "data",
        lambda **given: datasets.load_dataset(datasets.DatasetName.CF, **given),
        None,
        {"path": {"missing": "absent.json", "empty": "", "long": "a" * 5000, "nul": "a\0b"}},
        names=("there is no file", "folder"),
    ),
    Call(
        "open_corpus",
        "data",
        _open_corpus,
        {"name": "a.txt", "text_key": "text", "sample_by": "line"},
        {"name": {"missing": "b.txt", "empty": "", "folder": "nothing/", "long": "a" * 5000}},
    ),
    Call(
        "load_snippets",
        "data",
        evaluation.load_snippets,
        {"factworld": True},
        {"path": {"missing": "absent.json", "empty": "", "long": "a" * 5000}},
        loose=True,
        names=("there is no file", "folder"),
    ),
    Call(
        "load_tfidf",
        "data",
        evaluation.load_tfidf,
        {"factworld": True},
        {"path": {"missing": "absent", "empty": "", "long": "a" * 5000}},
        loose=True,
        names=("there is no", "idf.npy", "tfidf_vocab"),
    ),
    Call(
        "parse_columns",
        "data",
        parse_columns,
        {"names": ["ES"]},
        {"names": {"nonsense": ["X"], "empty": [], "blank": [""], "surrogate": ["\ud800"]}},
        loose=True,
    ),
    Call(
        "read_counts",
        "data",
        lambda **given: read_counts(**given, most=1000),
        {"values": ["1", "10"]},
        {
            "values": {
                key: [value]
                for key, value in (WORDS | {"zero": "0", "huge": "9" * 30, "half": "1.5"}).items()
            }
        },
        loose=True,
        names=("--counts",),
    ),
    Call(
        "Grid.parse",
        "configs",
        lambda text: Grid.parse([text], rome_jax.ROMEConfig.for_model(_MODEL)).points,
        {"text": "v_lr=0.1,1"},
        {
            "text": WORDS
            | {f"v_lr-{key}": f"v_lr={value}" for key, value in WORDS.items()}
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
        "select_algorithms",
        "configs",
        comparison.select_algorithms,
        {"names": ["ROME"]},
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
        "find_runs",
        "data",
        _find_runs,
        {"results_dir": "results", "methods": ["ROME"], "runs": ["run_000"]},
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
        "read_cases",
        "data",
        _read_cases,
        {"first_n_cases": 1, "folder": "."},
        {
            "first_n_cases": BELOW_ONE,
            "folder": {"missing": "absent", "empty-folder": "/proc/self/task", "long": "a" * 5000},
        },
        typed={"first_n_cases": 1},
        names=("give the folder", "case"),
    ),
    Call(
        "encode",
        "models",
        lambda **given: rome_jax.encode(tiny().tokenizer, **given),
        {"texts": ["the cat"], "context_length": 8, "multiple": 4, "left": False},
        {
            "texts": {key: [value] for key, value in TEXTS.items()}
            | {"empty-list": [], "lone": 3, "none": None},
            "context_length": BELOW_ONE,
            "multiple": BELOW_ONE,
        },
        names=("sequence", "text"),
    ),
    Call(
        "pad",
        "models",
        tokens.pad,
        {"sequences": [[1, 2], [3]]},
        {
            "sequences": {
                "empty": [],
                "blank": [[]],
                "half": [[1.5]],
                "nan": [[math.nan]],
                "texts": [["a"]],
                "minus": [[-1]],
                "huge": [[2**70]],
                "nulls": [[None]],
            },
            "context_length": {"short": 1},
        },
        loose=True,
        names=("sequence",),
    ),
    Call(
        "make_queries",
        "data",
        lambda **given: evaluation.make_queries(tiny(), **given),
        {"prompts": ["the cat"], "targets": [["Rome"]]},
        {
            "prompts": {key: [value] for key, value in TEXTS.items()} | {"two": ["a", "b"]},
            "targets": {key: [[TEXTS[key]]] for key in ("surrogate", "null", "number")},
            "cases": {"two": [0, 1], "half": [0.5], "text": "a"},
        },
        typed=dict,
        names=("prompt",),
    ),
    Call(
        "target_nlls",
        "data",
        lambda **given: evaluation.target_nlls(tiny(), **given),
        {"prompts": ["the cat"], "targets": ["Rome"]},
        {
            "prompts": {key: [value] for key, value in TEXTS.items()},
            "targets": {key: [TEXTS[key]] for key in ("surrogate", "null", "number")}
            | {"two": ["a", "b"]},
        },
        typed=dict,
        names=("prompt",),
    ),
    Call(
        "perplexity",
        "data",
        lambda **given: evaluation.perplexity(tiny(), **given),
        {"texts": ["the cat is in"]},
        {"texts": {key: [value] for key, value in TEXTS.items()} | {"none": []}},
        typed=dict,
        names=("text", "prompt"),
    ),
    Call(
        "score_queries",
        "data",
        lambda **given: evaluation.score_queries(
            tiny(), evaluation.make_queries(tiny(), ["the cat"], [["Rome"]]), **given
        ),
        {"max_tokens": 64},
        {"max_tokens": BELOW_ONE},
    ),
    Call(
        "evaluate_records",
        "data",
        lambda **given: evaluation.evaluate_records(
            tiny(), records=datasets.parse_counterfact([_COUNTERFACT]), **given
        ),
        {"name": datasets.DatasetName.CF, "max_tokens": 64},
        {"max_tokens": BELOW_ONE},
    ),
    Call(
        "ngram_entropy",
        "data",
        lambda **given: evaluation.ngram_entropy("a b a b c".split(), **given),
        {"n": 2},
        {"n": BELOW_ONE},
    ),
    Call("word_tokens", "data", evaluation.word_tokens, {"text": "It is in Rome."}),
    Call(
        "fluency",
        "data",
        evaluation.fluency,
        {"texts": ["It is in Rome."]},
        {"texts": {key: [TEXTS[key]] for key in ("surrogate", "null", "number")} | {"none": []}},
        typed=dict,
    ),
    Call(
        "render",
        "data",
        lambda **given: evaluation.render(
            [Row("ROME", 4, {"score": Estimate(90.0, 1.0, 4)})], **given
        ),
        {"table_format": evaluation.TableFormat.TEXT, "width": 120},
        {"width": BELOW_ONE},
    ),
    Call(
        "estimate",
        "data",
        evaluation.estimate,
        lambda: {"values": np.array([1.0, 0.0]), "scale": 100.0},
        {"values": {"empty": np.array([])}},
        typed={"scale": 100.0},
    ),
)
