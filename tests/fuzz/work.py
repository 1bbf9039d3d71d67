"""Stops a command or a call when it begins to compile a large program, which is after all checks."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

import jax

from tests.fuzz.cases import WorkBegan

_TRACED = "/jax/core/compile/jaxpr_trace_duration"
_SECONDS = 0.05  # a forward pass takes longer to trace, and everything before it is faster

_active: list[bool] = []


def _listen(event: str, seconds: float, **_: object) -> None:
    if _active and event == _TRACED and seconds > _SECONDS and not _is_check():
        raise WorkBegan


def _is_check() -> bool:
    """Returns whether the program traces in order to load or check a model."""
    return any(
        frame.name == "param_shapes" or frame.filename.endswith("fingerprint.py")
        for frame in traceback.extract_stack()
    )


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
