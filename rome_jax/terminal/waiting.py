"""A line on standard error while a slow step runs."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
import time
from collections.abc import Iterator


@contextlib.contextmanager
def waiting(text: str, after: float = 2.0) -> Iterator[None]:
    """Reports a step on standard error once it has run for `after` seconds; a terminal also sees the seconds so far.

    Output that the step prints is held back until it ends, so that it does not break the line.

    Args:
      text: Name of the step, such as "loading gpt2-xl".
      after: Seconds before anything is reported.

    Yields:
      Nothing; the step runs inside the `with` block.

    Example:
      >>> with waiting("loading gpt2-xl"):
      ...     print("loaded")
      loaded
    """
    done = threading.Event()
    thread = threading.Thread(target=_tell, args=(text, after, done), daemon=True)
    thread.start()
    held = io.StringIO()
    try:
        with contextlib.redirect_stdout(held):
            yield
    finally:
        done.set()
        thread.join()
        print(held.getvalue(), end="", flush=True)


def _tell(text: str, after: float, done: threading.Event) -> None:
    """Writes the line after `after` seconds, updates it each second in a terminal, and erases it there at the end."""
    begun = time.monotonic()
    if done.wait(after):
        return
    if not sys.stderr.isatty():
        print(f"{text} ...", file=sys.stderr, flush=True)
        return
    line = ""
    while not done.is_set():
        line = f"{text} ... {time.monotonic() - begun:.0f} s"
        print(f"\r{line}", end="", file=sys.stderr, flush=True)
        done.wait(1)
    print(f"\r{' ' * len(line)}\r", end="", file=sys.stderr, flush=True)
