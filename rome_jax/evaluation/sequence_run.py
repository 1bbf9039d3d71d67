"""Many edits in one model, batch after batch, with any method: what the newest and the earlier ones are worth.

    OUTPUT_DIR/run.json             settings, versions, templates, and where the second moments come from
    OUTPUT_DIR/edits_00100.json     the measurement of the model with 100 edits
    OUTPUT_DIR/state.safetensors    the changed weights and the editor's state after the last batch that was saved

All files are written whole or not at all. A stopped run resumes from the state and gives the same numbers, to the last
bit; existing measurements are kept. If one is missing from before the saved state, the edits begin again, and the state
is only replaced by a later one.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from rome_jax.edit import edit_warnings
from rome_jax.edit.delta import apply_delta
from rome_jax.edit.editor import EditorState, SequentialEditor
from rome_jax.edit.editor_files import (
    ChangedWeight,
    changed_weights,
    load_state,
    load_weights,
    read_about,
    save_state,
)
from rome_jax.edit.method import Editor
from rome_jax.edit.resources import Resources
from rome_jax.edit.result import NotFiniteError
from rome_jax.edit.sequential import make_editor
from rome_jax.evaluation import sequence_measurement, sequence_scores
from rome_jax.evaluation.datasets import FACTWORLD, Dataset, Record
from rome_jax.evaluation.run_settings import Settings
from rome_jax.evaluation.scoring import perplexity
from rome_jax.evaluation.sequence import describe_dataset, unedited_texts
from rome_jax.evaluation.sequence_measurement import check_requests, measure_points
from rome_jax.evaluation.sequence_reports import read_report, read_rows
from rome_jax.evaluation.timing import Stopwatch
from rome_jax.factworld.facts import World, make_world
from rome_jax.files.artifacts import remove_leftovers
from rome_jax.files.checked import Count, Seed, check
from rome_jax.files.locks import in_use
from rome_jax.files.progress import tqdm
from rome_jax.models import runs
from rome_jax.models.registry import LanguageModel

_SAVE_SECONDS = 60.0  # between two saved states, unless there is a measurement
_REMEDY = "give another --output_dir"


def check_folder(directory: Path, known: Mapping[str, Any]) -> None:
    """Refuses a folder that holds a run with other settings, as far as they are known before a model is loaded.

    Args:
      directory: The folder; it may not exist.
      known: Some of the settings in run.json.

    Raises:
      ValueError: If a setting differs, which the message names, or run.json is damaged.
    """
    if (directory / "run.json").exists():
        runs.check_settings(directory, known, _REMEDY)


@dataclasses.dataclass
class _Position:
    """A model somewhere in the sequence, with all that the next batch needs."""

    state: EditorState
    model: LanguageModel
    changed: frozenset[ChangedWeight] = frozenset()
    seconds: float = 0.0  # that the edits took, without compilation


@dataclasses.dataclass(frozen=True)
class SequenceRun:
    """A sequence of edits with its measurements, stored in a folder.

    Attributes:
      directory: The folder; see the top of this module.
      editor: The method, prepared for its model.
      records: The requests, in their order.
      world: The world of the facts; None for records of a file.
      batch_size: Number of requests that are written together.
      seed: Seed of the samples that are scored, and of a world's texts.
      sample: Largest number of records of a group that are scored.
    """

    directory: Path
    editor: Editor
    records: tuple[Record, ...] = dataclasses.field(repr=False)
    world: World | None = dataclasses.field(repr=False)
    batch_size: int
    seed: int
    sample: int

    @classmethod
    def open(
        cls,
        directory: str | Path,
        editor: Editor,
        dataset: Dataset,
        *,
        batch_size: int = 1,
        seed: int = 0,
        sample: int = sequence_scores.SAMPLE,
        moments_source: str | None = None,
        flags: Mapping[str, Any] | None = None,
    ) -> SequenceRun:
        """Begins a run, or resumes one with the same settings.

        Args:
          directory: A new folder, or that of a run.
          editor: The method, prepared for its model.
          dataset: The records to edit, all of them, in their order.
          batch_size: Number of requests that are written together.
          seed: Seed of the samples that are scored, and of a world's texts.
          sample: Largest number of records of a group that are scored.
          moments_source: Where the second moments come from; None means the package.
          flags: Further values to record in a new folder.

        Raises:
          ValueError: If the folder holds a run with other settings, which the message names, or `check_requests`
            refuses the records.
        """
        records = check_requests(dataset)
        settings = Settings.of(editor, dataset, None, moments_source)
        scores = {
            name: value for name, value in settings.scores.items() if "generation" not in name
        }
        world = make_world() if dataset.source == FACTWORLD else None
        scores |= {} if world else describe_dataset(dataset)
        own = {
            "num_edits": len(records),
            "batch_size": check(Count, batch_size, "batch_size"),
            "seed": check(Seed, seed, "seed"),
            "sample": check(Count, sample, "sample"),
            "newest": sequence_scores.NEWEST,
            "new_tokens": sequence_scores.NEW_TOKENS,
        }
        runs.open_run(
            directory,
            {**settings.edit, **scores, **own},
            recorded={**settings.recorded(), "flags": dict(flags or {})},
            cases="edits_*.json",
            remedy=_REMEDY,
        )
        return cls(Path(directory), editor, records, world, batch_size, seed, sample)

    @property
    def texts(self) -> list[str]:
        """Texts about subjects that no request mentions."""
        return unedited_texts(self.world, self.records, self.seed)

    def path(self, edits: int) -> Path:
        """Returns the path of the measurement after a number of edits; 0 is the unedited model."""
        return self.directory / f"edits_{edits:05d}.json"

    @property
    def state_path(self) -> Path:
        """Path of the saved state."""
        return self.directory / "state.safetensors"

    def run(self, points: Sequence[int] | None = None) -> None:
        """Writes the edits and makes the measurements that are missing.

        The run ends early if the model no longer gives numbers; the last measurement then says so as `stopped`.

        Args:
          points: Numbers of edits to measure at, ends of batches; see `measure_points`. By default all of them.

        Raises:
          FolderInUseError: If another process works in the folder.
          ValueError: If the method cannot work with a request, or a file is damaged.
          OSError: If a file cannot be written.
        """
        ends = measure_points(len(self.records), self.batch_size)
        points = ends if points is None else points
        if wrong := [point for point in points if point not in ends]:
            raise ValueError(f"no batch ends at {wrong[0]} edits: give some of {ends}.")
        with in_use(self.directory, "--output_dir"):
            remove_leftovers(self.directory)
            texts = self.texts
            if not self.path(0).exists():
                self._write_row(0, self._measure(None, texts))
            todo = [point for point in points if not self.path(point).exists()]
            if todo and not any(row["stopped"] for row in self.rows()):
                with edit_warnings.summarized(len(self.records)):
                    self._edit(todo, texts)

    def _edit(self, todo: Sequence[int], texts: Sequence[str]) -> None:
        """Writes batches until all measurements are there."""
        editor, fresh = self._prepare()
        position, latest = self._resume(fresh, min(todo))
        saved = time.monotonic()
        done, name = position.state.num_edits, str(self.editor.name)
        with tqdm(total=len(self.records), initial=done, unit="edit", desc=name) as bar:
            while True:
                done = position.state.num_edits
                if done in todo and not self.path(done).exists():
                    bar.set_postfix_str("measuring")
                    row = self._measure(position, texts)
                    if done == len(self.records):
                        row["finished"] = self._finished(editor, position, texts)
                    if done >= latest:
                        self._save(position)
                    self._write_row(done, row)
                    saved = time.monotonic()
                    bar.set_postfix_str("")
                    if row["stopped"]:
                        return
                elif done > latest and time.monotonic() - saved > _SAVE_SECONDS:
                    self._save(position)
                    saved = time.monotonic()
                if done >= max(todo):
                    return
                try:
                    position = self._next(editor, position)
                except ValueError as error:
                    if not done or not self._is_broken(error, position, texts):
                        raise
                    row = self._measure(position, texts)
                    self._write_row(done, row | {"stopped": str(error)})
                    return
                bar.update(position.state.num_edits - done)

    def _prepare(self) -> tuple[SequentialEditor, EditorState]:
        """Returns the method as an editor with state, and its state before the first edit."""
        options = self.editor.options
        chunk_size = options.get("chunk_size", 8)
        editor = make_editor(self.editor.algorithm, self.editor.config, chunk_size=chunk_size)
        resources = Resources(options.get("second_moments"), options.get("hypernetwork"))
        fresh = editor.init(self.editor.model, resources, templates=options.get("templates"))
        return editor, fresh

    def _resume(self, fresh: EditorState, first: int) -> tuple[_Position, int]:
        """Returns the position to begin at, and the number of edits in the saved state.

        The position is the saved one, unless there is none or the first missing measurement is earlier.
        """
        begin = _Position(fresh, self.editor.model)
        if not self.state_path.exists():
            return begin, 0
        state = load_state(self.state_path, fresh)
        if state.num_edits > first:
            return begin, state.num_edits
        params, changed = load_weights(self.state_path, self.editor.model.params)
        seconds = check(
            float, read_about(self.state_path).get("seconds"), f"{self.state_path}: seconds"
        )
        saved = _Position(state, self.editor.model.replace(params=params), changed, seconds)
        return saved, state.num_edits

    def _save(self, position: _Position) -> None:
        """Saves a position."""
        save_state(
            self.state_path,
            position.state,
            params=position.model.params,
            changed=position.changed,
            about={"seconds": position.seconds},
        )

    def _next(self, editor: SequentialEditor, position: _Position) -> _Position:
        """Writes the next batch; the memory of the position's weights is used again, if they are edited ones."""
        done = position.state.num_edits
        requests = [record.request for record in self.records[done : done + self.batch_size]]
        with Stopwatch() as watch:
            delta, state = editor.update(position.state, position.model, requests)
            own = position.model.params is not self.editor.model.params
            changed = changed_weights(delta)
            # Leaves that no edit has changed yet are shared with the unedited model, which stays valid.
            donate = own and _leaves(changed) <= _leaves(position.changed)
            params = apply_delta(position.model.params, delta, donate=donate)
            jax.block_until_ready(params)
        return _Position(
            state,
            position.model.replace(params=params),
            position.changed | changed,
            position.seconds + watch.run_seconds,
        )

    def _finished(
        self, editor: SequentialEditor, position: _Position, texts: Sequence[str]
    ) -> dict[str, Any] | None:
        """Measures the model with what the method does at the end; None if it does nothing."""
        delta = editor.finish(position.state, position.model)
        if delta is None or not delta.updates:
            return None
        model = position.model.replace(params=apply_delta(position.model.params, delta))
        changed = position.changed | changed_weights(delta)
        return self._measure(dataclasses.replace(position, model=model, changed=changed), texts)

    def _is_broken(self, error: ValueError, position: _Position, texts: Sequence[str]) -> bool:
        """Returns whether a batch failed because of the edits before it, and not because of its requests."""
        if isinstance(error, NotFiniteError):
            return True
        return not math.isfinite(perplexity(position.model, texts[:1]))

    def _measure(self, position: _Position | None, texts: Sequence[str]) -> dict[str, Any]:
        """Measures the model at a position; None is the unedited model."""
        done = 0 if position is None else position.state.num_edits
        row = sequence_measurement.measure(
            self.editor.model,
            self.editor.model if position is None else position.model,
            frozenset() if position is None else position.changed,
            self.records,
            done,
            world=self.world,
            texts=texts,
            batch_size=self.batch_size,
            sample=self.sample,
            seed=self.seed,
        )
        if position is not None:
            row["seconds_per_edit"] = position.seconds / done
            row["residual"] = max(position.state.residuals.values(), default=None)
        return row

    def _write_row(self, edits: int, row: Mapping[str, Any]) -> None:
        """Writes a measurement."""
        runs.write_state(self.path(edits), row)

    def rows(self) -> list[dict[str, Any]]:
        """Reads all measurements of the folder, in the order of their edits.

        Raises:
          ValueError: If a file is damaged.
        """
        return read_rows(self.directory)

    def report(self) -> dict[str, Any]:
        """Returns what `read_report` does.

        Raises:
          ValueError: If a file is damaged.
        """
        return read_report(self.directory)


