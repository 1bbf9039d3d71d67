"""Files of the cases of a run, ours and those of other code, which are checked when they are read.

case_7.json            as ROME's code and ours write it
100_edits-case_7.json  as MEMIT's and AlphaEdit's code write it
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired

import pydantic
from typing_extensions import TypedDict

from rome_jax.files.checked import Count, check, listed
from rome_jax.files.checksums import METADATA_KEY, has_damage
from rome_jax.files.places import check_path
from rome_jax.files.records import read_json

PROMPTS = ("rewrite", "paraphrase", "neighborhood", "attribute", "portability")
GENERATION = ("ngram_entropy", "reference_score", "essence_score")
# Metrics of prompts that are right or wrong -> the name of their list in a case file.
JUDGED = {"acc": "correct", "acc_by_token": "correct_by_token", "exact": "exact"}
PATTERN = "*case_*.json"
_READ = "case_<id>.json of rome_jax and ROME, and <n>_edits-case_<id>.json of MEMIT and AlphaEdit, are read"
_NAME = re.compile(r"(?:\d+_edits-)?case_(\d+)\.json")


class CaseError(ValueError):
    """A case file is damaged or has another layout."""


class OtherLayoutError(CaseError):
    """A case file holds scores of another program."""


def _not_nan(value: Any) -> Any:
    """Refuses everything but numbers; a perplexity may be infinite, but NaN is not a measurement."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise ValueError("a number")
    return value


def _right_or_wrong(value: Any) -> Any:
    """Refuses everything but Booleans, which some code writes as 0 and 1."""
    if not (isinstance(value, bool) or (isinstance(value, int) and value in (0, 1))):
        raise ValueError("true or false")
    return value


Measured = Annotated[Any, pydantic.AfterValidator(_not_nan)]
Hit = Annotated[Any, pydantic.AfterValidator(_right_or_wrong)]


class _Likelihoods(TypedDict):
    """Mean negative log-likelihoods per token of a prompt's targets."""

    target_new: Measured
    target_true: Measured


_Scores: Any = TypedDict(  # type: ignore[misc]
    "_Scores",
    {f"{kind}_prompts_probs": NotRequired[list[_Likelihoods]] for kind in PROMPTS}
    | {
        f"{kind}_prompts_{key}": NotRequired[list[Hit]]
        for kind in PROMPTS
        for key in JUDGED.values()
    }
    | dict.fromkeys(GENERATION, NotRequired[Measured]),
)


class _Case(TypedDict):
    """The parts of a case file that are read."""

    case_id: NotRequired[int]
    requested_rewrite: NotRequired[dict[str, Any]]
    grouped_case_ids: NotRequired[list[int]]
    time: NotRequired[Measured]
    pre: NotRequired[_Scores]
    post: NotRequired[_Scores]
    failed: NotRequired[str]


def check_case(case: Any, name: str = "case") -> dict[str, Any]:
    """Checks the types of a case's parts.

    Args:
      case: The content of a case file.
      name: Its name in messages.

    Raises:
      CaseError: If a part has another type, or a score is not a number.
    """
    if not isinstance(case, Mapping):
        raise CaseError(f"{name} holds no object: give the content of a case file.")
    check(_Case, dict(case), name, error=CaseError)
    return dict(case)


def case_files(folder: Path) -> list[Path]:
    """Returns the case files of a folder, in order of case id.

    Raises:
      CaseError: If there are two files of one case, from different numbers of edits.
    """
    numbered: dict[int, Path] = {}
    for path in sorted(folder.glob(PATTERN)):
        if match := _NAME.fullmatch(path.name):
            other = numbered.setdefault(int(match[1]), path)
            if other != path:
                raise CaseError(
                    f"{folder} holds {other.name} and {path.name}: move the cases of different numbers of edits to "
                    "folders of their own."
                )
    return [numbered[number] for number in sorted(numbered)]


