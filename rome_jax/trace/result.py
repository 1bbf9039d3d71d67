"""The trace of one prompt as a file.

A file has the original's .npz keys, so files of the original load here, and files saved here load there. The
additional key `provenance`, which the original ignores, is a JSON text with the settings of the trace.

Axes: T restored tokens, L layers.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
import typing_extensions

from rome_jax.files.artifacts import write_whole
from rome_jax.files.checked import check, shown
from rome_jax.files.json_files import parse_object
from rome_jax.files.npz import read_npz
from rome_jax.trace.restore import TraceKind

_REMEDY = "remove it and trace the case again"
_REASON = "the clean answer is not the expected one"  # files of the original give none


@dataclasses.dataclass(frozen=True, eq=False)
class TraceResult:
    """The scores of an answer with states of one prompt restored.

    Attributes:
      scores: float32 [T, L] measure of the answer with the state at (token, layer) restored; NaN where a screening did
        not restore it.
      low_score: Mean measure over the corrupted runs.
      high_score: Measure in the clean run.
      input_ids: int [prompt tokens].
      input_tokens: Text of each token.
      subject_range: (first, last + 1) token of the subject.
      answer: Text of the answer that is measured.
      kind: What was restored.
      window: Number of layers restored together; no meaning for hidden states.
      tokens: The T columns of the prompt that were restored.
      provenance: Model, noise and other settings; empty for a file of the original.
    """

    scores: np.ndarray
    low_score: float
    high_score: float
    input_ids: np.ndarray
    input_tokens: tuple[str, ...]
    subject_range: tuple[int, int]
    answer: str
    kind: TraceKind
    window: int
    tokens: tuple[int, ...]
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def indirect_effect(self) -> np.ndarray:
        """The indirect effects [T, L], scores − low_score (paper, section 2.1)."""
        return self.scores - self.low_score

    @property
    def total_effect(self) -> float:
        """The total effect, high_score − low_score (paper, section 2.1)."""
        return self.high_score - self.low_score

    @property
    def measure(self) -> str:
        """The measure of the scores, from the provenance; that of the original, "probability", if it has none."""
        return str(self.provenance.get("measure") or "probability")


@dataclasses.dataclass(frozen=True)
class SkippedCase:
    """A case that was not traced.

    Attributes:
      reason: Why it was not traced, as a sentence.
      provenance: Model, noise and other settings.
    """

    reason: str
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def traced(cases: Iterable[TraceResult | SkippedCase]) -> list[TraceResult]:
    """Returns the cases that were not skipped.

    Example:
      >>> traced([SkippedCase("the clean answer is 'rowing'")])
      []
    """
    return [case for case in cases if isinstance(case, TraceResult)]


def save_trace(path: str | Path, result: TraceResult | SkippedCase) -> None:
    """Writes one case as a .npz file, whole or not at all.

    Args:
      path: File to write; its folder is made if needed.
      result: A traced case, or one that was skipped.

    Raises:
      ValueError: If the case has no scores, scores that are not finite, or parts that contradict each other.
      OSError: If the file cannot be written; the message names it and a remedy.

    Example:
      >>> save_trace("cases/knowledge_0.npz", SkippedCase("the clean answer is 'rowing'"))
      >>> load_trace("cases/knowledge_0.npz").reason
      "the clean answer is 'rowing'"
    """
    arrays = {"correct_prediction": np.array(isinstance(result, TraceResult))}
    if isinstance(result, SkippedCase):
        arrays["reason"] = np.array(result.reason)
    else:
        if wrong := _what_is_wrong(result):
            raise ValueError(
                f"the trace of {shown(result.answer)} is not written to {path}: {wrong}."
            )
        arrays |= {
            "scores": np.asarray(result.scores, np.float32),
            "low_score": np.array(result.low_score),
            "high_score": np.array(result.high_score),
            "input_ids": np.asarray(result.input_ids),
            "input_tokens": np.array(result.input_tokens),
            "subject_range": np.array(result.subject_range),
            "answer": np.array(result.answer),
            "kind": np.array("" if result.kind is TraceKind.HIDDEN else result.kind.value),
            "window": np.array(result.window),
            "tokens": np.array(result.tokens),
        }
    arrays["provenance"] = np.array(json.dumps(dict(result.provenance), ensure_ascii=False))
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    write_whole(Path(path), file.getvalue())


def load_trace(path: str | Path) -> TraceResult | SkippedCase:
    """Reads one case, from a file of this library or of the original.

    Args:
      path: A .npz file.

    Returns:
      The case; a `SkippedCase` if the model did not know the fact.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If the file is damaged or is no trace: a part is missing, has another type or is out of range.

    Example:
      >>> scores = np.array([[0.2, 0.9, 0.4]], np.float32)
      >>> case = TraceResult(
      ...     scores, 0.1, 0.9, np.array([5, 7]), ("Rome", " is"), (0, 1), " in", TraceKind.HIDDEN, 10, (0,)
      ... )
      >>> save_trace("knowledge_0.npz", case)
      >>> load_trace("knowledge_0.npz").indirect_effect.round(1)
      array([[0.1, 0.8, 0.3]], dtype=float32)
    """
    arrays = read_npz(path, "a trace", _REMEDY)
    text = check(str, _plain(arrays.get("provenance", np.array("{}"))), f"{path}: provenance")
    provenance = parse_object(text, f"{path}: provenance", remedy=_REMEDY)
    values = {name: _plain(array) for name, array in arrays.items() if name != "provenance"}
    if not check(_Case, values, str(path)).get("correct_prediction", True):
        reason = check(str, values.get("reason", _REASON), f"{path}: reason")
        return SkippedCase(reason, provenance)
    values["input_ids"] = arrays.get("input_ids", np.zeros(0)).ravel().tolist()
    values["kind"] = values.get("kind") or TraceKind.HIDDEN.value
    values.setdefault("tokens", list(range(len(arrays.get("scores", ())))))
    fields = check(_Fields, values, str(path))
    result = TraceResult(
        arrays["scores"],
        fields["low_score"],
        fields["high_score"],
        np.array(fields["input_ids"]),
        tuple(fields["input_tokens"]),
        fields["subject_range"],
        fields["answer"],
        fields["kind"],
        fields["window"],
        tuple(fields["tokens"]),
        provenance,
    )
    if wrong := _what_is_wrong(result):
        raise ValueError(f"{path} is damaged ({wrong}): {_REMEDY}.")
    return result


class _Case(typing_extensions.TypedDict):
    """What the file of any case says."""

    correct_prediction: typing_extensions.NotRequired[bool]


class _Fields(typing_extensions.TypedDict):
    """The file of a traced case, except for its scores."""

    low_score: float
    high_score: float
    input_ids: list[Annotated[int, pydantic.Field(ge=0)]]
    input_tokens: Annotated[list[str], pydantic.Field(min_length=1)]
    subject_range: tuple[int, int]
    answer: str
    kind: TraceKind
    window: Annotated[int, pydantic.Field(ge=0)]
    tokens: list[int]
    scores: Any


def _plain(array: np.ndarray) -> Any:
    """Returns an array as Python's values."""
    return array.tolist()


def _what_is_wrong(result: TraceResult) -> str:
    """Describes how the parts of a trace contradict each other; empty if they do not."""
    scores, length = result.scores, len(result.input_tokens)
    first, stop = result.subject_range
    if scores.ndim != 2 or not scores.size or scores.dtype.kind != "f":
        return f"its scores are {scores.dtype} of shape {list(scores.shape)}, not [tokens, layers]"
    ends = result.low_score, result.high_score
    if np.isinf(scores).any() or np.isnan(scores).all() or not np.isfinite(ends).all():
        return "its scores are not finite"
    if len(result.input_ids) != length:
        return f"it has {len(result.input_ids)} input_ids and {length} input_tokens"
    if not 0 <= first < stop <= length:
        return f"subject_range is {first} to {stop}, and the prompt has {length} tokens"
    if len(result.tokens) != len(scores) or len(set(result.tokens)) != len(scores):
        return f"it has scores of {len(scores)} tokens and names {len(set(result.tokens))}"
    beyond = [token for token in result.tokens if not 0 <= token < length]
    return (
        f"it has scores of token {beyond[0]}, and the prompt has {length} tokens" if beyond else ""
    )
