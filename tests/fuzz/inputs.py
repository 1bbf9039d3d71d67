"""The table of functions whose arguments are damaged."""

from __future__ import annotations

from collections.abc import Iterator

from tests.fuzz import inputs_data, inputs_edits, inputs_models, inputs_traces
from tests.fuzz.call import Call
from tests.fuzz.cases import Case

CALLS: tuple[Call, ...] = (
    *inputs_data.CALLS,
    *inputs_models.CALLS,
    *inputs_edits.CALLS,
    *inputs_traces.CALLS,
)


def cases() -> Iterator[Case]:
    """Yields all cases of bad arguments."""
    for call in CALLS:
        yield from call.cases()
