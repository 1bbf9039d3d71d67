"""Summaries of result folders: means over cases as the original defines them, with 95 % intervals.

A run `results/<method>/run_<id>` holds one file `case_<id>.json` per case. It contains the scores `pre` and `post` the
edit. Folders written by the original have the same files and can be read too.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rome_jax.evaluation import intervals
from rome_jax.evaluation.metrics import (
    Estimate,
    accuracy,
    estimate,
    harmonic_mean,
    magnitude,
    success,
)
from rome_jax.models.runs import read_run

Case = Mapping[str, Any]

_PROMPTS = ("rewrite", "paraphrase", "neighborhood", "attribute", "portability")
# Metrics of prompts that are right or wrong -> the name of their list in a case file.
_JUDGED = {"acc": "correct", "acc_by_token": "correct_by_token", "exact": "exact"}
_GENERATION = ("ngram_entropy", "reference_score", "essence_score")
_UNSCALED = ("time", "pre_essence_score", "post_essence_score")
# Means of Booleans; all other metrics are means of real numbers.
_RATE = re.compile(r".*_(success|acc|acc_by_token|exact)")
_OF_THE_ORIGINAL = re.compile(
    r"time|(pre|post)_((rewrite|paraphrase|neighborhood)_(success|diff|acc)"
    r"|ngram_entropy|reference_score|essence_score|score)"
)


class State(enum.StrEnum):
    """State of the model that is scored: before or after the edit."""

    PRE = "pre"
    POST = "post"


@dataclasses.dataclass(frozen=True)
class Source:
    """The model and the data of a run, as its run.json records them.

    Attributes:
      model: Name of the model.
      dataset: Where the records come from: "factworld", the name of a file, or "published".
      identity: Fingerprints and settings that tell apart models and data of the same name.
    """

    model: str
    dataset: str
    identity: tuple[str, ...] = dataclasses.field(repr=False)

    @classmethod
    def read(cls, folder: str | Path) -> Source | None:
        """Reads the source of a run; None if its run.json is missing or does not name it, as with the original's runs.

        Args:
          folder: Folder of the run.
        """
        keys = ("fingerprint", "precision", "ds_name", "dataset_sha256")
        try:
            settings = read_run(Path(folder))["settings"]
            identity = tuple(str(settings[key]) for key in keys)
            return cls(settings["model"], settings["dataset"], identity)
        except (OSError, ValueError, KeyError, TypeError):
            return None


@dataclasses.dataclass(frozen=True)
class Summary:
    """The metrics of a run.

    Attributes:
      num_cases: The number of cases that were read.
      metrics: Estimates by name; a metric that no case has is absent. The names are `time`, and with the prefixes
        `pre_` and `post_`: `_success` and `_diff` of `rewrite`, `paraphrase`, `neighborhood` and `attribute`, where
        `_diff` is the probability of the desired target minus that of the other one; for zsRE `_acc`, and
        `_acc_by_token` where token ids were compared; `_exact`, also of `portability`; `ngram_entropy`,
        `reference_score` and `essence_score`; and `score`, the harmonic mean of the three means of `_success`, or of
        `_acc` for zsRE.
      unedited: The metrics of the unedited model, with the prefix `pre_`, by case. A case is identified by its id and
        its request.
      source: The model and the data, if known.
    """

    num_cases: int
    metrics: Mapping[str, Estimate]
    unedited: Mapping[str, Mapping[str, float]] = dataclasses.field(
        default_factory=dict, repr=False
    )
    source: Source | None = None

    def state(self, state: State) -> dict[str, Estimate]:
        """Returns the metrics of one state, without its prefix."""
        prefix = f"{state}_"
        return {
            name.removeprefix(prefix): value
            for name, value in self.metrics.items()
            if name.startswith(prefix)
        }

    def original(self, run_dir: str) -> dict[str, Any]:
        """Returns the dictionary that the original's summary prints.

        Args:
          run_dir: The name of the run in the dictionary.

        Returns:
          (mean, σ) of each metric that the original has, rounded to two digits except for times and perplexities; σ of
          a score is NaN.
        """
        pairs: dict[str, Any] = {}
        for name, value in self.metrics.items():
            if _OF_THE_ORIGINAL.fullmatch(name):
                pair = value.mean, value.spread
                pairs[name] = pair if name in _UNSCALED else tuple(round(one, 2) for one in pair)
        return {**pairs, "run_dir": run_dir, "num_cases": self.num_cases}


def case_metrics(case: Case) -> dict[str, float]:
    """Returns the metrics of one case, as means over its prompts; a metric that the case lacks is absent.

    Args:
      case: The content of a case file.

    Raises:
      ValueError: If the case has another layout.

    Example:
      >>> nlls = {"target_new": 0.0, "target_true": 2.0}
      >>> case_metrics({"case_id": 0, "post": {"rewrite_prompts_probs": [nlls]}})["post_rewrite_success"]
      1.0
    """
    try:
        metrics = {"time": float(case["time"])} if "time" in case else {}
        for state in State:
            for name, value in _state_metrics(case.get(state, {})):
                metrics[f"{state}_{name}"] = float(value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"case {case.get('case_id')} has another layout ({error!r}): remove its file and evaluate it again."
        ) from error
    return metrics


def _state_metrics(result: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the name and the value of each metric of `pre` or `post`."""
    for kind in _PROMPTS:
        if prompts := result.get(f"{kind}_prompts_probs"):
            new, true = (
                np.array([prompt[target] for prompt in prompts], np.float64)
                for target in ("target_new", "target_true")
            )
            # An edit must not change its neighbors, so there the true target is the desired one.
            nlls = (true, new) if kind == "neighborhood" else (new, true)
            yield f"{kind}_success", success(*nlls).mean()
            yield f"{kind}_diff", magnitude(*nlls).mean()
        for name, key in _JUDGED.items():
            if judged := result.get(f"{kind}_prompts_{key}"):
                yield f"{kind}_{name}", accuracy(judged)
    for name in _GENERATION:
        if name in result:
            yield name, result[name]


