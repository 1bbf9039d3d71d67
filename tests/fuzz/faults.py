"""Small runs of the programs, in processes of their own, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rome_jax.files.checksums import METADATA_KEY
from tests.fuzz import commands
from tests.fuzz.cases import litter
from tests.programs import ROOT

SECONDS = 300  # the longest that a command may take
# Runs of the programs that resume, each writing to the folder "out".
RUNS = {
    "layer_stats": "--layers=0 --dataset=texts.txt --sample_by=line --batch_tokens=64 --sequence_length=64 "
    "--checkpoint_minutes=0 --output_dir=out",
    "evaluate": "--alg_name=MEND --num_cases=6 --batch_size=3 --nogeneration --results_dir=out",
    "sweep": "--alg_name=FT-L --sweep=lr=1e-4,1e-3 --num_cases=2 --batch_size=1 --results_dir=out",
    "compare": "--algs=FT-L,MEND --num_cases=3 --batch_size=2 --nogeneration --results_dir=out",
    "causal_trace": "--num_cases=4 --kinds=hidden --samples=2 --output_dir=out",
    "train_hypernetwork": "--max_steps=9 --validate_every=3 --batch_size=16 --output_dir=out",
    "mass_edits": "--num_edits=2 --output_dir=out",
    "sequence": "--alg_name=AlphaEdit --num_edits=4 --every=2 --config.v_num_grad_steps=3 --output_dir=out",
    "sequential_edits": "--num_edits=4 --every=2 --output_dir=out",
}
# Programs that write, but compute everything again.
OTHERS = {
    "save": ("edit", "--alg_name=FT-L --save=out/edit.safetensors"),
    "export_hf": ("edit", "--alg_name=FT-L --export_hf=out/model"),
    "export_orbax": ("edit", "--alg_name=FT-L --export_orbax=out/model"),
}
NEEDS = dict.fromkeys(
    "sweep causal_trace train_hypernetwork mass_edits sequence sequential_edits".split(),
    "matplotlib",
)
_TIMES = (
    "time",
    "wall_time",
    "compile_time",
    "seconds",
    "seconds_per_edit",
    "created",
    "versions",
    "flags",
    METADATA_KEY,
)


def write_texts(folder: Path) -> None:
    """Writes the corpus that a run reads."""
    lines = (f"Town {i} lies in the north.\n" for i in range(400))
    (folder / "texts.txt").write_text("".join(lines))


def environment(cache: Path) -> dict[str, str]:
    """Returns the environment of a process that keeps compiled programs in a folder."""
    caching = ("JAX_COMPILATION", "JAX_PERSISTENT")
    found = {name: value for name, value in os.environ.items() if not name.startswith(caching)}
    found |= {"ROME_JAX_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return found


def python(*command: str) -> list[str]:
    """Returns the command line that runs a module."""
    return [sys.executable, "-m", *command]


def start(
    folder: Path, command: Sequence[str], cache: Path, **options: Any
) -> subprocess.Popen[str]:
    """Starts `python -m` with a command in a folder."""
    return subprocess.Popen(
        python(*command),
        cwd=folder,
        text=True,
        stderr=subprocess.PIPE,
        **{
            "stdout": subprocess.PIPE,
            "env": environment(cache),
            "preexec_fn": _heed_signals,
        }
        | options,
    )


def _heed_signals() -> None:
    """Undoes what shells do to background jobs, which ignore Ctrl-C, and nohup, under which they ignore SIGHUP."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Waits for a process, which must not show a traceback, and returns its status and what it printed."""
    out, errors = process.communicate(timeout=SECONDS)
    assert "Traceback" not in errors and commands.BUG not in errors, errors
    return process.returncode, out, errors


def sentence(errors: str) -> str:
    """Returns the one sentence with which a process ended."""
    (message,) = [line for line in errors.splitlines() if line.startswith("Error: ")]
    return message


def resumed(folder: Path, name: str, arguments: Sequence[str]) -> list[str]:
    """Returns the command that resumes a run; only `evaluate` begins another one unless it is told otherwise."""
    more = []
    if name == "evaluate" and list(folder.glob("out/*/run_000/run.json")):
        more = ["--continue_from_run=run_000"]
    return [f"eval.{name}", *arguments, *more]


def results(folder: Path) -> dict[str, Any]:
    """Returns everything that a run wrote and that does not depend on the time, by path."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "out").rglob("*")):
        name = str(path.relative_to(folder))
        if "params" in path.parts[:-1]:  # of Orbax, with random names
            continue
        if path.is_dir():
            found[name] = "folder"
        elif path.suffix == ".json":
            found[name] = _without_times(json.loads(path.read_text()))
        elif path.suffix == ".npz":
            with np.load(path) as file:
                found[name] = {key: file[key].tolist() for key in file.files if key != "provenance"}
        elif path.suffix == ".safetensors":
            content = path.read_bytes()
            length = int.from_bytes(content[:8], "little")
            found[name] = content[8 + length :]
        else:
            found[name] = "file"
    return found


def _without_times(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_times(value) for key, value in content.items() if key not in _TIMES}
    return [_without_times(value) for value in content] if isinstance(content, list) else content


def folders(folder: Path) -> set[Path]:
    """Returns the folder of a run's results, if it exists, and the folders in it."""
    return {path for path in (folder / "out", *(folder / "out").rglob("*")) if path.is_dir()}


def left_behind(folder: Path, existing: Collection[Path] = ()) -> list[str]:
    """Returns the temporary files and folders that are still there, and new folders that hold nothing.

    Args:
      folder: The folder of a run.
      existing: Folders that existed before. A run that ends early empties them but does not remove them.
    """
    names = {str(path.relative_to(folder)): (0, 0) for path in (folder / "out").rglob("*")}
    empty = [path for path in folders(folder) - set(existing) if not any(path.iterdir())]
    return litter({}, names) + [f"{path} is empty" for path in sorted(empty)]
