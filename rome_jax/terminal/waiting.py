"""A line on standard error about what takes a while."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
import time
from collections.abc import Iterator


@contextlib.contextmanager
def waiting(text: str, after: float = 2.0) -> Iterator[None]:
    """Says what is being done once it has taken `after` seconds; in a terminal, with the seconds so far.

    What is printed meanwhile comes when it is done, so that it does not tear the line.

    Args:
      text: what is done, such as "loading gpt2-xl".
      after: seconds in which nothing is said.

    Example:
      >>> with waiting("loading gpt2-xl"):
      ...     pass
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
