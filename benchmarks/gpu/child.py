"""The process of one part: `python -m benchmarks.gpu.child JSON` runs the module that the JSON names.

A module has `run(context)`. Those whose names end in _torch import no jax, the others no torch.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.runner import ROWS, Part, Stage, append_row, read_rows


@dataclasses.dataclass(frozen=True)
class Context:
    """What a part is told, and where it writes.

    Attributes:
      module: of this package, which runs the part.
      stage, part: their names.
      directory: of the rows.
      scratch: of files that parts hand on to each other.
      seconds: until the part is stopped, from `begun` on.
      size: as `--sizes` names it; empty if the part is about none.
      dtype: of the weights.
      tiny: whether shapes are tiny ones.
      xla_flags: added to XLA_FLAGS before jax is imported.
      begun: of the process, by its monotonic clock.
    """

    module: str
    stage: str
    part: str
    directory: str
    scratch: str
    seconds: float
    size: str = ""
    dtype: str = "float32"
    tiny: bool = False
    xla_flags: str = ""
    begun: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def seconds_left(self) -> float:
        """Until the part is stopped."""
        return self.seconds - (time.monotonic() - self.begun)

    def emit(self, table: str, row: Mapping[str, Any]) -> None:
        """Adds a row, by columns, to a table of the page."""
        append_row(
            Path(self.directory) / ROWS, {"stage": self.stage, "table": table, "row": dict(row)}
        )

    def log(self, message: str) -> None:
        """Prints a line with the seconds since the process began; the check keeps it in its log."""
        print(f"[{time.monotonic() - self.begun:6.1f} s] {message}", flush=True)

    def rows(self, table: str) -> list[dict[str, Any]]:
        """The rows of a table so far, those of other parts too."""
        rows = read_rows(Path(self.directory) / ROWS)
        return [row["row"] for row in rows if row.get("table") == table]

    def handed(self, name: str) -> Path:
        """A file that one part writes and another reads."""
        return Path(self.scratch) / name


def command(
    stage: Stage, part: Part, seconds: float, directory: Path, scratch: Path, tiny: bool
) -> Sequence[str]:
    """The command line of a part."""
    told = {
        "stage": stage.name,
        "part": part.name,
        "directory": str(directory),
        "scratch": str(scratch),
        "seconds": seconds,
        "tiny": tiny,
        **part.options,
    }
    return [sys.executable, "-m", "benchmarks.gpu.child", json.dumps(told)]


def main() -> None:
    """Runs the part that the command line names."""
    context = Context(**json.loads(sys.argv[1]))
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {context.xla_flags}".strip()
    module = importlib.import_module(f"benchmarks.gpu.{context.module}")
    context.log("imported")
    module.run(context)
    context.log("done")


if __name__ == "__main__":
    main()
