"""The signals that ask a program to stop: Ctrl-C, and those of schedulers and closed terminals.

While Python imports the library, nothing has been written yet, and a signal ends the process at once. While the program
runs, a signal raises KeyboardInterrupt, so that temporary files are removed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_LATER = 0.05  # seconds until a signal is tried again
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _leave(number: int, frame: FrameType | None) -> None:
    """Ends the process with the conventional status."""
    os.write(2, b"\nStopped.\n")
    os._exit(128 + number)


def _handle(handler: signal.Handlers | object) -> dict[int, object]:
    """Installs a handler for all signals that are not ignored, and returns the handlers that it replaces."""
    replaced = {}
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            replaced[number] = signal.signal(number, handler)
    return replaced


def _swallows(frame: FrameType | None) -> bool:
    """Returns whether Python would ignore an exception here: in a finalizer, or in jax's callback of the collector."""
    while frame is not None and frame.f_code.co_name not in ("__del__", "_xla_gc_callback"):
        frame = frame.f_back
    return frame is not None


@contextlib.contextmanager
def interrupting() -> Iterator[list[int]]:
    """Raises KeyboardInterrupt in a `with` statement when a signal asks the program to stop; a second one ends it.

    Yields:
      A list to which the signal's number is added.

    Example:
      >>> with contextlib.suppress(KeyboardInterrupt), interrupting() as received:
      ...     signal.raise_signal(signal.SIGTERM)
      >>> received == [signal.SIGTERM]
      True
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        if _swallows(frame):
            threading.Timer(_LATER, os.kill, (os.getpid(), number)).start()
            return
        received.append(number)
        _handle(_leave)
        raise KeyboardInterrupt

    before = _handle(interrupt)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_program() -> bool:
    """Returns whether this process runs a program of `eval`, and does not only import one."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name.startswith("eval.")


if is_program():
    _handle(_leave)
