"""The numbers of results folders: means over cases, as the original's summary defines them.

A run `results/<method>/run_<id>` holds one `case_<id>.json` a case, with what the model says `pre` and `post` the edit.
Folders of the original have the same files, and are read as well.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rome_jax.evaluation.metrics import (
    Estimate,
    accuracy,
    estimate,
    harmonic_mean,
    magnitude,
    success,
)

Case = Mapping[str, Any]

_PROMPTS = ("rewrite", "paraphrase", "neighborhood", "attribute", "portability")
# What is right or wrong of each prompt: the metric, and how a case file calls it.
_JUDGED = {"acc": "correct", "acc_by_token": "correct_by_token", "exact": "exact"}
_GENERATION = ("ngram_entropy", "reference_score", "essence_score")
_SCORES = ("pre_score", "post_score")
_UNSCALED = ("time", "pre_essence_score", "post_essence_score")
_OF_THE_ORIGINAL = re.compile(
    r"time|(pre|post)_((rewrite|paraphrase|neighborhood)_(success|diff|acc)"
    r"|ngram_entropy|reference_score|essence_score|score)"
)


class State(enum.StrEnum):
    """Of the model: before the edit, or after it."""

    PRE = "pre"
    POST = "post"


@dataclasses.dataclass(frozen=True)
class Summary:
    """What the cases of a run say.

    Attributes:
      num_cases: all that were read.
      metrics: by name; a metric that no case has is absent. `time`, and for `pre_` and `post_`
        (`rewrite` | `paraphrase` | `neighborhood` | `attribute`) `_success` and `_diff`, the probability of the wanted
        target less that of the other; for zsRE `_acc`, and `_acc_by_token` where token ids were compared; `_exact`,
        also of `portability`; `ngram_entropy`, `reference_score`, `essence_score`; `score`, the harmonic mean of the
        three means of `_success`, or `_acc` for zsRE.
    """

    num_cases: int
    metrics: Mapping[str, Estimate]

    def state(self, state: State) -> dict[str, Estimate]:
        """The metrics of one state, without its prefix."""
        prefix = f"{state}_"
        return {
            name.removeprefix(prefix): value
            for name, value in self.metrics.items()
            if name.startswith(prefix)
        }

    def original(self, run_dir: str) -> dict[str, Any]:
        """The dictionary that the original's summary prints.

        Args:
          run_dir: the name of the run in it.

        Returns:
          (mean, σ) of each metric that the original has, rounded to two digits but for times and perplexities; NaN
          for the spread of a score.
        """
        pairs: dict[str, Any] = {}
        for name, value in self.metrics.items():
            if not _OF_THE_ORIGINAL.fullmatch(name):
                continue
            pair = (value.mean, math.nan if name in _SCORES else value.spread)
            pairs[name] = pair if name in _UNSCALED else tuple(round(one, 2) for one in pair)
        return {**pairs, "run_dir": run_dir, "num_cases": self.num_cases}


def case_metrics(case: Case) -> dict[str, float]:
    """The metrics of one case, means over its prompts; what the case lacks is absent.

    Args:
      case: the content of a case file.

    Raises:
      ValueError: content of another layout.

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


def _state_metrics(result: Mapping[str, Any]):
    for kind in _PROMPTS:
        if prompts := result.get(f"{kind}_prompts_probs"):
            new, true = (
                np.array([prompt[target] for prompt in prompts], np.float64)
                for target in ("target_new", "target_true")
            )
            # What an edit must leave alone keeps its true target.
            nlls = (true, new) if kind == "neighborhood" else (new, true)
            yield f"{kind}_success", success(*nlls).mean()
            yield f"{kind}_diff", magnitude(*nlls).mean()
        for name, key in _JUDGED.items():
            if judged := result.get(f"{kind}_prompts_{key}"):
                yield f"{kind}_{name}", accuracy(judged)
    for name in _GENERATION:
        if name in result:
            yield name, result[name]


