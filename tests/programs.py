"""Programs of `eval` that run many command lines in one process.

Starting `python -m eval.edit` costs seconds: imports, a model, its compilation. A `Program` starts once.
"""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import TextIO

from absl import app
from absl.testing import flagsaver

from rome_jax.models import registry

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 900  # that one command line may take


class Program:
    """A program that answers each command line as a fresh `python -m NAME` does (except for --help), but quicker.

    Its process starts with the first command line. From one to the next it keeps what it has imported and compiled, and
    the shipped models; flags and streams start anew.

    Args:
      name: of the module, such as "eval.edit".
      setup: Python source to run before the module is imported.
      environment: variables of the process, beside those of this one.

    Example:
      >>> with Program("eval.edit") as program:  # doctest: +SKIP
      ...     print(program("--inspect=edits").stdout)
    """

    def __init__(self, name: str, *, setup: str = "", environment: Mapping[str, str] | None = None):
        self._name = name
        self._setup = setup
        self._environment = os.environ | (environment or {})
        # The process shares these files and the places in them, so what a killed one has said is there too.
        self._streams = [_new_stream() for _ in range(3)]
        self._process: subprocess.Popen | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_) -> None:
        self._stop()
        for stream in self._streams:
            stream.close()

    def __call__(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """What a command line says, and the status it ends with.

        Raises:
          RuntimeError: it took too long, or the process has died. The next call starts another.
        """
        for stream, text in zip(self._streams, (stdin, "", "")):
            stream.seek(0)
            stream.truncate()
            stream.write(text)
            stream.seek(0)
        if self._process is None:
            self._start()
        try:
            self._connection.send(arguments)
            if not self._connection.poll(SECONDS):
                raise TimeoutError(f"no answer within {SECONDS} seconds")
            returncode = self._connection.recv()
        except (EOFError, OSError) as error:
            self._stop()
            said = _read(self._streams[2])
            raise RuntimeError(
                f"{self._name} {' '.join(arguments)} did not end:\n{said}"
            ) from error
        command = [sys.executable, "-m", self._name, *arguments]
        return subprocess.CompletedProcess(command, returncode, *map(_read, self._streams[1:]))

    def _start(self) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        stdin, stdout, stderr = self._streams
        with theirs:
            number = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.programs", self._name, str(number), self._setup],
                cwd=ROOT,
                env=self._environment,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=[number],
            )

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._connection.close()


def _new_stream() -> TextIO:
    return tempfile.TemporaryFile("w+")


def _read(stream: TextIO) -> str:
    stream.seek(0)
    return stream.read()


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """The one line with which a command line was refused: bad input, or bad flags."""
    assert result.returncode == 1, result
    assert "Traceback" not in result.stderr, result.stderr
    beginnings = ("Error: ", "FATAL Flags parsing error: ")
    (error,) = [line for line in result.stderr.splitlines() if line.startswith(beginnings)]
    return error


def serve(name: str, connection: Connection, setup: str) -> None:
    """Answers the command lines of a `Program` with the statuses they end with, until there are no more."""
    registry.load_model = _shipped_once(registry.load_model)
    exec(setup, {})
    program = importlib.import_module(name)
    app.define_help_flags()
    while True:
        try:
            arguments = connection.recv()
        except EOFError:
            return
        connection.send(_run(program, arguments))


def _shipped_once(load_model):
    """`load_model` that loads each shipped model once; what a directory holds may change."""
    load_once = functools.cache(load_model)

    @functools.wraps(load_model)
    def load(name_or_directory, **options):
        loader = load_once if name_or_directory in registry.SHIPPED else load_model
        return loader(name_or_directory, **options)

    return load


def _run(program: ModuleType, arguments: tuple[str, ...]) -> int:
    """Runs one command line as the interpreter would; returns the status."""
    sys.argv = [program.__file__, *arguments]
    status = None
    try:
        with open(0, closefd=False) as sys.stdin, flagsaver.flagsaver():
            program.PROGRAM.run()
    except SystemExit as end:
        status = end.code
    except Exception:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status or 0


if __name__ == "__main__":
    serve(sys.argv[1], Connection(int(sys.argv[2])), sys.argv[3])
