"""A batch of cases: edited and scored together, without the records that cannot be edited or scored."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rome_jax.data.request import RequestError
from rome_jax.data.tokens import SequenceTooLongError
from rome_jax.edit.method import Editor
from rome_jax.edit.result import NotFiniteError
from rome_jax.evaluation.case_files import CaseError, check_case
from rome_jax.evaluation.evaluate import evaluate_records
from rome_jax.evaluation.record_types import DatasetName, Record
from rome_jax.evaluation.timing import Stopwatch
from rome_jax.files.checked import Count, check
from rome_jax.models.interventions import Delta


def find_refused(
    attempt: Callable[[Sequence[Record]], object], records: Sequence[Record]
) -> dict[int, str]:
    """Finds the records that an attempt fails on, by halving the batch until each is alone.

    Args:
      attempt: What to do with records.
      records: The records.

    Returns:
      The reasons by case id.
    """
    try:
        attempt(records)
    except NotFiniteError as error:
        reason = "the edit holds numbers that are not finite"
        if error.cases:
            return {records[index].case_id: reason for index in error.cases}
    except (RequestError, SequenceTooLongError) as error:
        reason = str(error)
    else:
        return {}
    if len(records) == 1:
        return {records[0].case_id: reason}
    half = len(records) // 2
    return find_refused(attempt, records[:half]) | find_refused(attempt, records[half:])


def failed_case(record: Record, reason: str) -> dict[str, Any]:
    """Returns the case of a record that cannot be edited or scored.

    Args:
      record: The record.
      reason: Why it cannot.
    """
    return {
        "case_id": record.case_id,
        "requested_rewrite": record.requested_rewrite,
        "failed": reason,
    }


def edit_batch(
    editor: Editor,
    name: DatasetName,
    records: Sequence[Record],
    pre: Mapping[int, Any],
    options: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Edits records and scores the edits.

    The time of a case is the wall time of the batch's edits, without compilation, divided by the number of cases.

    Args:
      editor: The method, prepared for its model.
      name: The data set of the records.
      records: The records.
      pre: The unedited model's scores by case id.
      options: `generation` and `max_tokens`, as for `evaluate_records`.

    Returns:
      The contents of the case files. A record that the method refuses, whose edit is not finite, or whose scores are
      not numbers has a reason instead of scores; the others are computed without it.

    Raises:
      ValueError: If the method cannot work with its configuration.
    """

    def compute(records: Sequence[Record]) -> Delta:
        return jax.block_until_ready(editor.compute([r.request for r in records], progress=True))

    edited: Sequence[Record] = records
    refused: dict[int, str] = {}
    deltas: Delta | None
    with Stopwatch() as watch:
        try:
            deltas = compute(records)
        except (RequestError, SequenceTooLongError, NotFiniteError):
            refused = find_refused(compute, records)
            edited = [record for record in records if record.case_id not in refused]
            deltas = compute(edited) if edited else None
    failures = [failed_case(r, refused[r.case_id]) for r in records if r.case_id in refused]
    if not edited:
        return failures
    posts = evaluate_records(editor.model, name, edited, deltas, **options)
    cases = [
        {
            "case_id": record.case_id,
            "requested_rewrite": record.requested_rewrite,
            "time": watch.run_seconds / len(records),
            "post": post,
            "pre": pre[record.case_id],
        }
        for record, post in zip(edited, posts, strict=True)
    ]
    return failures + [
        case if _is_measured(case) else failed_case(record, "the edited model's scores are NaN")
        for record, case in zip(edited, cases, strict=True)
    ]


def _is_measured(case: Mapping[str, Any]) -> bool:
    """Returns whether all scores of a case are numbers."""
    try:
        check_case(case)
    except CaseError:
        return False
    return True


def split(records: Sequence[Record], size: int) -> list[Sequence[Record]]:
    """Splits records into batches of similar sizes, so that they share few compiled programs.

    Args:
      records: The records.
      size: The most records of a batch.

    Raises:
      ValueError: If `size` is not a whole number of at least 1.
    """
    count = math.ceil(len(records) / check(Count, size, "batch_size"))
    bounds = np.linspace(0, len(records), count + 1).round().astype(int)
    return [records[a:b] for a, b in itertools.pairwise(bounds)]
