"""Summaries of result folders: means over cases as the original defines them, with 95 % intervals.

A case has the scores `pre` and `post` the edit; its file is read by `rome_jax.evaluation.case_files`. A case that
failed has a reason instead and counts for no metric.
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
from rome_jax.evaluation.case_files import GENERATION, JUDGED, PROMPTS, CaseError, check_case
from rome_jax.evaluation.metrics import (
    Estimate,
    accuracy,
    estimate,
    harmonic_mean,
    magnitude,
    success,
)
from rome_jax.files.checked import check
from rome_jax.models.runs import read_run

Case = Mapping[str, Any]

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
            about = read_run(Path(folder)).get("settings")
            settings = check(dict[str, Any], about, "settings")
            names = [check(str, settings.get(key), key) for key in ("model", "dataset", *keys)]
        except (OSError, ValueError):
            return None
        return cls(names[0], names[1], tuple(names[2:]))


@dataclasses.dataclass(frozen=True)
class Summary:
    """The metrics of a run.

    Attributes:
      num_cases: The number of cases with scores.
      metrics: Estimates by name; a metric that no case has is absent. The names are `time`, and with the prefixes
        `pre_` and `post_`: `_success` and `_diff` of `rewrite`, `paraphrase`, `neighborhood` and `attribute`, where
        `_diff` is the probability of the desired target minus that of the other one; for zsRE `_acc`, and
        `_acc_by_token` where token ids were compared; `_exact`, also of `portability`; `ngram_entropy`,
        `reference_score` and `essence_score`; and `score`, the harmonic mean of the three means of `_success`, or of
        `_acc` for zsRE.
      unedited: The metrics of the unedited model, with the prefix `pre_`, by case. A case is identified by its id and
        its request.
      source: The model and the data, if known.
      failures: Why cases failed, by case id.
    """

    num_cases: int
    metrics: Mapping[str, Estimate]
    unedited: Mapping[str, Mapping[str, float]] = dataclasses.field(
        default_factory=dict, repr=False
    )
    source: Source | None = None
    failures: Mapping[int, str] = dataclasses.field(default_factory=dict, repr=False)

    def state(self, state: State) -> dict[str, Estimate]:
        """Returns the metrics of one state, without its prefix."""
        prefix = f"{state}_"
        return {
            name.removeprefix(prefix): value
            for name, value in self.metrics.items()
            if name.startswith(prefix)
        }

    def describe_failures(self) -> str:
        """Returns a line about the cases that failed and the reason of the first; empty if none failed.

        Raises:
          ValueError: If all cases failed.
        """
        if not self.failures:
            return ""
        first, reason = next(iter(self.failures.items()))
        count = len(self.failures)
        if not self.num_cases:
            raise ValueError(f"all {count} cases failed; case {first}: {reason}")
        return f"{count} of {count + self.num_cases} cases failed; case {first}: {reason}"

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
        check_case(case)
    except CaseError as error:
        raise CaseError(
            f"case {case.get('case_id')} has another layout ({str(error).rstrip('.')}): remove its file and evaluate "
            "it again."
        ) from error
    metrics = {}
    if "time" in case:  # MEMIT's and AlphaEdit's code write the time of all edits of a group
        metrics["time"] = float(case["time"]) / max(1, len(case.get("grouped_case_ids", ())))
    for state in State:
        for name, value in _state_metrics(case.get(state, {})):
            metrics[f"{state}_{name}"] = float(value)
    return metrics


def _state_metrics(result: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the name and the value of each metric of `pre` or `post`."""
    for kind in PROMPTS:
        if prompts := result.get(f"{kind}_prompts_probs"):
            new, true = (
                np.array([prompt[target] for prompt in prompts], np.float64)
                for target in ("target_new", "target_true")
            )
            # An edit must not change its neighbors, so there the true target is the desired one.
            nlls = (true, new) if kind == "neighborhood" else (new, true)
            yield f"{kind}_success", success(*nlls).mean()
            yield f"{kind}_diff", magnitude(*nlls).mean()
        for name, key in JUDGED.items():
            if judged := result.get(f"{kind}_prompts_{key}"):
                yield f"{kind}_{name}", accuracy(judged)
    for name in GENERATION:
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
    failures = {case["case_id"]: case["failed"] for case in cases if "failed" in case}
    cases = [case for case in cases if "failed" not in case]
    measured = [case_metrics(case) for case in cases]
    unedited = {
        json.dumps([case.get("case_id"), case.get("requested_rewrite")], sort_keys=True): before
        for case, metrics in zip(cases, measured, strict=True)
        if (before := {name: metrics[name] for name in metrics if name.startswith("pre_")})
    }
    return Summary(len(cases), estimate_metrics(measured), unedited, source, failures)


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
        for metric in ("acc", "success"):  # MEMIT's code writes both; the score is of the second
            parts = [f"{state}_{kind}_{metric}" for kind in PROMPTS[:3]]
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
