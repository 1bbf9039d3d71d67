"""What the command-line programs share: flags, errors, the cache of compiled programs; standard error is theirs alone.

Bad input is one sentence and a warning one line, not a traceback. What the libraries below log and deprecate stays
unsaid unless --verbosity asks for it. What a program has compiled, the next one finds in the project's cache folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import absl.logging
from absl import app, flags

from eval.flags import common, define
from rome_jax.data.request import EditWarning
from rome_jax.files.artifacts import cache_directory, trim_directory
from rome_jax.files.progress import tqdm

_CACHE_BYTES = 2 << 30
# Read by the libraries of Hugging Face when they are first imported, which programs do while they load a model.
_VERBOSITIES = ("DATASETS_VERBOSITY", "HF_HUB_VERBOSITY", "TRANSFORMERS_VERBOSITY")
_INTERRUPTED = 130  # the status of what Ctrl-C has ended, as shells have it


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a run that resumes with further flags."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A program: its main function, and the flags that it reads.

    Attributes:
      main: what it does.
      takes: names of its flags, in the modules of `eval.flags`; another one of these is refused.
      defaults: where they are not those of the flags' definitions.
      required: flags that have to be given.
      resumable: whether the same command resumes a stopped run.
      refused: why some flags are refused, by name.
    """

    main: Callable[[], None]
    takes: Sequence[str] = ()
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    required: Sequence[str] = ()
    resumable: bool = False
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its module, such as eval.edit."""
        name = self.main.__module__
        spec = getattr(sys.modules.get("__main__"), "__spec__", None)
        return spec.name if name == "__main__" and spec else name

    def run(self) -> None:
        """Parses the flags and calls `main`; ends with status 1 and one sentence on a ValueError or OSError.

        Ctrl-C ends it with status 130 and, if it is resumable, with the command that resumes it.
        """
        for name, value in self.defaults.items():
            flags.FLAGS.set_default(name, value)
        for name in (common.CACHE.name, *self.takes):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])

        def guarded(argv):
            try:
                self._check(argv)
                if common.CACHE.value:
                    keep_compiled_programs()
                if flags.FLAGS["verbosity"].present:
                    self.main()
                else:
                    with _quiet_libraries():
                        self.main()
            except (ValueError, OSError) as error:
                sys.exit(f"Error: {error}")
            except KeyboardInterrupt as error:
                self._say_how_to_go_on(error)
                sys.exit(_INTERRUPTED)

        app.run(guarded, flags_parser=_parse)

    def _check(self, argv: Sequence[str]) -> None:
        """Refuses what the program would not read.

        Raises:
          ValueError: naming it.
        """
        if len(argv) > 1:
            raise ValueError(f"unknown arguments: {' '.join(argv[1:])}; see --help.")
        for name in sorted(given() - set(self.takes)):
            if name in self.refused:
                raise ValueError(f"--{name} {self.refused[name]}.")
            raise ValueError(
                f"--{name} is no flag of {self.name}: leave it out, or see python -m {self.name} --help."
            )

        for name in self.required:
            if flags.FLAGS[name].value is None:
                raise ValueError(f"--{name} is missing: give it. {flags.FLAGS[name].help}")

    def _say_how_to_go_on(self, error: KeyboardInterrupt) -> None:
        more = error.args if isinstance(error, Interrupted) else ()
        print("\nStopped.", file=sys.stderr)
        if self.resumable:
            line = [argument for argument in sys.argv[1:] if argument not in more]
            command = shlex.join(["python", "-m", self.name, *line, *more])
            print(f"To resume: {command}", file=sys.stderr)


def given() -> set[str]:
    """Names of the program's own flags on the command line; an alias counts as its flag."""
    return {
        name
        for name in flags.FLAGS
        if flags.FLAGS[name].present
        and not define.is_alias(flags.FLAGS[name])
        and name != common.CACHE.name
        and str(flags.FLAGS.find_module_defining_flag(name)).startswith("eval.flags.")
    }


@contextlib.contextmanager
def goes_on_with(*arguments: str) -> Iterator[None]:
    """Ctrl-C inside names further arguments of the command that resumes the run.

    Example:
      >>> with goes_on_with("--continue_from_run=run_000"):
      ...     pass
    """
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(*arguments) from error


def keep_compiled_programs() -> None:
    """Keeps what is compiled from now on in the project's cache folder, unless JAX_COMPILATION_CACHE_DIR names one.

    The folder holds two gigabytes at most when a program begins; what was not used for longest goes first. (jax's own
    bound, jax_compilation_cache_max_size, refuses to write at all once a process without it has used the folder.)
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    import jax  # programs that only read files start without it

    directory = cache_directory() / "xla"
    trim_directory(directory, _CACHE_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags; ends with status 1 and one sentence if they are wrong."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError) as error:
        sys.exit(f"Error: {_sentence(str(error), argv)}")


def _sentence(text: str, argv: Sequence[str]) -> str:
    """One sentence for what absl and ml_collections say of wrong flags."""
    if match := re.search(r"Unknown command line flag '(config\.\S+)'", text):
        return f"--{match[1]} changes a value of --config: give --config=configs/... before it."
    # A field that is not there: "'v_lrr'\nDid you mean "v_lr" instead of "v_lrr"?", quoted.
    if match := re.match(r"""["']?\\?'(\w+)\\?'(?:.*Did you mean "(\w+)")?""", text, re.DOTALL):
        said = next((a for a in argv if re.match(rf"--?config\.{match[1]}\b", a)), match[1])
        meant = f", did you mean {match[2]}?" if match[2] else "."
        return f"{said}: the configuration has no {match[1]}{meant}"
    if "Error whilst parsing config file" in text:
        said = next((a for a in argv if re.match("--?config(=|$)", a)), "--config")
        return f"{said}: {text.strip().splitlines()[-1].partition(': ')[2]}"
    return text.splitlines()[0]


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
