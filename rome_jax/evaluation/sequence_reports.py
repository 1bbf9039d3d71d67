"""What a sequence of edits has measured, as JSON values, and a table of several sequences."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rome_jax.evaluation.sequence_alarm import SHARE, find_alarms, find_falls
from rome_jax.evaluation.sequence_measurement import Row
from rome_jax.evaluation.sequence_scores import GroupScores
from rome_jax.files.checked import Count, check
from rome_jax.files.json_files import read_object
from rome_jax.models import runs

KINDS = ("efficacy", "paraphrase", "neighborhood")
WAYS: Mapping[str, str] = {"": "likelihood", "_generated": "generated text"}

# What tells a sequence from the runs of other programs, and names it.
_SETTINGS: Mapping[str, Any] = {
    "alg_name": str,
    "batch_size": Count,
    "model": str,
    "newest": Count,
}
_SCORES = {field.name for field in dataclasses.fields(GroupScores)}
_HEAD = (
    "method",
    "edits in the model",
    *(f"{what}: {way}" for way in WAYS.values() for what in ("edits", "paraphrases", "neighbors")),
    "perplexity",
    "KL",
    "largest ‖ΔW‖ / ‖W‖",
    "s per edit",
)


def read_rows(directory: Path) -> list[dict[str, Any]]:
    """Reads all measurements of a sequence, in the order of their edits.

    Args:
      directory: Folder of the sequence.

    Raises:
      ValueError: If a file is damaged.
    """
    found = []
    for path in directory.glob("edits_*.json"):
        row = read_object(path, Row, remedy="remove it and run again")
        group = "newest" if row["edits"] else "requests"
        groups = [row[name] for name in (group, "earlier") if name == group or row[name]]
        if not all(scores and scores.keys() >= _SCORES for scores in groups):
            raise ValueError(f"{path} lacks scores of {group} or earlier: remove it and run again.")
        found.append(row)
    return sorted(found, key=lambda row: row["edits"])


def read_report(directory: str | Path) -> dict[str, Any]:
    """Reads a sequence: settings, measurements, alarms, and when the efficacy of earlier edits falls, as JSON values.

    Args:
      directory: Folder of a sequence, which need not be finished.

    Raises:
      ValueError: If the folder holds no sequence of edits, or a file is damaged.
    """
    directory = Path(directory)
    about = runs.read_run(directory)
    settings = check(dict[str, Any], about.get("settings"), f"{directory / 'run.json'}: settings")
    if not _SETTINGS.keys() <= settings.keys():
        raise ValueError(
            f"{directory} holds no sequence of edits: give the --output_dir of an eval.sequence run."
        )
    for name, kind in _SETTINGS.items():
        check(kind, settings[name], f"{directory / 'run.json'}: settings.{name}")
    rows = read_rows(directory)
    return {
        "model": settings["model"],
        **about,
        "measurements": rows,
        "alarms": [dataclasses.asdict(alarm) for alarm in find_alarms(rows)],
        "falls": {"share": SHARE, **find_falls(rows)},
    }


def names_of(reports: Sequence[Mapping[str, Any]], folders: Sequence[str]) -> list[str]:
    """Returns a name for each sequence: its method, and batch size, model and data set where they differ.

    Args:
      reports: What `read_report` returns, or the contents of sequence.json.
      folders: A folder of each, which tells sequences apart that are alike otherwise.

    Raises:
      ValueError: If two sequences are alike and have the same folder.

    Example:
      >>> reports = [{"model": "m", "settings": {"alg_name": "ROME", "batch_size": size}} for size in (1, 1, 20)]
      >>> names_of(reports, ["a", "b", "c"])
      ['ROME, batches of 1, a', 'ROME, batches of 1, b', 'ROME, batches of 20']
    """
    settings = [report["settings"] for report in reports]
    sizes = {own["batch_size"] for own in settings}
    models = {report["model"] for report in reports}
    data = {own.get("ds_name") for own in settings}
    names = []
    for report, own in zip(reports, settings, strict=True):
        parts = [own["alg_name"]]
        parts += [f"batches of {own['batch_size']}"] if len(sizes) > 1 else []
        parts += [report["model"]] if len(models) > 1 else []
        parts += [str(own.get("ds_name"))] if len(data) > 1 else []
        names.append(", ".join(parts))
    told_apart = [
        f"{name}, {folder}" if names.count(name) > 1 else name
        for name, folder in zip(names, folders, strict=True)
    ]
    if repeated := [name for name in told_apart if told_apart.count(name) > 1]:
        raise ValueError(f"two of the sequences are {repeated[0]}: give each folder once.")
    return told_apart


def scores_of(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the scores of all earlier edits, or of the newest ones where there are no others, as in a first batch."""
    return row["earlier"] or row["newest"]


def largest_change(row: Mapping[str, Any]) -> float | None:
    """Returns the largest ‖ΔW‖ / ‖W‖ of the layers."""
    return max((ratio for ratio in row["norm_ratios"].values() if ratio is not None), default=None)


def markdown(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Renders the measurements of several sequences as a Markdown table, in percent where a score is a share.

    Args:
      reports: What `read_report` returns, or the content of sequence.json, by the name of the sequence.

    Example:
      >>> scores = {kind + way: 50.0 for kind in KINDS for way in WAYS}
      >>> row = {"edits": 8, "newest": scores, "earlier": None, "perplexity": 2.0, "kl": 0.1,
      ...        "norm_ratios": {"0": 0.2}, "seconds_per_edit": 0.5}
      >>> markdown({"ROME": {"measurements": [row]}}).splitlines()[-1]
      '| ROME | 8 | 50 | 50 | 50 | 50 | 50 | 50 | 2.00 | 0.100 | 0.20 | 0.50 |'
    """
    lines = [_line(_HEAD), _line(["---"] * len(_HEAD))]
    for name, report in reports.items():
        rows = [row for row in report["measurements"] if row["edits"]]
        for index, row in enumerate(rows):
            scores = scores_of(row)
            shares = [_number(scores[kind + way], ".0f") for way in WAYS for kind in KINDS]
            numbers = [
                _number(row["perplexity"], ".2f"),
                _number(row["kl"], ".3f"),
                _number(largest_change(row), ".2f"),
                _number(row["seconds_per_edit"], ".2f"),
            ]
            lines.append(_line(["" if index else name, f"{row['edits']:,}", *shares, *numbers]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    """Returns a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, form: str) -> str:
    """Returns a number, or a dash if there is none."""
    return "–" if value is None else format(value, form)
