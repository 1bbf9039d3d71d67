"""What the command-line programs share: standard error is theirs alone.

Bad input is one sentence and a warning one line, not a traceback. What the libraries below log and deprecate stays
unsaid unless --verbosity asks for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator

import absl.logging
from absl import app, flags
from tqdm import tqdm

from rome_jax.data.request import EditWarning

# Read by the libraries of Hugging Face when they are first imported, which programs do while they load a model.
_VERBOSITIES = ("DATASETS_VERBOSITY", "HF_HUB_VERBOSITY", "TRANSFORMERS_VERBOSITY")


def run(main: Callable[[], None]) -> None:
    """Parses the flags and calls `main`; ends with status 1 and one sentence on a ValueError or OSError.

    Example:
      >>> run(main)  # doctest: +SKIP
    """

    def guarded(argv):
        try:
            if len(argv) > 1:
                raise ValueError(f"unknown arguments: {' '.join(argv[1:])}; see --help.")
            if flags.FLAGS["verbosity"].present:
                main()
            else:
                with _quiet_libraries():
                    main()
        except (ValueError, OSError) as error:
            sys.exit(f"Error: {error}")

    app.run(guarded)


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Prints the warnings of rome_jax as one line each, and no word of other libraries short of an error."""
    for name in _VERBOSITIES:
        os.environ.setdefault(name, "error")
    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax, and all that have no level of their own
    # Except for one: a GPU that jax cannot use is worth a line.
    backends = logging.getLogger("jax._src.xla_bridge")
    backends.handlers, backends.propagate = [logging.StreamHandler()], False
    backends.handlers[0].setFormatter(logging.Formatter("Warning: %(message)s"))
    backends.setLevel(logging.WARNING)

    def show(message, category, *_, **__):
        if issubclass(category, EditWarning):
            tqdm.write(f"Warning: {message}", file=sys.stderr)  # does not tear a progress bar

    with warnings.catch_warnings():
        warnings.simplefilter("always", EditWarning)
        warnings.showwarning = show
        yield
