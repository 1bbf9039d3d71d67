"""A check that `eval.edit` prints the same on this device as on the CPU. This module imports neither jax nor torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from benchmarks.gpu.child import Context

_NUMBER = re.compile(r"\d+(\.\d+)?")


def run(context: Context) -> None:
    """Writes whether both outputs are equal, with and without regard to numbers.

    Raises:
      SystemExit: If the outputs differ in more than numbers. The message has the first lines that differ.
    """
    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(edit, (dict(os.environ), os.environ | {"JAX_PLATFORMS": "cpu"})))
    lines = [_NUMBER.sub("#", output).splitlines() for output in outputs]
    different = [pair for pair in zip(*lines, strict=False) if pair[0] != pair[1]]
    same = lines[0] == lines[1]
    context.emit(
        "eval.edit, here and on the CPU",
        {
            "lines": len(lines[0]),
            "the same texts": same,
            "the same numbers too": outputs[0] == outputs[1],
            "next-to-last line": outputs[0].strip().splitlines()[-2],
        },
    )
    if not same:
        raise SystemExit(
            f"eval.edit differs here and on the CPU: {different[:3] or 'number of lines'}"
        )


def edit(environment: Mapping[str, str]) -> str:
    """Runs `eval.edit` without flags and returns its output.

    Args:
      environment: Environment variables of the process.

    Raises:
      SystemExit: If the program fails.
    """
    line = [sys.executable, "-m", "eval.edit"]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"eval.edit ended with status {done.returncode}:\n{done.stderr}")
    return done.stdout
