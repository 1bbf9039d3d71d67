"""A run of `eval.evaluate`: its folder, and the loop that fills it.

    RESULTS_DIR/ALG_NAME/run_ID/params.json      hyperparameters
    RESULTS_DIR/ALG_NAME/run_ID/run.json         settings, versions, wall time and compile time
    RESULTS_DIR/ALG_NAME/run_ID/case_ID.json     one case, in the original's layout
    RESULTS_DIR/pre/DATASET_MODEL_KEY/           scores of the unedited model, shared by all methods

A case file is written whole or not at all, and a case that has a file is not computed again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rome_jax.edit.method import Editor
from rome_jax.evaluation import summaries
from rome_jax.evaluation.datasets import FACTWORLD, Dataset, Record
from rome_jax.evaluation.evaluate import evaluate_records
from rome_jax.evaluation.generation import GenerationTests
from rome_jax.evaluation.metrics import harmonic_mean
from rome_jax.evaluation.snippets import load_snippets, load_tfidf
from rome_jax.evaluation.text_metrics import tfidf_vectorizer
from rome_jax.evaluation.timing import Stopwatch
from rome_jax.files import extras
from rome_jax.files.progress import tqdm
from rome_jax.models import runs

_PACKAGES = ("nltk", "scikit-learn")  # their versions affect how texts are scored


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that affects the numbers of a run.

    Attributes:
      edit: Settings of the edits.
      scores: Settings of the scores, which apply before and after the edits.
    """

    edit: Mapping[str, Any]
    scores: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        editor: Editor,
        dataset: Dataset,
        generation: GenerationTests | None,
        second_moments: str | None = None,
    ) -> Settings:
        """Collects the settings of an evaluation.

        Args:
          editor: The method, prepared for its model.
          dataset: The records to edit and score.
          generation: The tests of generated texts, or None.
          second_moments: Where second moments come from; None means the model's own.
        """
        source = (second_moments or "shipped") if editor.config.needs_second_moments else None
        edit = {
            "alg_name": editor.algorithm.value,
            "hyperparameters": editor.config.to_dict(),
            "covariance": source,
            "template_seed": editor.seed if "templates" in editor.options else None,
        }
        if "hypernetwork" in editor.options:
            edit["hypernetwork"] = editor.options["hypernetwork"].digest()
        scores = {
            **runs.describe_model(editor.model),
            "ds_name": dataset.name.value,
            "dataset": dataset.source,
            "dataset_sha256": dataset.sha256,
            "generation_seed": generation.seed if generation else None,
        }
        return cls(edit, scores)


def load_generation_tests(
    dataset: Dataset, snippets_path: str | None, tfidf_dir: str | None, seed: int
) -> GenerationTests | None:
    """Loads what generated texts are compared with; None if no record has generation prompts.

    Args:
      dataset: Records of factworld are compared with factworld's texts, other records with the published ones.
      snippets_path, tfidf_dir: Files to use instead.
      seed: Seed of the generated texts.

    Raises:
      ValueError: If a file is malformed.
      OSError: If a file cannot be read or downloaded.
      MissingPackageError: If a package of the extra `eval` is missing.

    Example:
      >>> from rome_jax.evaluation import DatasetName, load_dataset
      >>> dataset = load_dataset(DatasetName.ZSRE, model_name="factworld-gpt2", limit=2)
      >>> load_generation_tests(dataset, None, None, seed=0) is None
      True
    """
    if not any(getattr(record, "generation_prompts", ()) for record in dataset.records):
        return None
    extras.check("nltk", "eval", "the fluency of generated texts (--generation)")
    extras.check("sklearn", "eval", "the consistency of generated texts (--generation)")
    world = dataset.source == FACTWORLD
    snippets = load_snippets(snippets_path, world)
    return GenerationTests(snippets, tfidf_vectorizer(*load_tfidf(tfidf_dir, world)), seed)


def find_run(results_dir: str | Path, algorithm: str, continue_from: str | None = None) -> Path:
    """Returns the folder of a method's next run, or of the run to resume.

    Args:
      results_dir: Holds one folder per method.
      algorithm: Name of the method.
      continue_from: Name of the run to resume; None means the next one.

    Raises:
      ValueError: If the run to resume does not exist.

    Example:
      >>> find_run("results", "ROME").as_posix()
      'results/ROME/run_000'
    """
    directory = Path(results_dir) / algorithm
    if continue_from is None:
        return runs.next_run(directory)
    found = directory / continue_from
    if not found.is_dir():
        there = ", ".join(sorted(path.name for path in directory.glob("run_*"))) or "no runs"
        raise ValueError(f"there is no run {found} to continue: {directory} has {there}.")
    return found


