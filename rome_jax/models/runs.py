"""Folders of runs: the settings that decide a run's results are recorded once, and other settings are refused.

    run.json    {"settings": ..., "versions": ..., and what else is recorded}

Results that are already in the folder are not computed again. Each program decides how it names the files of its cases.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from rome_jax.data.tokenization import describe_tokenization
from rome_jax.files.artifacts import is_temporary, remove_leftovers, write_whole
from rome_jax.files.checked import check
from rome_jax.files.checksums import with_checksum
from rome_jax.files.json_files import read_object
from rome_jax.models.provenance import dtype_of
from rome_jax.models.registry import LanguageModel
from rome_jax.version import __version__

_SHOWN = 120  # characters of a setting in a message
_MOST = 4  # settings in a message
# Settings that are compared by checksum, with the setting that holds their name.
_NAMED = {"fingerprint": "model", "facts_sha256": "facts", "dataset_sha256": "dataset"}
# Settings that a checksum covers. Runs of earlier versions lack the dtype.
_COVERED = (*_NAMED.values(), "dtype")


def open_run(
    directory: str | Path,
    settings: Mapping[str, Any],
    *,
    recorded: Mapping[str, Any] | None = None,
    packages: Iterable[str] = (),
    cases: str = "case_*.json",
    remedy: str = "give another output_dir",
) -> Path:
    """Creates the folder of a run, or resumes a run with the same settings.

    Temporary files of a killed process are removed from the folder.

    Args:
      directory: A new folder, or the folder of a run.
      settings: All settings that decide the results, as JSON values.
      recorded: Further entries of run.json in a new folder.
      packages: Names of packages whose versions are recorded too.
      cases: Pattern of files that a folder without a run.json must not contain.
      remedy: The remedy that the message names if a folder is refused.

    Returns:
      `directory` as a path.

    Raises:
      ValueError: If the folder holds a run with other settings, which the message names, or cases without a run.json.

    Example:
      >>> open_run("results/ROME/run_000", {"seed": 0})
      PosixPath('results/ROME/run_000')
      >>> open_run("results/ROME/run_000", {"seed": 1})
      Traceback (most recent call last):
      ...
      ValueError: results/ROME/run_000 holds a run of other settings (seed is 0 there and 1 here): ...
    """
    directory = Path(directory)
    path = directory / "run.json"
    remove_leftovers(directory)
    if path.exists():
        check_run(directory, settings, remedy)
    elif any(directory.glob(cases)):
        raise ValueError(
            f"{directory} holds cases, but no run.json that says how they were computed: {remedy}."
        )
    else:
        content = {"settings": dict(settings), **(recorded or {}), "versions": versions(packages)}
        write_state(path, content)
    return directory


def check_settings(directory: Path, known: Mapping[str, Any], remedy: str) -> None:
    """Checks that a run agrees with some settings, for instance those known before a model is loaded.

    Args:
      directory: Folder of the run.
      known: Settings that decide the results, or some of them.
      remedy: As in `open_run`.

    Raises:
      ValueError: If the run has other settings, which the message names, or its run.json is damaged.
    """
    here = json.loads(json.dumps(known))
    there = _recorded(directory, remedy)
    _refuse(directory, differences({key: there.get(key) for key in here}, here), remedy)


def check_run(directory: Path, settings: Mapping[str, Any], remedy: str) -> None:
    """Checks that a run has exactly the given settings.

    Args:
      directory: Folder of the run.
      settings, remedy: As in `open_run`.

    Raises:
      ValueError: If the run has other settings, which the message names, or its run.json is damaged.
    """
    # As they are read back from a file: tuples become lists.
    here = json.loads(json.dumps(settings))
    _refuse(directory, differences(_recorded(directory, remedy), here), remedy)


def _recorded(directory: Path, remedy: str) -> dict[str, Any]:
    """Reads the settings of a run."""
    try:
        return check(dict[str, Any], read_run(directory).get("settings"), "settings")
    except ValueError as error:
        raise ValueError(
            f"{directory / 'run.json'} is damaged ({str(error).rstrip('.')}): {remedy}, or remove this one."
        ) from error


def _shortened(value: Any) -> str:
    """Returns a setting as text of a bounded length."""
    text = f"{value}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _refuse(directory: Path, differing: Sequence[str], remedy: str) -> None:
    """Raises a ValueError if there are differences."""
    if differing:
        more = f"; and {len(differing) - _MOST} more" if len(differing) > _MOST else ""
        raise ValueError(
            f"{directory} holds a run of other settings ({'; '.join(differing[:_MOST])}{more}): {remedy}."
        )


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Lists the settings that differ, each as a phrase.

    Models, facts, and data sets are compared by their checksums; the phrase also names them.

    Args:
      there: Settings that were written down earlier.
      here: Settings of the present run.

    Returns:
      One phrase per setting, in the order of `here`.

    Example:
      >>> differences({"seed": 0, "layer": 5}, {"seed": 1, "layer": 5})
      ['seed is 0 there and 1 here']
    """
    differing = []
    for key in dict.fromkeys([*here, *there]):
        if key in _COVERED or there.get(key) == here.get(key):
            continue
        shown = [_shortened(of.get(key)) for of in (there, here)]
        if key in _NAMED:
            shown = [f"{of.get(_NAMED[key])} ({str(of.get(key))[:12]})" for of in (there, here)]
        differing.append(f"{_NAMED.get(key, key)} is {shown[0]} there and {shown[1]} here")
    return differing