def summarize(cases: Sequence[Case]) -> Summary:
    """Mean and spread of each metric over the cases that have it.

    Args:
      cases: the contents of case files, of CounterFact or zsRE, ours or the original's.

    Raises:
      ValueError: a case of another layout, named.

    Example:
      >>> summarize([{"case_id": 0, "time": 1.0}, {"case_id": 1, "time": 2.0}]).metrics["time"]
      Estimate(mean=1.5, spread=0.5, count=2)
    """
    measured = [case_metrics(case) for case in cases]
    metrics = {}
    for name in dict.fromkeys(name for one in measured for name in one):
        values = np.array([one[name] for one in measured if name in one])
        with np.errstate(invalid="ignore", over="ignore"):  # perplexities of broken edits
            metrics[name] = estimate(values, scale=1 if name in _UNSCALED else 100)
    for state in State:
        for metric in ("success", "acc"):
            names = [f"{state}_{kind}_{metric}" for kind in _PROMPTS[:3]]
            if all(name in metrics for name in names):
                metrics[f"{state}_score"] = _score(
                    measured, {name: metrics[name] for name in names}
                )
    return Summary(len(cases), metrics)


def _score(measured: Sequence[Mapping[str, float]], parts: Mapping[str, Estimate]) -> Estimate:
    """S of the parts' means mᵢ, with the spread that the delta method gives it.

    ∂S/∂mᵢ = (S/mᵢ)² / 3, so a case moves S by Σᵢ (S/mᵢ)² (xᵢ − mᵢ) / 3nᵢ. No spread at S = 0, where this has no limit.
    """
    score = harmonic_mean(*(part.mean for part in parts.values()))
    cases = [one for one in measured if any(name in one for name in parts)]
    if score == 0:
        return Estimate(score, math.nan, len(cases))
    moved = np.zeros(len(cases))
    for name, part in parts.items():
        off = [100 * one[name] - part.mean if name in one else 0.0 for one in cases]
        moved += (score / part.mean) ** 2 / 3 * np.array(off) * len(cases) / part.count
    return Estimate(score, float(np.sqrt(np.mean(moved**2))), len(cases))


def find_runs(
    results_dir: str | Path, methods: Sequence[str], runs: Sequence[str] = ()
) -> list[Path]:
    """The folders of runs.

    Args:
      results_dir: holds a folder a method, which holds a folder a run.
      methods: their folders there, or paths to such folders, or to those of single runs.
      runs: names of the runs of each method; by default all that have cases.

    Returns:
      Paths in the order asked for, each once.

    Raises:
      ValueError: no method, or one that is not there, or a run that is not there or has no cases; says what there is.

    Example:
      >>> find_runs("results", ["ROME", "FT"], ["run_000"])  # doctest: +SKIP
      [PosixPath('results/ROME/run_000'), PosixPath('results/FT/run_000')]
    """
    root = Path(results_dir)
    there = ", ".join(_folders(root)) or "nothing"
    if not methods:
        raise ValueError(
            f"--dir_name is missing: give one or several of what {root} holds: {there}."
        )
    found: list[Path] = []
    for method in methods:
        folder = root / method if (root / method).is_dir() else Path(method)
        if not folder.is_dir():
            raise ValueError(
                f"--dir_name={method} is no path and not in {root}, which holds {there}."
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
    return sorted(path.name for path in folder.glob("*/"))


def _case_files(folder: Path) -> list[Path]:
    """In order of case id."""
    numbered = {
        int(match[1]): path
        for path in folder.glob("case_*.json")
        if (match := re.fullmatch(r"case_(\d+)\.json", path.name))
    }
    return [numbered[number] for number in sorted(numbered)]


def read_cases(folder: str | Path, first_n_cases: int | None = None) -> list[dict[str, Any]]:
    """The cases of a run, in order of case id.

    Args:
      folder: of the run.
      first_n_cases: read those of the n lowest ids alone.

    Raises:
      ValueError: no cases, a number below 1, or a file that is no case.

    Example:
      >>> cases = read_cases("results/ROME/run_000", first_n_cases=100)  # doctest: +SKIP
    """
    if first_n_cases is not None and first_n_cases < 1:
        raise ValueError(f"--first_n_cases={first_n_cases}: give 1 or more.")
    paths = _case_files(Path(folder))
    if not paths:
        raise ValueError(f"{folder} has no case_<id>.json: give the folder of a run.")
    return [read_case(path) for path in paths[:first_n_cases]]


def read_case(path: Path) -> dict[str, Any]:
    """The content of a case file.

    Raises:
      ValueError: no JSON, or no case.
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
