"""Runs the parts of a check one after another, each in its own process, within one time budget.

    stages ─► parts ─► process with a limit ─► rows on disk ─► page

A part that fails or hangs does not stop the others. Measurements are on disk as soon as they are known: each process
appends its own rows, and the page is rewritten after each part.
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
_TAIL = 30  # last lines of a failed part's output that are kept in its row
_GRACE = 2.0  # seconds between SIGTERM and SIGKILL


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a check, which runs in one process.

    Attributes:
      name: Unique name, such as "edits gpt2-xl float32".
      seconds: Share of the time budget, relative to the shares of the other parts.
      options: Settings of the process.
    """

    name: str
    seconds: float
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A group of parts that answer one question.

    Attributes:
      name: Heading of the page's section.
      about: Paragraph below the heading.
      parts: Parts in the order in which they run.
    """

    name: str
    about: str
    parts: Sequence[Part]


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Appends a row to a file and waits until it is on disk."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a file, without a last line that is incomplete. A missing file has no rows."""
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
    """Runs all parts within the time budget.

    A part may use its own share and the time that earlier parts have left. A part without enough time is skipped, and
    its row says so.

    Args:
      stages: Stages in order of importance.
      budget_s: Time budget of all stages, in seconds.
      directory: Directory of the rows and the log. It is created if it does not exist.
      command: Function of a stage, a part, and its time limit in seconds that returns the command line of the part.
      after_part: Function called after each part, which writes the page.
      environment: Environment variables of the processes. By default those of this process.
      least_s: Seconds that a part needs at least; with less time it is not started.
    """
    directory.mkdir(parents=True, exist_ok=True)
    scale = budget_s / sum(part.seconds for stage in stages for part in stage.parts)
    started, due = time.monotonic(), 0.0
    for stage in stages:
        for part in stage.parts:
            due += part.seconds * scale
            limit = started + due - time.monotonic()
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
    """Runs one process with its output in the log, and returns (status, seconds, message)."""
    log = directory / LOG
    with log.open("ab") as file:
        file.write(f"\n===== {part.name}, {datetime.datetime.now():%H:%M:%S}\n".encode())
        file.flush()
        start, started = file.tell(), time.monotonic()
        # A new session, so that the child processes of the part can be stopped with it.
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
    seconds = time.monotonic() - started
    if code == 0:
        return "done", seconds, ""
    if code is None:
        return (
            "stopped",
            seconds,
            f"reached its limit of {limit:.0f} s; the rows it had finished are kept",
        )
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    return "failed", seconds, "\n".join([f"exit status {code}", *lines[-_TAIL:]])


def _stop(process: subprocess.Popen) -> None:
    """Stops a process and all of its child processes."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            return
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            continue
