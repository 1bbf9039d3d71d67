"""Stops a command or a call when it begins to compile a large program, which is after all checks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

from tests.fuzz.cases import WorkBegan

_TRACED = "/jax/core/compile/jaxpr_trace_duration"
_SECONDS = 0.05  # a forward pass takes longer to trace, and everything before it is faster

_active: list[bool] = []


def _listen(event: str, seconds: float, **_: object) -> None:
    if _active and event == _TRACED and seconds > _SECONDS:
        raise WorkBegan


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """Ends the context quietly when a large program is about to be compiled in it."""
    _active.append(True)
    try:
        yield
    except WorkBegan:
        pass
    finally:
        _active.pop()