@dataclasses.dataclass(frozen=True)
class EvaluationRun:
    """The folders of a run.

    Attributes:
      directory: Folder of the run.
      pre: Folder of the unedited model's scores.
    """

    directory: Path
    pre: Path

    @classmethod
    def open(
        cls,
        results_dir: str | Path,
        settings: Settings,
        continue_from: str | None = None,
        *,
        flags: Mapping[str, Any] | None = None,
    ) -> EvaluationRun:
        """Begins a run, or resumes one with the same settings.

        Args:
          results_dir: Holds one folder per method.
          settings: Everything that affects the numbers.
          continue_from: Name of the run to resume; None begins a new one.
          flags: Further values to record in the run.json of a new run.

        Raises:
          ValueError: If the run to resume does not exist or has other settings; the message names them.
        """
        results = Path(results_dir)
        directory = find_run(results, settings.edit["alg_name"], continue_from)
        remedy = "leave out --continue_from_run to begin another run"
        return cls.at(directory, results / "pre", settings, remedy, flags=flags)

    @classmethod
    def at(
        cls,
        directory: str | Path,
        pre_dir: str | Path,
        settings: Settings,
        remedy: str,
        *,
        flags: Mapping[str, Any] | None = None,
    ) -> EvaluationRun:
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
        directory = Path(directory)
        runs.open_run(
            directory,
            {**settings.edit, **settings.scores},
            recorded={"flags": dict(flags or {}), "wall_time": 0.0, "compile_time": 0.0},
            packages=_PACKAGES,
            remedy=remedy,
        )
        runs.write_json(directory / "params.json", settings.edit["hyperparameters"])
        content = json.dumps(settings.scores, sort_keys=True).encode()
        model = settings.scores["model"].replace("/", "_")
        key = hashlib.sha256(content).hexdigest()[:12]
        pre = Path(pre_dir) / f"{settings.scores['ds_name']}_{model}_{key}"
        runs.open_run(pre, settings.scores, packages=_PACKAGES, remedy="remove it")
        return cls(directory, pre)

    def path(self, record: Record) -> Path:
        """Returns the path of a case file."""
        return self.directory / f"case_{record.case_id}.json"

    def evaluate(
        self,
        editor: Editor,
        dataset: Dataset,
        generation: GenerationTests | None,
        *,
        batch_size: int,
        max_tokens: int,
    ) -> None:
        """Edits and scores the cases that have no file yet; a progress bar shows S over all cases so far.

        Args:
          editor: The method, prepared for its model.
          dataset: The records to edit and score.
          generation: The tests of generated texts, or None.
          batch_size: Number of cases that are edited and scored together.
          max_tokens: As for `evaluate_records`.

        Raises:
          ValueError: If a request or a prompt cannot be used.
        """
        todo = [record for record in dataset.records if not self.path(record).exists()]
        done = [record for record in dataset.records if self.path(record).exists()]
        options = {"generation": generation, "max_tokens": max_tokens}
        size = batch_size if editor.factored else 1
        measured = [summaries.case_metrics(summaries.read_case(self.path(r))) for r in done]
        with tqdm(
            total=len(dataset.records), initial=len(done), unit="case", desc=editor.algorithm
        ) as bar:
            bar.set_postfix_str(_running_score(measured))
            for pool in _batches(todo, batch_size):
                with Stopwatch() as watch:
                    # The first cases compile, which can take longer than all that follow.
                    bar.set_postfix_str("scoring the unedited model")
                    pre = self._pre(editor, dataset, pool, options)
                    bar.set_postfix_str("editing and scoring")
                    for batch in _batches(pool, size):
                        cases = _edit(editor, dataset, batch, options)
                        for record, case in zip(batch, cases, strict=True):
                            case["pre"] = pre[record.case_id]
                            runs.write_json(self.path(record), case)
                            measured.append(summaries.case_metrics(case))
                        bar.update(len(batch))
                        bar.set_postfix_str(_running_score(measured))
                self._add_times(watch)

    def cases(self, dataset: Dataset) -> list[dict[str, Any]]:
        """Reads the results of a data set's records.

        Raises:
          ValueError: If a file is damaged.
        """
        return [summaries.read_case(self.path(record)) for record in dataset.records]

    def _pre(
        self,
        editor: Editor,
        dataset: Dataset,
        records: Sequence[Record],
        options: Mapping[str, Any],
    ) -> dict[int, Any]:
        """Returns the unedited model's scores by case id, and computes those that have no file yet."""
        paths = {record.case_id: self.pre / f"case_{record.case_id}.json" for record in records}
        missing = [record for record in records if not paths[record.case_id].exists()]
        if missing:
            scores = evaluate_records(editor.model, dataset.name, missing, **options)
            for record, score in zip(missing, scores, strict=True):
                content = {"case_id": record.case_id, "pre": score}
                runs.write_json(paths[record.case_id], content)
        return {case_id: summaries.read_case(path)["pre"] for case_id, path in paths.items()}

    def _add_times(self, watch: Stopwatch) -> None:
        """Adds wall time and compile time to run.json."""
        about = runs.read_run(self.directory)
        times = {"wall_time": watch.seconds, "compile_time": watch.compile_seconds}
        for name, seconds in times.items():
            about[name] = about.get(name, 0.0) + seconds
        runs.write_json(self.directory / "run.json", about)


def _edit(
    editor: Editor, dataset: Dataset, records: Sequence[Record], options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Edits records and scores the edits; returns their case files without `pre`.

    The time of a case is the wall time of the batch's edits, without compilation, divided by the number of cases.
    """
    with Stopwatch() as watch:
        deltas = editor.compute([record.request for record in records], progress=True)
        jax.block_until_ready(deltas)
    posts = evaluate_records(editor.model, dataset.name, records, deltas, **options)
    return [
        {
            "case_id": record.case_id,
            "requested_rewrite": record.requested_rewrite,
            "time": watch.run_seconds / len(records),
            "post": post,
        }
        for record, post in zip(records, posts, strict=True)
    ]


def _batches(records: Sequence[Record], size: int) -> list[Sequence[Record]]:
    """Splits records into batches of at most `size`, of similar lengths so that they share few compiled programs."""
    count = math.ceil(len(records) / size)
    bounds = np.linspace(0, len(records), count + 1).round().astype(int)
    return [records[a:b] for a, b in itertools.pairwise(bounds)]


def _running_score(measured: Sequence[Mapping[str, float]]) -> str:
    """Returns S of the cases so far as text; empty if a part of it has not been measured yet."""
    for metric in ("success", "acc"):
        names = [f"post_{kind}_{metric}" for kind in ("rewrite", "paraphrase", "neighborhood")]
        values = [[one[name] for one in measured if name in one] for name in names]
        if all(values):
            return f"S {harmonic_mean(*(100 * float(np.mean(value)) for value in values)):.1f}"
    return ""