def summarize(cases: Sequence[Case], source: Source | None = None) -> Summary:
    """Summarizes the cases of a run: each metric over the cases that have it.

    Args:
      cases: The contents of case files, of CounterFact or zsRE, ours or the original's.
      source: The model and the data, if known.

    Raises:
      ValueError: If a case has another layout; the message names it.

    Example:
      >>> summarize([{"case_id": 0, "time": 1.0}, {"case_id": 1, "time": 2.0}]).metrics["time"].mean
      1.5
    """
    measured = [case_metrics(case) for case in cases]
    unedited = {
        json.dumps([case.get("case_id"), case.get("requested_rewrite")], sort_keys=True): before
        for case, metrics in zip(cases, measured, strict=True)
        if (before := {name: metrics[name] for name in metrics if name.startswith("pre_")})
    }
    return Summary(len(cases), estimate_metrics(measured), unedited, source)


def estimate_metrics(measured: Sequence[Mapping[str, float]]) -> dict[str, Estimate]:
    """Estimates the mean of every metric over the cases that have it, and the score S of each state.

    Rates have Wilson intervals and all other metrics bootstrap intervals; see `rome_jax.evaluation.intervals`. Times
    have none, because the cases of a batch share one measurement.

    Args:
      measured: The metrics of each case, as returned by `case_metrics`.

    Returns:
      Estimates by the name of the metric.
    """
    names = list(dict.fromkeys(name for one in measured for name in one))
    if not names:
        return {}
    values = np.array([[one.get(name, 0.0) for name in names] for one in measured])
    present = np.array([[name in one for name in names] for one in measured])
    draws = dict(zip(names, intervals.resampled_means(values, present).T, strict=True))
    metrics = {}
    with np.errstate(invalid="ignore", over="ignore"):  # perplexities of broken edits
        for name, column, has in zip(names, values.T, present.T, strict=True):
            interval = _interval(name, column[has], draws[name])
            scale = 1 if name in _UNSCALED else 100
            metrics[name] = estimate(column[has], scale=scale, interval=interval)
    for state in State:
        for metric in ("success", "acc"):
            parts = [f"{state}_{kind}_{metric}" for kind in _PROMPTS[:3]]
            if all(name in metrics for name in parts):
                count = sum(any(name in one for name in parts) for one in measured)
                metrics[f"{state}_score"] = _score(
                    [metrics[name].mean for name in parts], [draws[name] for name in parts], count
                )
    return metrics


def _interval(name: str, values: np.ndarray, draws: np.ndarray) -> tuple[float, float]:
    """Returns the interval that belongs to a metric's kind."""
    if name == "time":
        return intervals.NO_INTERVAL
    if _RATE.fullmatch(name):
        return intervals.wilson(float(values.mean()), len(values))
    return intervals.percentile_interval(draws)