def run_sequence(
    directory: str | Path,
    editor: Editor,
    dataset: Dataset,
    *,
    every: int = 1,
    counts: Sequence[int] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Writes all records of a data set into one model, batch after batch, and measures the model.

    Args:
      directory: A new folder, or that of a stopped run with the same settings, which is resumed.
      editor: The method, prepared for its model.
      dataset: The records to edit.
      every, counts: When to measure; see `measure_points`.
      **options: Further arguments of `SequenceRun.open`.

    Returns:
      What `SequenceRun.report` returns.

    Raises:
      ValueError: As in `SequenceRun.open` and `SequenceRun.run`.

    Example:
      >>> from rome_jax.edit import Editor, MethodName
      >>> from rome_jax.evaluation import load_dataset
      >>> editor = Editor.prepare(MethodName.ROME, model, config, templates=["{}"])
      >>> dataset = load_dataset("cf", model_name=model.name, limit=2)
      >>> report = run_sequence("sequence", editor, dataset, every=2)
      >>> [row["edits"] for row in report["measurements"]]
      [0, 2]
      >>> report["measurements"][-1]["newest"]["efficacy"]
      100.0
    """
    run = SequenceRun.open(directory, editor, dataset, **options)
    run.run(measure_points(len(run.records), run.batch_size, every=every, counts=counts))
    return run.report()


def _leaves(weights: frozenset[ChangedWeight] | set[ChangedWeight]) -> set[tuple[Any, Any]]:
    """Returns the leaves of params that hold weights."""
    return {(weight.leaf, weight.part) for weight in weights}
