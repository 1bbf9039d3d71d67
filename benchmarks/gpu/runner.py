"""Runs the parts of a check one after another, each in a process of its own, under one budget of time.

    stages ─► parts ─► process with a limit ─► rows on disk ─► page

A part that fails or hangs ends alone. Everything measured is on disk as soon as it is known: a process appends its
rows itself, and the page is written anew after each part.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROWS, PAGE, LOG = "rows.jsonl", "gpu.md", "log.txt"
_TAIL = 30  # lines of a failed part's output that its row keeps
_GRACE = 2.0  # seconds between asking a process to stop and stopping it


@dataclasses.dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
      name: unique, such as "edits gpt2-xl float32".
      seconds: its share of the budget, in proportion to those of the other parts.
      options: what its process is told.
    """

    name: str
    seconds: float
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Stage:
    """Parts that answer one question.

    Attributes:
      name: a heading of the page.
      about: a paragraph below it.
      parts: in the order in which they run.
    """

    name: str
    about: str
    parts: Sequence[Part]


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Adds one line to a file of rows, and sees it on disk."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; a last line that was cut short is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def run_stages(
    stages: Sequence[Stage],
    budget_s: float,
    directory: Path,
    command: Callable[[Stage, Part, float], Sequence[str]],
    after_part: Callable[[], None] = lambda: None,
    *,
    environment: Mapping[str, str] | None = None,
    least_s: float = 4.0,
) -> None:
    """Runs all parts within the budget.

    A part may take its own share and what the parts before it have left over. What it is not given, it is skipped with
    a line.

    Args:
      stages: in order of worth.
      budget_s: seconds for all of them together.
      directory: of the rows and the log.
      command: the command line of a part that has some seconds.
      after_part: called after each part; writes the page.
      environment: of the processes; this one's if None.
      least_s: seconds below which a part is not worth starting.
    """
    directory.mkdir(parents=True, exist_ok=True)
    scale = budget_s / sum(part.seconds for stage in stages for part in stage.parts)
    begun, due = time.monotonic(), 0.0
    for stage in stages:
        for part in stage.parts:
            due += part.seconds * scale
            limit = begun + due - time.monotonic()
            if limit < least_s:
                status, seconds, message = "skipped", 0.0, "no time left"
            else:
                line = command(stage, part, limit)
                status, seconds, message = _run_part(part, line, limit, directory, environment)
            append_row(
                directory / ROWS,
                {
                    "stage": stage.name,
                    "part": part.name,
                    "status": status,
                    "seconds": round(seconds, 1),
                    "limit_s": round(limit, 1),
                    "message": message,
                },
            )
            print(f"{part.name}: {status}, {seconds:.0f} s of {limit:.0f}", flush=True)
            after_part()


def _run_part(
    part: Part,
    line: Sequence[str],
    limit: float,
    directory: Path,
    environment: Mapping[str, str] | None,
) -> tuple[str, float, str]:
    """(status, seconds, message) of one process; its output goes to the log."""
    log = directory / LOG
    with log.open("ab") as file:
        file.write(f"\n===== {part.name}, {datetime.datetime.now():%H:%M:%S}\n".encode())
        file.flush()
        start, begun = file.tell(), time.monotonic()
        # A session of its own: what the process has started is stopped with it.
        process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _stop(process)
    seconds = time.monotonic() - begun
    if code == 0:
        return "done", seconds, ""
    if code is None:
        return "stopped", seconds, f"reached its limit of {limit:.0f} s; its rows up to then stand"
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    return "failed", seconds, "\n".join([f"exit status {code}", *lines[-_TAIL:]])


def _stop(process: subprocess.Popen) -> None:
    """Ends a process and all that it has started."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            return
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            continue
