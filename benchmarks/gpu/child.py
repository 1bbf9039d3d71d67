"""Process of one part of a check: `python -m benchmarks.gpu.child JSON` runs the module that the JSON names.

Each module defines `run(context)`. Modules whose names end in `_torch` do not import jax; the others do not import
torch.
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
    """Settings of a part and access to its output.

    Attributes:
      module: Module of this package that runs the part.
      stage, part: Names of the stage and the part.
      directory: Directory of the rows.
      scratch: Directory of the files that parts exchange.
      seconds: Time limit of the part, in seconds since `started`.
      size: Model, as `--sizes` names it. Empty if the part does not depend on a model.
      dtype: Dtype of the weights.
      tiny: Whether to use tiny shapes.
      xla_flags: Flags added to XLA_FLAGS before jax is imported.
      started: Time at which the process started, on its monotonic clock.
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
    started: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def seconds_left(self) -> float:
        """Seconds until the part is stopped."""
        return self.seconds - (time.monotonic() - self.started)

    def emit(self, table: str, row: Mapping[str, Any]) -> None:
        """Adds a row to a table of the page.

        Args:
          table: Name of the table.
          row: Cells by column.
        """
        append_row(
            Path(self.directory) / ROWS, {"stage": self.stage, "table": table, "row": dict(row)}
        )

    def log(self, message: str) -> None:
        """Prints a line with the seconds since the process started, which goes to the log of the check."""
        print(f"[{time.monotonic() - self.started:6.1f} s] {message}", flush=True)

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Returns the rows of a table so far, including those of other parts."""
        rows = read_rows(Path(self.directory) / ROWS)
        return [row["row"] for row in rows if row.get("table") == table]

    def shared_file(self, name: str) -> Path:
        """Returns the path of a file that one part writes and another part reads."""
        return Path(self.scratch) / name


def command(
    stage: Stage, part: Part, seconds: float, directory: Path, scratch: Path, tiny: bool
) -> Sequence[str]:
    """Builds the command line of a part.

    Args:
      stage: Stage of the part.
      part: Part to run; its options become fields of `Context`.
      seconds: Time limit of the part.
      directory: Directory of the rows.
      scratch: Directory of the files that parts exchange.
      tiny: Whether to use tiny shapes.
    """
    settings = {
        "stage": stage.name,
        "part": part.name,
        "directory": str(directory),
        "scratch": str(scratch),
        "seconds": seconds,
        "tiny": tiny,
        **part.options,
    }
    return [sys.executable, "-m", "benchmarks.gpu.child", json.dumps(settings)]


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
