"""The trace of one prompt as a file: the original's .npz keys, and where it comes from.

The original's files and these are interchangeable: both load here, and what is saved here loads there. The key
`provenance`, which the original ignores, is a JSON text.

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
    """What restoring states of one prompt did to its answer.

    Attributes:
      scores: float32 [T, L], the measure with the state at (token, layer) restored.
      low_score: of the corrupted runs.
      high_score: of the clean run.
      input_ids: int [prompt tokens].
      input_tokens: the text of each.
      subject_range: (first, last + 1) token of the subject.
      answer: whose probability it is.
      kind: what was restored.
      window: layers of a window; without meaning for hidden states.
      tokens: the T prompt columns that were restored.
      provenance: model, noise and so on; empty for a file of the original.
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
        """[T, L], scores − low_score (paper, section 2.1)."""
        return self.scores - self.low_score

    @property
    def total_effect(self) -> float:
        """high_score − low_score."""
        return self.high_score - self.low_score


@dataclasses.dataclass(frozen=True)
class SkippedCase:
    """A case that was not traced, and why."""

    reason: str
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def traced(cases: Iterable[TraceResult | SkippedCase]) -> list[TraceResult]:
    """The cases that were not skipped."""
    return [case for case in cases if isinstance(case, TraceResult)]


def save_trace(path: str | Path, result: TraceResult | SkippedCase) -> None:
    """Writes one case; whole or not at all.

    Example:
      >>> save_trace("cases/knowledge_0.npz", result)  # doctest: +SKIP
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
    np.savez(file, **arrays)
    write_whole(Path(path), file.getvalue())


def load_trace(path: str | Path) -> TraceResult | SkippedCase:
    """Reads a case of ours or of the original.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged file, or one that is no trace.

    Example:
      >>> load_trace("cases/knowledge_0.npz").indirect_effect.max()  # doctest: +SKIP
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is damaged, or no trace ({error}): trace it again.") from error
    provenance = json.loads(str(arrays.get("provenance", "{}")))
    if not bool(arrays.get("correct_prediction", True)):
        reason = str(arrays.get("reason", "the clean answer is not the expected one"))
        return SkippedCase(reason, provenance)
    try:
        scores = arrays["scores"]
        tokens = arrays.get("tokens", np.arange(len(scores)))
        return TraceResult(
            scores,
            float(arrays["low_score"]),
            float(arrays["high_score"]),
            arrays["input_ids"].ravel(),
            tuple(map(str, arrays["input_tokens"])),
            tuple(map(int, arrays["subject_range"])),
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
