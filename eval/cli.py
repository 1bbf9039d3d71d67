"""The shared part of the command-line programs: flags, error messages and the cache of compiled programs.

Bad input is reported in one sentence and a warning in one line, without a traceback. Log messages and deprecation
warnings of other libraries are hidden unless --verbosity is given. Compiled programs are stored in the project's cache
folder, where later runs find them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shlex
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import absl.logging
from absl import app, flags

from eval import refusals, stopping
from eval.flags import common, define
from rome_jax.data.request import EditWarning
from rome_jax.files.artifacts import cache_directory, trim_directory
from rome_jax.files.checksums import VERIFY
from rome_jax.files.folders import create
from rome_jax.files.groups import IncompleteError
from rome_jax.files.places import check_path, check_writable, check_writable_file
from rome_jax.files.progress import tqdm
from rome_jax.files.safetensors_io import CheckpointWarning
from rome_jax.files.system_errors import explaining
from rome_jax.terminal import failures

_CACHE_BYTES = 2 << 30
# The Hugging Face libraries read these variables when they are first imported, which happens while a model loads.
_VERBOSITIES = ("DATASETS_VERBOSITY", "HF_HUB_VERBOSITY", "TRANSFORMERS_VERBOSITY")
# Flags that name what a program writes to, with the checks of these places.
_PLACES: Mapping[str, Callable[[str, str], object]] = {
    "results_dir": check_path,  # eval.summarize only reads it
    **dict.fromkeys(("output_dir", "export_hf", "export_orbax"), check_writable),
    **dict.fromkeys(("output", "plot", "save", "merge_to"), check_writable_file),
}
_READ = "apply revert inspect hypernetwork second_moments templates hparams_fname data_path fact_file snippets_path "
_READ += "tfidf_dir dataset noise_corpus"
# All flags that name files or folders. In their values ~ is the home folder; shells leave it as it is after "=".
_PATHS = {**_PLACES, **dict.fromkeys(_READ.split(), check_path)}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a run that needs further arguments to resume; they are the arguments of the exception."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A command-line program: its main function and the flags it accepts.

    Attributes:
      main: The function to call once the flags are parsed.
      takes: Names of the accepted flags, which the modules of `eval.flags` define. All other flags of these modules are
        refused.
      defaults: Default values that differ from those in the flags' definitions, by flag name.
      required: Names of the flags that must be given.
      resumable: Whether the same command resumes a stopped run.
      refused: For some refused flags, the reason that the error message gives, by flag name.
    """

    main: Callable[[], None]
    takes: Sequence[str] = ()
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    required: Sequence[str] = ()
    resumable: bool = False
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the program's module, such as eval.edit."""
        name = self.main.__module__
        spec = getattr(sys.modules.get("__main__"), "__spec__", None)
        return spec.name if name == "__main__" and spec else name

    def run(self) -> None:
        """Parses the flags, calls `main` and exits.

        An error is printed as one sentence, and the status is 1. If the error was not foreseen, the sentence names a
        file with the traceback, which --verbosity prints too. A signal such as Ctrl-C ends with status 128 plus its
        number and, if the program is resumable, prints the command that resumes the run.
        """
        for name, value in self.defaults.items():
            flags.FLAGS.set_default(name, value)
        for name in (*common.NAMES, *self.takes):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])

        def guarded(argv):
            with stopping.interrupting() as received:
                try:
                    self._work(argv)
                except Exception as error:
                    if not received:
                        self._end(error)
                    self._stop(error, received)  # a library has replaced the KeyboardInterrupt
                except KeyboardInterrupt as error:
                    self._stop(error, received)

        app.run(guarded, flags_parser=self._parse)

    def _parse(self, argv: Sequence[str]) -> list[str]:
        """Parses the flags; exits with status 1 and one sentence if they are invalid."""
        try:
            return flags.FLAGS(define.expand_fields(argv) if "config" in self.takes else argv)
        except SystemExit as end:  # after --help and the like, for which absl exits with 1
            sys.exit(0 if end.code == 1 else f"Error: the file of --config exits with {end.code}.")
        except Exception as error:  # a configuration file can raise anything
            sys.exit(f"Error: {refusals.describe(error, argv)}")

    def _work(self, argv: Sequence[str]) -> None:
        """Calls `main` with the settings that all programs share."""
        self._check(argv)
        if common.VERIFY.value:
            os.environ[VERIFY] = "1"
        if common.CACHE.value:
            keep_compiled_programs()
        if flags.FLAGS["verbosity"].present:
            self.main()
        else:
            with _quiet_libraries():
                self.main()
        sys.stdout.flush()

    def _stop(self, error: BaseException, received: Sequence[int]) -> None:
        """Exits after a signal and prints the command that resumes the run."""
        self._print_resume_command(error)
        _settle_output()
        sys.exit(128 + (received[0] if received else signal.SIGINT))

    def _end(self, error: Exception) -> None:
        """Exits with status 1 and one sentence about an error."""
        if flags.FLAGS["verbosity"].present:
            traceback.print_exception(error)
        places = {name: flags.FLAGS[name].value for name in _PLACES if name in self.takes}
        named = {name: str(value) for name, value in places.items() if value}
        _settle_output()
        sentence = f"Error: {failures.describe(error, self.takes, named)}"
        if isinstance(error, IncompleteError):
            sentence += f"\nTo resume: {self._resume_command(error.arguments)}"
        sys.exit(sentence)

    def _check(self, argv: Sequence[str]) -> None:
        """Refuses arguments that the program would ignore, and missing ones.

        Raises:
          ValueError: If an argument is unknown, a flag belongs to other programs, or a required flag is missing.
          OSError: If something cannot be written where a flag says.
        """
        if len(argv) > 1:
            raise ValueError(f"unknown arguments: {' '.join(argv[1:])}; see --help.")
        for name in sorted(given() - set(self.takes)):
            if name in self.refused:
                raise ValueError(f"--{name} {self.refused[name]}.")
            raise ValueError(
                f"--{name} is not a flag of {self.name}: leave it out; python -m {self.name} --help lists the flags."
            )
        for name in self.required:
            if flags.FLAGS[name].value is None:
                raise ValueError(f"--{name} is missing: give it. {flags.FLAGS[name].help}")
        for name in sorted(given() & _PATHS.keys()):
            flag = flags.FLAGS[name]
            several = isinstance(flag.value, list)
            paths = [os.path.expanduser(path) for path in (flag.value if several else [flag.value])]
            for path in paths:
                _PATHS[name](path, f"--{name}")
            flag.value = paths if several else paths[0]

    def _print_resume_command(self, error: BaseException) -> None:
        more = error.args if isinstance(error, Interrupted) else ()
        print("\nStopped.", file=sys.stderr)
        if self.resumable:
            print(f"To resume: {self._resume_command(more)}", file=sys.stderr)

    def _resume_command(self, more: Sequence[str]) -> str:
        """Returns the command that resumes the run, which needs further arguments."""
        line = [argument for argument in sys.argv[1:] if argument not in more]
        return command_line(self.name, [*line, *more])