def read_cases(folder: str | Path, first_n_cases: int | None = None) -> list[dict[str, Any]]:
    """Reads the cases of a run, in order of case id.

    Args:
      folder: Folder of the run.
      first_n_cases: Read only the n cases with the lowest ids; by default all.

    Raises:
      ValueError: If there are no cases, `first_n_cases` is below 1, or a file is not a case.

    Example:
      >>> import json
      >>> post = {"rewrite_prompts_exact": [True]}
      >>> for case_id in (10, 2):
      ...     text = json.dumps({"case_id": case_id, "post": post})
      ...     _ = Path(f"case_{case_id}.json").write_text(text)
      >>> [case["case_id"] for case in read_cases(".", first_n_cases=1)]
      [2]
    """
    first_n_cases = check(Count | None, first_n_cases, "first_n_cases")
    paths = case_files(Path(check_path(folder, "folder")))
    if not paths:
        raise ValueError(f"{folder} has no files of cases ({_READ}): give the folder of a run.")
    return [read_case(path, needs=("post",)) for path in paths[:first_n_cases]]


def read_case(path: Path, needs: Collection[str] = ()) -> dict[str, Any]:
    """Reads a case file.

    Args:
      path: The file.
      needs: The states that must have scores unless the case is recorded as failed; by default either of `pre` and
        `post`.

    Raises:
      CaseError: If the file is not JSON, was changed after rome_jax wrote it, a part has another type, a score is not
        a number, there are no scores, or the case is not the one in the file's name.
    """
    try:
        case = check_case(read_json(path, error=CaseError)[0], str(path))
        if "case_id" not in case:
            raise CaseError(f"{path} has no case_id.")
        if has_damage(case):
            raise CaseError(f"{path} has changed since it was written.")
        case.pop(METADATA_KEY, None)
        number = _NAME.fullmatch(path.name)
        if number and int(number[1]) != case["case_id"]:
            raise CaseError(f"{path} holds case {case['case_id']}.")
        unknown = next((s for s in map(case.get, ("post", "pre")) if s and not _is_known(s)), None)
        if unknown:
            raise OtherLayoutError(
                f"{path} holds the scores {listed(unknown, 4)} of another program: give the folder of a run "
                f"whose files are read ({_READ})."
            )
        scored = [state for state in ("pre", "post") if _has_scores(case.get(state))]
        if "failed" not in case and not (scored and set(needs) <= set(scored)):
            raise CaseError(f"{path} has no scores under {' and '.join(needs) or 'pre or post'}.")
    except OtherLayoutError:
        raise
    except CaseError as error:
        reason = str(error).removeprefix(str(path)).strip(": .").partition(": ")[0]
        raise CaseError(
            f"{path} is damaged ({reason}): remove it and evaluate its case again."
        ) from error
    return case


def _is_known(scores: Mapping[str, Any]) -> bool:
    """Returns whether scores, or the texts next to them, have names that are read."""
    known = _Scores.__annotations__.keys() | {"text"}
    return any(name in known for name in scores)


def _has_scores(scores: Any) -> bool:
    """Returns whether some prompt is scored."""
    return bool(scores) and any(scores[name] for name in scores if "_prompts_" in name)


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
    root = Path(os.path.expanduser(results_dir))
    there = ", ".join(_folders(root)) or "nothing"
    if not methods:
        raise ValueError(
            f"--dir_name is missing: name at least one of the folders in {root}, which holds {there}."
        )
    found: list[Path] = []
    for method in methods:
        check_path(method, "--dir_name")
        folder = root / method if (root / method).is_dir() else Path(os.path.expanduser(method))
        if not folder.is_dir():
            raise ValueError(
                f"--dir_name={method} is neither a path nor a folder in {root}, which holds {there}."
            )
        if case_files(folder):
            if runs:
                raise ValueError(f"--dir_name={method} is a run itself: leave out --runs.")
            found.append(folder)
            continue
        names = [name for name in _folders(folder) if case_files(folder / name)]
        held = f"runs with cases there: {', '.join(names) or 'none'}"
        if absent := [run for run in runs if run not in names]:
            raise ValueError(
                f"--runs={','.join(absent)}: {folder} has no such run with cases; {held}."
            )
        if not names:
            raise ValueError(
                f"{folder} has no run with cases ({_READ}): evaluate first, or give another --dir_name."
            )
        found += [folder / name for name in runs or names]
    return list(dict.fromkeys(found))


def _folders(folder: Path) -> list[str]:
    """Returns the sorted names of the folders in a folder."""
    return sorted(path.name for path in folder.glob("*/"))
