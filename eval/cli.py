"""What the command-line programs share: bad input is one sentence and a warning one line, not a traceback."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator

import absl.logging
from absl import app, flags


def run(main: Callable[[], None]) -> None:
    """Parses the flags and calls `main`; ends with status 1 and one sentence on a ValueError or OSError.

    Example:
      >>> run(main)  # doctest: +SKIP
    """

    def guarded(argv):
        try:
            if not flags.FLAGS["verbosity"].present:
                absl.logging.set_verbosity(absl.logging.WARNING)  # each step of Orbax is no news
            if len(argv) > 1:
                raise ValueError(f"unknown arguments: {' '.join(argv[1:])}; see --help.")
            main()
        except (ValueError, OSError) as error:
            sys.exit(f"Error: {error}")

    # Which backends jax has looked for is no news.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    app.run(guarded)


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Prints the user warnings of its block to standard error, one line each.

    Example:
      >>> with warnings_as_lines():
      ...     warnings.warn("the edit changes little.", stacklevel=1)
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        print(f"Warning: {warning.message}", file=sys.stderr)
