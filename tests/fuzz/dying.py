"""Runs a program of `eval` and sends it a signal just before it moves a file or folder into place.

    python -m tests.fuzz.dying COUNT MOVE SIGNAL NAME ARGUMENTS...

COUNT is a file that the number of moves is written to at the end. The signal comes before the move number MOVE, counted
from 1; 0 means never.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path


def main() -> None:
    """Runs the program that the arguments name."""
    count, move, number, name = sys.argv[1:5]
    moves = 0

    def dying(function):
        def replace(source, target, **options):
            nonlocal moves
            moves += "cache" not in Path(target).parts
            if moves == int(move) and "cache" not in Path(target).parts:
                signal.raise_signal(int(number))
            return function(source, target, **options)

        return replace

    os.replace, os.rename = dying(os.replace), dying(os.rename)
    sys.argv = [f"eval.{name}", *sys.argv[5:]]
    try:
        runpy.run_module(f"eval.{name}", run_name="__main__", alter_sys=True)
    finally:
        Path(count).write_text(str(moves))


if __name__ == "__main__":
    main()
