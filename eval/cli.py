"""What the command-line programs share: bad input is one sentence, not a traceback."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from absl import app


def run(main: Callable[[], None]) -> None:
    """Parses the flags and calls `main`; ends with status 1 and one sentence on a ValueError or OSError.

    Example:
      >>> run(main)  # doctest: +SKIP
    """

    def guarded(argv):
        try:
            if len(argv) > 1:
                raise ValueError(f"unknown arguments: {' '.join(argv[1:])}; see --help.")
            main()
        except (ValueError, OSError) as error:
            sys.exit(f"Error: {error}")

    # Which backends jax has looked for is no news.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    app.run(guarded)
