"""The trace of one prompt as a file.

A file has the original's .npz keys, so files of the original load here, and files saved here load there. The
additional key `provenance`, which the original ignores, is a JSON text with the settings of the trace.

Axes: T restored tokens, L layers.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rome_jax.files.artifacts import write_whole
from rome_jax.trace.restore import TraceKind


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

    Example:
      >>> save_trace("cases/knowledge_0.npz", SkippedCase("the clean answer is 'rowing'"))
      >>> load_trace("cases/knowledge_0.npz").reason
      "the clean answer is 'rowing'"
    """
    arrays = {"correct_prediction": np.array(isinstance(result, TraceResult))}
    if isinstance(result, SkippedCase):
        arrays["reason"] = np.array(result.reason)
    else:
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
      ValueError: If the file is damaged or is no trace.

    Example:
      >>> scores = np.array([[0.2, 0.9, 0.4]], np.float32)
      >>> case = TraceResult(
      ...     scores, 0.1, 0.9, np.array([5, 7]), ("Rome", " is"), (0, 1), " in", TraceKind.HIDDEN, 10, (0,)
      ... )
      >>> save_trace("knowledge_0.npz", case)
      >>> load_trace("knowledge_0.npz").indirect_effect.round(1)
      array([[0.1, 0.8, 0.3]], dtype=float32)
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(
            f"{path} is damaged or is no trace ({error}): remove it and trace the case again."
        ) from error
    provenance = json.loads(str(arrays.get("provenance", "{}")))
    if not bool(arrays.get("correct_prediction", True)):
        reason = str(arrays.get("reason", "the clean answer is not the expected one"))
        return SkippedCase(reason, provenance)
    try:
        scores = arrays["scores"]
        tokens = arrays.get("tokens", np.arange(len(scores)))
        first, stop = map(int, arrays["subject_range"])
        return TraceResult(
            scores,
            float(arrays["low_score"]),
            float(arrays["high_score"]),
            arrays["input_ids"].ravel(),
            tuple(map(str, arrays["input_tokens"])),
            (first, stop),
            str(arrays["answer"]),
            TraceKind(str(arrays.get("kind", "")) or TraceKind.HIDDEN),
            int(arrays["window"]),
            tuple(map(int, tokens)),
            provenance,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no trace ({error!r}): give a file of a traced case."
        ) from error
