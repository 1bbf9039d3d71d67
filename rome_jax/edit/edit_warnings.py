"""Warnings about edits: one for all edits of a call that have the same fault, and one for all calls of a run."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from rome_jax.data.request import EditWarning


def warn(
    fault: str,
    affected: np.ndarray,
    severity: np.ndarray,
    describe: Callable[[int], str],
    stacklevel: int,
) -> None:
    """Warns in one sentence about the edits that have a fault.

    Args:
      fault: The fault in two or three words, such as "are too large".
      affected: bool [N], whether an edit has the fault.
      severity: [N], how bad an edit is.
      describe: Returns a sentence about an edit, given its index; it is called for the worst edit.
      stacklevel: Number of calls from here up to the user's code, as for `warnings.warn`.

    Example:
      >>> severity = np.array([3.0, 50.0, 20.0])
      >>> with collected() as found:
      ...     warn("are too large", severity > 10, severity, lambda i: f"edit {i} is too large.", 2)
      >>> print(*found)
      2 of 3 edits are too large: edit 1 is too large.
    """
    indices = np.flatnonzero(affected)
    if len(indices):
        worst = int(indices[np.argmax(severity[indices])])
        found = EditWarning(
            describe(worst),
            fault,
            count=len(indices),
            total=len(affected),
            severity=float(severity[worst]),
        )
        warnings.warn(found, stacklevel=stacklevel)


@contextlib.contextmanager
def collected() -> Iterator[list[EditWarning]]:
    """Collects the warnings about edits that a `with` statement gives, instead of showing them.

    Other warnings are shown as ever.

    Yields:
      The list of warnings, which grows.
    """
    found: list[EditWarning] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", EditWarning)
        show = warnings.showwarning

        def keep(message, category, *place, **more):
            if isinstance(message, EditWarning):
                found.append(message)
            else:
                show(message, category, *place, **more)

        warnings.showwarning = keep
        yield found


@contextlib.contextmanager
def summarized(total: int) -> Iterator[None]:
    """Gives one warning for all edits with the same fault that a `with` statement computes, at its end.

    Args:
      total: Number of edits that the statement computes.

    Example:
      >>> with collected() as found, summarized(1000):
      ...     for size in (20.0, 50.0, 30.0):
      ...         warn("are too large", np.array([True]), np.array([size]), lambda _: f"it is {size}.", 2)
      >>> print(*found)
      3 of 1000 edits are too large: it is 50.0.
    """
    found: list[EditWarning] = []
    try:
        with collected() as found:
            yield
    finally:
        for one in _by_fault(found, total):
            warnings.warn(one, stacklevel=3)


def _by_fault(found: Sequence[EditWarning], total: int) -> list[EditWarning]:
    """Joins the warnings of each fault; warnings about something else are kept, each text once."""
    groups: dict[str, list[EditWarning]] = {}
    for one in found:
        groups.setdefault(one.fault or str(one), []).append(one)
    joined = []
    for group in groups.values():
        worst = group[int(np.argmax([one.severity for one in group]))]
        if worst.fault:
            count = sum(one.count for one in group)
            worst = EditWarning(
                worst.sentence, worst.fault, count=count, total=total, severity=worst.severity
            )
        joined.append(worst)
    return joined
