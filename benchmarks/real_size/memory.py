"""Runs a program in a process of its own and samples the memory of that process from outside."""

from __future__ import annotations

import dataclasses
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

_INTERVAL = 0.005  # seconds between samples
_TAIL = 20  # last lines of a failed program's output that its error shows


@dataclasses.dataclass(frozen=True)
class Ran:
    """The outcome of a program.

    Attributes:
      output: What it printed to stdout.
      peak: Its peak anonymous resident memory in bytes.
    """

    output: str
    peak: int


def anonymous_memory(process: int | str = "self") -> int:
    """Returns the anonymous resident memory of a process in bytes.

    Pages of mapped files are not counted, because the kernel can reclaim them.

    Args:
      process: Process ID.

    Raises:
      OSError: If the process has ended, or on systems other than Linux.

    Example:
      >>> anonymous_memory() > 0
      True
    """
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{process}/status has no RssAnon; run this benchmark on Linux.")


def run_sampled(command: Sequence[str]) -> Ran:
    """Runs a program and samples its memory until it ends.

    The samples are taken in this process, so they also see what happens while the program holds Python's lock.

    Args:
      command: Command line of the program.

    Raises:
      RuntimeError: If the program fails; the message has its status, its peak, and the end of its output.
    """
    peak = 0
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors)
        try:
            while process.poll() is None:
                try:
                    peak = max(peak, anonymous_memory(process.pid))
                except OSError:  # it has just ended, and its status has not been collected
                    continue
                time.sleep(_INTERVAL)
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            tail = "\n".join(errors.read().splitlines()[-_TAIL:])
            raise RuntimeError(
                f"the process ended with status {process.returncode} after a peak of {peak / 2**30:.2f} GiB:\n{tail}"
            )
        return Ran(output.read(), peak)