def command_line(program: str, arguments: Sequence[str] | None = None) -> str:
    """Returns the command that runs a program.

    Args:
      program: Name of its module, such as eval.edit.
      arguments: Its arguments; by default those of this process.
    """
    return shlex.join(
        ["python", "-m", program, *(sys.argv[1:] if arguments is None else arguments)]
    )


def given() -> set[str]:
    """Returns the names of the flags of `eval.flags` on the command line; an alias counts as the flag it names."""
    return {
        name
        for name in flags.FLAGS
        if flags.FLAGS[name].present
        and not define.is_alias(flags.FLAGS[name])
        and name not in common.NAMES
        and str(flags.FLAGS.find_module_defining_flag(name)).startswith("eval.flags.")
    }


@contextlib.contextmanager
def resumes_with(*arguments: str) -> Iterator[None]:
    """Adds arguments to the resume command that is printed if the run stops in this context.

    Example:
      >>> with resumes_with("--continue_from_run=run_000"):
      ...     pass
    """
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(*arguments) from error
    except IncompleteError as error:
        error.arguments = arguments
        raise


def keep_compiled_programs() -> None:
    """Stores compiled programs in the project's cache folder, unless JAX_COMPILATION_CACHE_DIR names another folder.

    A folder that cannot be written to is not used, and a warning says so. Before a run the folder is trimmed to two
    gigabytes, least recently used files first. (JAX's own limit,
    jax_compilation_cache_max_size, stops writing once a process without the limit has used the folder.)
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    import jax  # slow; programs that only read files do not need it

    try:
        directory = cache_directory() / "xla"
        create(directory)
        with explaining(directory), tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        print(
            f"Warning: compiled programs are not kept, set ROME_JAX_CACHE to a folder: {error}",
            file=sys.stderr,
        )
        return
    trim_directory(directory, _CACHE_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _settle_output() -> None:
    """Writes what is still buffered, or drops it if the output is closed or full, so that the exit does not fail."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Prints each warning of rome_jax as one line, and hides all messages of other libraries except errors."""
    for name in _VERBOSITIES:
        os.environ.setdefault(name, "error")
    absl.logging.set_verbosity(
        absl.logging.ERROR
    )  # applies to Orbax and all loggers without a level of their own
    # One exception: users need to know if jax cannot use their GPU.
    backends = logging.getLogger("jax._src.xla_bridge")
    backends.handlers, backends.propagate = [logging.StreamHandler()], False
    backends.handlers[0].setFormatter(logging.Formatter("Warning: %(message)s"))
    backends.setLevel(logging.WARNING)

    def show(message, category, *_, **__):
        if issubclass(category, EditWarning | CheckpointWarning):
            tqdm.write(f"Warning: {message}", file=sys.stderr)  # keeps a progress bar intact

    with warnings.catch_warnings():
        warnings.simplefilter("always", EditWarning)
        warnings.simplefilter("always", CheckpointWarning)
        warnings.showwarning = show
        yield