def read_run(directory: Path) -> dict[str, Any]:
    """Reads the run.json of a folder.

    Args:
      directory: Folder of a run.

    Raises:
      ValueError: If the file is damaged.
      OSError: If there is none, or it cannot be read.
    """
    return read_object(directory / "run.json", remedy="remove the folder, or give another one")


def next_runs(directory: str | Path) -> Iterator[Path]:
    """Yields folders for the next runs of a method: run_000, run_001, and so on, from the last run on.

    A folder that holds nothing, because its run was killed at the start, is used again.

    Args:
      directory: Folder of the method.

    Example:
      >>> next(next_runs("results/ROME"))
      PosixPath('results/ROME/run_000')
    """
    numbers = [
        int(match[1])
        for path in Path(directory).glob("run_*")
        if (match := re.fullmatch(r"run_(\d+)", path.name)) and _holds_something(path)
    ]
    for number in itertools.count(max(numbers, default=-1) + 1):
        yield Path(directory) / f"run_{number:03d}"


def _holds_something(path: Path) -> bool:
    """Returns whether there is a file, or a folder with more than temporary files."""
    return not path.is_dir() or any(not is_temporary(inner.name) for inner in path.iterdir())


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Returns the versions of rome_jax, jax and further packages, and the kind of the device.

    Packages that are not installed are left out: a run without generated texts does not need those of the extra `eval`.

    Example:
      >>> sorted(versions(["numpy", "a-package-that-is-missing"]))
      ['device', 'jax', 'numpy', 'rome_jax']
    """
    further = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            further[package] = importlib.metadata.version(package)
    device = jax.local_devices()[0].device_kind
    return {"rome_jax": __version__, "jax": jax.__version__, "device": device, **further}


def describe_model(model: LanguageModel) -> dict[str, Any]:
    """Returns the entries about the model in a run's settings."""
    return {
        "model": short_name(model),
        "fingerprint": model.fingerprint(),
        "dtype": dtype_of(model),
        "precision": model.config.precision.name,
        **describe_tokenization(model.tokenizer),
    }


def short_name(model: LanguageModel) -> str:
    """Returns a model's name; for a local directory or file, without the path to it."""
    local = model.source.startswith(("directory ", "file "))
    return Path(model.name).resolve().name if local else model.name


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file so that it appears complete or not at all."""
    write_whole(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def write_state(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file that later runs read back, with a checksum; see `files.checksums.has_damage`."""
    write_json(path, with_checksum(content))
