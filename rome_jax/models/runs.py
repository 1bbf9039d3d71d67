"""Folders of runs: all that decides their numbers is written down once, and a run of other settings is refused.

    run.json    {"settings": ..., "versions": ..., and what else is recorded}

What is in the folder is not computed again; how the files of a case are called is the business of each program.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from rome_jax.files.artifacts import write_whole
from rome_jax.models.registry import LanguageModel
from rome_jax.version import __version__

# Things that are what their checksums say, whatever their names.
_NAMED = {"fingerprint": "model", "facts_sha256": "facts", "dataset_sha256": "dataset"}


def open_run(
    directory: str | Path,
    settings: Mapping[str, Any],
    *,
    recorded: Mapping[str, Any] | None = None,
    packages: Iterable[str] = (),
    cases: str = "case_*.json",
    remedy: str = "give another output_dir",
) -> Path:
    """Makes the folder of a run, or resumes in one of the same settings.

    Args:
      directory: new, or that of a run.
      settings: all that decides the results; JSON values.
      recorded: what else is written down of a new run.
      packages: whose versions are written down too.
      cases: how files are called that must not be there without a run.json.
      remedy: what to do about a folder that is refused.

    Returns:
      `directory`.

    Raises:
      ValueError: a folder of other settings, which are named, or with cases that nothing is known about.

    Example:
      >>> open_run("results/ROME/run_000", {"seed": 0})  # doctest: +SKIP
      PosixPath('results/ROME/run_000')
    """
    directory = Path(directory)
    path = directory / "run.json"
    settings = json.loads(json.dumps(settings))  # as a file gives them back: tuples are lists
    if path.exists():
        _refuse_others(path, settings, remedy)
    elif any(directory.glob(cases)):
        raise ValueError(
            f"{directory} holds cases, but no run.json that says how they came about: {remedy}."
        )
    else:
        write_json(path, {"settings": settings, **(recorded or {}), "versions": versions(packages)})
    return directory


def _refuse_others(path: Path, here: Mapping[str, Any], remedy: str) -> None:
    try:
        there = dict(read_run(path.parent)["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): {remedy}, or remove this one.") from error
    differing = []
    for key in dict.fromkeys([*here, *there]):
        if key in _NAMED.values() or there.get(key) == here.get(key):
            continue
        shown = [f"{of.get(key)}" for of in (there, here)]
        if key in _NAMED:
            shown = [f"{of.get(_NAMED[key])} ({str(of.get(key))[:12]})" for of in (there, here)]
        differing.append(f"{_NAMED.get(key, key)} is {shown[0]} there and {shown[1]} here")
    if differing:
        raise ValueError(
            f"{path.parent} holds a run of other settings ({'; '.join(differing)}): {remedy}."
        )


def read_run(directory: Path) -> dict[str, Any]:
    """What the run.json of a folder says."""
    return json.loads((directory / "run.json").read_text(encoding="utf-8"))


def next_run(directory: str | Path) -> Path:
    """Where the next run of a method goes: run_000, run_001, and so on.

    Example:
      >>> next_run("results/ROME")  # doctest: +SKIP
      PosixPath('results/ROME/run_000')
    """
    numbers = [
        int(match[1])
        for path in Path(directory).glob("run_*")
        if (match := re.fullmatch(r"run_(\d+)", path.name))
    ]
    return Path(directory) / f"run_{max(numbers, default=-1) + 1:03d}"


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Of what computes, and on which device; of further packages that decide results."""
    device = jax.devices()[0].device_kind
    further = {package: importlib.metadata.version(package) for package in packages}
    return {"rome_jax": __version__, "jax": jax.__version__, "device": device, **further}


def describe_model(model: LanguageModel) -> dict[str, str]:
    """What a run's settings say of its model."""
    return {
        "model": short_name(model),
        "fingerprint": model.fingerprint(),
        "precision": model.config.precision.name,
    }


def short_name(model: LanguageModel) -> str:
    """Its name, without the path to a local directory."""
    local = model.source.startswith("directory")
    return Path(model.name).resolve().name if local else model.name


def write_json(path: Path, content: Any) -> None:
    """Writes a file whole or not at all."""
    write_whole(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