def _score(means: Sequence[float], draws: Sequence[np.ndarray], count: int) -> Estimate:
    """Returns S of three means, with the bootstrap interval of the harmonic mean over the same draws of cases."""
    with np.errstate(divide="ignore"):
        drawn = len(draws) / np.sum(1 / np.array(draws), axis=0)  # [R]
    low, high = intervals.percentile_interval(100 * drawn)
    return Estimate(harmonic_mean(*means), math.nan, count, low, high)


def find_runs(
    results_dir: str | Path, methods: Sequence[str], runs: Sequence[str] = ()
) -> list[Path]:
    """Finds the folders of runs.

    Args:
      results_dir: Holds one folder per method, each with one folder per run.
      methods: Names of method folders in `results_dir`, or paths to such folders or to single runs.
      runs: Names of the runs of each method; by default all runs that have cases.

    Returns:
      Paths in the requested order, each once.

    Raises:
      ValueError: If no method is given, or a method or run does not exist or has no cases; the message lists what
        exists.

    Example:
      >>> Path("results/ROME/run_000").mkdir(parents=True)
      >>> Path("results/ROME/run_000/case_7.json").touch()
      >>> [path.as_posix() for path in find_runs("results", ["ROME"])]
      ['results/ROME/run_000']
    """
    root = Path(results_dir)
    there = ", ".join(_folders(root)) or "nothing"
    if not methods:
        raise ValueError(
            f"--dir_name is missing: name at least one of the folders in {root}, which holds {there}."
        )
    found: list[Path] = []
    for method in methods:
        folder = root / method if (root / method).is_dir() else Path(method)
        if not folder.is_dir():
            raise ValueError(
                f"--dir_name={method} is neither a path nor a folder in {root}, which holds {there}."
            )
        if _case_files(folder):
            if runs:
                raise ValueError(f"--dir_name={method} is a run itself: leave out --runs.")
            found.append(folder)
            continue
        names = [name for name in _folders(folder) if _case_files(folder / name)]
        held = f"runs with cases there: {', '.join(names) or 'none'}"
        if absent := [run for run in runs if run not in names]:
            raise ValueError(
                f"--runs={','.join(absent)}: {folder} has no such run with cases; {held}."
            )
        if not names:
            raise ValueError(
                f"{folder} has no run with cases: evaluate first, or give another --dir_name."
            )
        found += [folder / name for name in runs or names]
    return list(dict.fromkeys(found))


def _folders(folder: Path) -> list[str]:
    """Returns the sorted names of the folders in a folder."""
    return sorted(path.name for path in folder.glob("*/"))


def _case_files(folder: Path) -> list[Path]:
    """Returns the case files of a folder, in order of case id."""
    numbered = {
        int(match[1]): path
        for path in folder.glob("case_*.json")
        if (match := re.fullmatch(r"case_(\d+)\.json", path.name))
    }
    return [numbered[number] for number in sorted(numbered)]


def read_cases(folder: str | Path, first_n_cases: int | None = None) -> list[dict[str, Any]]:
    """Reads the cases of a run, in order of case id.

    Args:
      folder: Folder of the run.
      first_n_cases: Read only the n cases with the lowest ids; by default all.

    Raises:
      ValueError: If there are no cases, `first_n_cases` is below 1, or a file is not a case.

    Example:
      >>> for case_id in (10, 2):
      ...     _ = Path(f"case_{case_id}.json").write_text(json.dumps({"case_id": case_id}))
      >>> read_cases(".", first_n_cases=1)
      [{'case_id': 2}]
    """
    if first_n_cases is not None and first_n_cases < 1:
        raise ValueError(f"--first_n_cases={first_n_cases}: give 1 or more.")
    paths = _case_files(Path(folder))
    if not paths:
        raise ValueError(f"{folder} has no case_<id>.json: give the folder of a run.")
    return [read_case(path) for path in paths[:first_n_cases]]


def read_case(path: Path) -> dict[str, Any]:
    """Reads a case file.

    Raises:
      ValueError: If the file is not JSON or not a case.
    """
    try:
        case = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove it and evaluate its case again."
        ) from error
    if not isinstance(case, dict) or "case_id" not in case:
        raise ValueError(f"{path} has no case_id: remove it and evaluate its case again.")
    return case
