"""Runs the programs of `eval` inside the test process.

Starting `python -m eval.edit` costs seconds: imports, a model, its compilation. Inside the test process all of these
are shared by the command lines of every test file.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

import absl.logging
import huggingface_hub.constants
from absl import app
from absl.testing import flagsaver

from eval import cli
from eval.flags import model as model_flags
from rome_jax.models.registry import SHIPPED, load_model

ROOT = Path(__file__).resolve().parents[1]

# Once per process, and outside of the flagsaver, which would remove them again.
app.define_help_flags()
_load_once = functools.cache(load_model)


class Program:
    """A program that treats each command line as a fresh `python -m NAME` does.

    Flags, streams, environment variables and log levels are reset after each command line. Imports, compiled programs
    and the shipped models are kept.

    Args:
      name: The module, such as "eval.edit".
      environment: Further environment variables.
      offline: Whether the Hugging Face libraries look for files only on this machine.

    Example:
      >>> Program("eval.edits")("--inspect=nowhere").returncode
      1
    """

    def __init__(
        self, name: str, *, environment: Mapping[str, str] | None = None, offline: bool = True
    ):
        self._module = importlib.import_module(name)
        self._environment = dict(environment or {})
        self._offline = offline

    @property
    def program(self) -> cli.Program:
        """The flags and the main function of the program."""
        return self._module.PROGRAM

    def __call__(
        self, *arguments: str, stdin: str = "", cwd: str | Path = ROOT
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command line and returns what it prints and the status it ends with.

        Args:
          *arguments: The command line after `python -m NAME`.
          stdin: What is typed.
          cwd: The working directory.
        """
        out, err = io.StringIO(), io.StringIO()
        sys.modules.pop("config_config", None)  # into which --config loads every file
        with (
            mock.patch.dict(os.environ, self._environment),
            mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", self._offline),
            mock.patch.object(model_flags, "load_model", load_shipped_once),
            mock.patch.object(sys, "argv", [self._module.__file__, *arguments]),
            mock.patch.object(sys, "stdin", io.StringIO(stdin)),
            mock.patch.object(sys.modules["__main__"], "__doc__", self._module.__doc__),
            contextlib.chdir(cwd),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            _log_to(err),
            flagsaver.flagsaver(),
        ):
            status = _status(self.program)
        command = [sys.executable, "-m", self._module.__name__, *arguments]
        return subprocess.CompletedProcess(command, status, out.getvalue(), err.getvalue())


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """Returns the one line with which a command line was refused."""
    assert result.returncode == 1, result
    assert "Traceback" not in result.stderr, result.stderr
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    return error


def load_shipped_once(name_or_directory, **options):
    """Loads a model as `load_model` does, but each shipped model only once; directories may change."""
    load = _load_once if name_or_directory in SHIPPED else load_model
    return load(name_or_directory, **options)


def _status(program: cli.Program) -> int:
    """Runs a program and returns the status that the interpreter would end with."""
    try:
        program.run()
    except SystemExit as end:
        if not isinstance(end.code, str):
            return end.code or 0
        print(end.code, file=sys.stderr)
    except Exception:
        traceback.print_exc()
    return 1


@contextlib.contextmanager
def _log_to(stream: io.StringIO) -> Iterator[None]:
    """Sends log messages to a stream, and restores the loggers that a program changes."""
    changed = [logging.root, *map(logging.getLogger, ("absl", "jax._src.xla_bridge"))]
    before = [(one, one.level, one.handlers[:], one.propagate) for one in changed]
    verbosity = absl.logging.get_verbosity()
    handler = absl.logging.get_absl_handler().python_handler
    try:
        with mock.patch.object(handler, "stream", stream):
            yield
    finally:
        absl.logging.set_verbosity(verbosity)
        for one, level, handlers, propagate in before:
            one.setLevel(level)
            one.handlers[:], one.propagate = handlers, propagate
