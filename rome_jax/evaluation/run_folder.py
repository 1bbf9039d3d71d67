"""The folder of a run of `eval.evaluate`: a new one, or that of a run with the same settings.

    RESULTS_DIR/ALG_NAME/run_ID/params.json      hyperparameters
    RESULTS_DIR/ALG_NAME/run_ID/run.json         settings, versions, wall time and compile time
    RESULTS_DIR/ALG_NAME/run_ID/case_ID.json     one case, in the original's layout
    RESULTS_DIR/pre/DATASET_MODEL_KEY/           scores of the unedited model, shared by all methods

Several processes may share a run. Process 0 begins it and writes run.json and params.json.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from rome_jax.evaluation.record_types import Record
from rome_jax.evaluation.run_settings import Settings
from rome_jax.files import folders
from rome_jax.files.groups import ALONE, ProcessGroup
from rome_jax.files.locks import FolderInUseError, in_use
from rome_jax.files.places import check_name
from rome_jax.models import runs

_PACKAGES = ("nltk", "scikit-learn")  # their versions affect how texts are scored
_NEW_RUN = "leave out --continue_from_run to begin another run"


def find_run(
    results_dir: str | Path,
    algorithm: str,
    continue_from: str | None = None,
    known: Mapping[str, Any] | None = None,
) -> Path:
    """Returns the folder of a method's next run, or of the run to resume.

    Args:
      results_dir: Holds one folder per method.
      algorithm: Name of the method.
      continue_from: Name of the run to resume; None means the next one.
      known: Settings that are known before the model is loaded, with which the run must agree.

    Raises:
      ValueError: If the run to resume does not exist, or has other settings.

    Example:
      >>> find_run("results", "ROME").as_posix()
      'results/ROME/run_000'
    """
    directory = Path(results_dir) / algorithm
    if continue_from is None:
        return next(runs.next_runs(directory))
    found = directory / check_name(continue_from, "--continue_from_run")
    if not found.is_dir():
        there = ", ".join(sorted(path.name for path in directory.glob("run_*"))) or "no runs"
        raise ValueError(f"there is no run {found} to continue: {directory} has {there}.")
    if known and (found / "run.json").exists():
        runs.check_settings(found, known, _NEW_RUN)
    return found


class _TakenError(Exception):
    """A folder for a new run holds a run."""


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The folders of a run.

    Attributes:
      directory: Folder of the run.
      pre: Folder of the unedited model's scores.
      created: Folders that this run created, innermost first.
    """

    directory: Path
    pre: Path
    created: tuple[Path, ...] = dataclasses.field(default=(), repr=False, compare=False)

    @classmethod
    def open(
        cls,
        results_dir: str | Path,
        settings: Settings,
        continue_from: str | None = None,
        *,
        flags: Mapping[str, Any] | None = None,
        group: ProcessGroup = ALONE,
    ) -> Self:
        """Begins a run, or resumes one with the same settings.

        Args:
          results_dir: Holds one folder per method.
          settings: Everything that affects the numbers.
          continue_from: Name of the run to resume; None begins a new one.
          flags: Further values to record in the run.json of a new run.
          group: The processes that share the run, which process 0 begins.

        Raises:
          ValueError: If the run to resume does not exist or has other settings; the message names them.
        """
        if group.index == 0:
            run = cls._open(Path(results_dir), settings, continue_from, flags)
            group.agree("run", lambda: run.directory.name)
            return run
        name = group.agree("run", str)  # of process 0
        directory = Path(results_dir) / settings.edit["alg_name"] / name
        runs.check_run(directory, {**settings.edit, **settings.scores}, "start all processes alike")
        return cls(directory, cls._pre_folder(Path(results_dir) / "pre", settings))

    @classmethod
    def _open(
        cls,
        results: Path,
        settings: Settings,
        continue_from: str | None,
        flags: Mapping[str, Any] | None,
    ) -> Self:
        """Does the work of `open` in the process that begins the run."""
        algorithm = settings.edit["alg_name"]
        options: dict[str, Any] = {"settings": settings, "remedy": _NEW_RUN, "flags": flags}
        if continue_from is not None:
            directory = find_run(results, algorithm, continue_from)
            return cls.at(directory, results / "pre", **options)
        for directory in runs.next_runs(results / algorithm):
            # Another process may begin a run at the same moment, in the same folder.
            with contextlib.suppress(FolderInUseError, _TakenError):
                return cls._begin(directory, results / "pre", **options, new=True)
        raise AssertionError("next_runs never ends")

    @classmethod
    def at(
        cls,
        directory: str | Path,
        pre_dir: str | Path,
        settings: Settings,
        remedy: str,
        *,
        flags: Mapping[str, Any] | None = None,
    ) -> Self:
        """Begins a run in a given folder, or resumes the run in it.

        Args:
          directory: Folder of the run.
          pre_dir: Holds one folder of the unedited model's scores for each model and data set.
          settings: Everything that affects the numbers.
          remedy: What the user can do about a run with other settings, for the error message.
          flags: Further values to record in the run.json of a new run.

        Raises:
          ValueError: If the folder holds a run with other settings; the message names them.
        """
        return cls._begin(Path(directory), Path(pre_dir), settings, remedy, flags)

    @classmethod
    def _begin(
        cls,
        directory: Path,
        pre_dir: Path,
        settings: Settings,
        remedy: str,
        flags: Mapping[str, Any] | None,
        new: bool = False,
    ) -> Self:
        """Does the work of `at`; `new` refuses the folder of a run.

        Raises:
          _TakenError: If `new` is set, and there is a run.
          FolderInUseError: If another process begins or resumes the run.
        """
        pre = cls._pre_folder(pre_dir, settings)
        run = cls(directory, pre, tuple(folders.create(directory)))
        with in_use(directory, "the run"):
            if new and (directory / "run.json").exists():
                raise _TakenError
            try:
                created = [*run.created, *folders.create(pre)]
                created.sort(key=lambda path: len(path.parts), reverse=True)
                run = cls(directory, pre, tuple(created))
                run._write_settings(settings, remedy, flags)
            except BaseException:
                run._discard()
                raise
        return run

    @staticmethod
    def _pre_folder(pre_dir: Path, settings: Settings) -> Path:
        """Returns the folder of the unedited model's scores, in the folder of all of these."""
        content = json.dumps(settings.scores, sort_keys=True).encode()
        model = settings.scores["model"].replace("/", "_")
        key = hashlib.sha256(content).hexdigest()[:12]
        return pre_dir / f"{settings.scores['ds_name']}_{model}_{key}"

    def _write_settings(
        self, settings: Settings, remedy: str, flags: Mapping[str, Any] | None
    ) -> None:
        """Writes the settings of a new run, or compares them with those of the run in the folder."""
        directory = self.directory
        times = {"wall_time": 0.0, "compile_time": 0.0}
        runs.open_run(
            directory,
            {**settings.edit, **settings.scores},
            recorded=settings.recorded() | {"flags": dict(flags or {})} | times,
            packages=_PACKAGES,
            remedy=remedy,
        )
        runs.write_json(directory / "params.json", settings.edit["hyperparameters"])
        runs.open_run(self.pre, settings.scores, packages=_PACKAGES, remedy="remove it")

    def discard(self) -> None:
        """Removes the folders that this run created, unless they hold results or another process uses the run."""
        with contextlib.suppress(OSError), in_use(self.directory):
            self._discard()

    def _discard(self) -> None:
        """Removes the folders that this run created, unless they hold results."""
        settings = {"run.json", "params.json"}
        for folder in self.created:
            if folder.is_dir() and {path.name for path in folder.iterdir()} <= settings:
                for name in settings:
                    (folder / name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # another process has written to it
                    folder.rmdir()

    def path(self, record: Record) -> Path:
        """Returns the path of a case file."""
        return self.directory / f"case_{record.case_id}.json"
