"""Average effects over many prompts, by the class of a token's position (paper, section 2.2 and figure 2).

Axes: L layers.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable

import numpy as np

from rome_jax.files.checked import shown
from rome_jax.trace.result import SkippedCase, TraceResult, traced


class TokenClass(enum.Enum):
    """Positions in a prompt, with the names that figures show."""

    FIRST_SUBJECT = "First subject token"
    MIDDLE_SUBJECT = "Middle subject tokens"
    LAST_SUBJECT = "Last subject token"
    FIRST_SUBSEQUENT = "First subsequent token"
    FURTHER = "Further tokens"
    LAST = "Last token"

    def columns(self, subject: tuple[int, int], length: int) -> range:
        """Returns the columns of a prompt that belong to this class.

        A token may belong to two classes, and a class may be empty.

        Args:
          subject: (first, last + 1) token of the subject.
          length: Number of tokens in the prompt.

        Example:
          >>> [list(place.columns((1, 4), 8)) for place in TokenClass]
          [[1], [2], [3], [4], [5, 6], [7]]
        """
        first, stop = subject
        return {
            TokenClass.FIRST_SUBJECT: range(first, first + 1),
            TokenClass.MIDDLE_SUBJECT: range(first + 1, stop - 1),
            TokenClass.LAST_SUBJECT: range(stop - 1, stop),
            TokenClass.FIRST_SUBSEQUENT: range(stop, min(stop + 1, length)),
            TokenClass.FURTHER: range(stop + 1, length - 1),
            TokenClass.LAST: range(length - 1, length),
        }[self]


@dataclasses.dataclass(frozen=True, eq=False)
class ClassAverage:
    """The average indirect effect of one class of tokens, pooled over tokens and prompts.

    Attributes:
      mean: [L] means; NaN if the class has no token.
      band: [L] half widths of the 95 % confidence intervals, 1.96 σ / √n.
      count: n, the number of tokens.
    """

    mean: np.ndarray
    band: np.ndarray
    count: int

    @property
    def peak(self) -> tuple[int, float]:
        """The layer with the largest mean, and that mean."""
        layer = int(self.mean.argmax())
        return layer, float(self.mean[layer])


@dataclasses.dataclass(frozen=True, eq=False)
class AverageEffects:
    """The average effects of one kind of restoration over prompts.

    Attributes:
      indirect: Average indirect effects by class of tokens.
      clean: Mean score of the clean runs.
      corrupted: Mean score of the corrupted runs.
      total: Mean total effect, clean − corrupted.
      total_band: Half width of its 95 % confidence interval, 1.96 σ / √n.
      num_cases: Number of traced prompts.
      num_skipped: Number of prompts that could not be traced or whose clean answer was wrong.
    """

    indirect: dict[TokenClass, ClassAverage]
    clean: float
    corrupted: float
    total: float
    total_band: float
    num_cases: int
    num_skipped: int


def average_effects(cases: Iterable[TraceResult | SkippedCase]) -> AverageEffects:
    """Averages the effects of cases.

    Args:
      cases: Cases of one kind, measure, window and number of layers.

    Returns:
      Mean indirect effects by class of tokens, and the mean total effect.

    Raises:
      ValueError: If no case was traced, cases differ in kind, measure, window or number of layers, or a score is NaN.

    Example:
      >>> from rome_jax.trace import Distribution, Noise, Protocol, Series, open_facts, trace_facts
      >>> protocol = Protocol(Noise(Distribution.GAUSSIAN, 0.5), samples=2)
      >>> facts = open_facts("factworld").facts[2:4]
      >>> cases = trace_facts(model, facts, protocol, [Series.HIDDEN], {})
      >>> average_effects(cases[Series.HIDDEN]).indirect[TokenClass.LAST].peak[0]  # the last layer
      5
    """
    cases = list(cases)
    found = traced(cases)
    if not found:
        raise ValueError(
            f"none of {len(cases)} cases was traced: give at least one case that was not skipped."
        )
    check_same_sort(found)
    for case in found:
        if np.isnan(case.scores).any():
            raise ValueError(
                f"a score of the case with the answer {shown(case.answer)} is NaN: trace it without a screening."
            )
    indirect = {}
    for place in TokenClass:
        rows = []
        for case in found:
            columns = place.columns(case.subject_range, len(case.input_tokens))
            rows += [case.indirect_effect[row] for row, c in enumerate(case.tokens) if c in columns]
        indirect[place] = _average(np.array(rows).reshape(len(rows), found[0].scores.shape[1]))
    total = _average(np.array([[case.total_effect] for case in found]))
    return AverageEffects(
        indirect,
        float(np.mean([case.high_score for case in found])),
        float(np.mean([case.low_score for case in found])),
        float(total.mean[0]),
        float(total.band[0]),
        len(found),
        len(cases) - len(found),
    )


def check_same_sort(cases: Iterable[TraceResult]) -> None:
    """Checks that the scores of cases can be summarized together.

    Raises:
      ValueError: If cases differ in kind, measure, window or number of layers.
    """
    sorts = {(str(c.kind), c.measure, c.window, c.scores.shape[1]) for c in cases}
    if len(sorts) > 1:
        raise ValueError(
            f"cases are of several sorts (kind, measure, window, layers), {sorted(sorts)}: summarize each by itself."
        )


def _average(rows: np.ndarray) -> ClassAverage:
    """Averages rows [n, ...]; the deviation divides by n, as in the original."""
    if not len(rows):
        nothing = np.full(rows.shape[1:], np.nan)
        return ClassAverage(nothing, nothing, 0)
    return ClassAverage(rows.mean(0), 1.96 * rows.std(0) / np.sqrt(len(rows)), len(rows))
