"""A run of `eval.evaluate`: its folder, and the loop that fills it.

    RESULTS_DIR/ALG_NAME/run_ID/params.json      hyperparameters
    RESULTS_DIR/ALG_NAME/run_ID/run.json         settings, versions and wall time
    RESULTS_DIR/ALG_NAME/run_ID/case_ID.json     one case, in the original's layout
    RESULTS_DIR/pre/DATASET_MODEL_KEY/           the unedited model's scores, which all methods share

A case is stored whole or not at all; a stored case is not computed again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rome_jax.edit.method import Editor
from rome_jax.evaluation import summaries
from rome_jax.evaluation.datasets import FACTWORLD, Dataset, Record
from rome_jax.evaluation.evaluate import evaluate_records
from rome_jax.evaluation.generation import GenerationTests
from rome_jax.evaluation.metrics import harmonic_mean
from rome_jax.evaluation.snippets import load_snippets, load_tfidf
from rome_jax.evaluation.text_metrics import tfidf_vectorizer
from rome_jax.files import extras
from rome_jax.files.progress import tqdm
from rome_jax.models import runs

_PACKAGES = ("nltk", "scikit-learn")  # decide how texts are judged


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that decides the numbers of a run.

    Attributes:
      edit: of the edits.
      scores: of the scores, before and after them alike.
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
        """The settings of an evaluation.

        Args:
          editor: what edits.
          dataset, generation: what is asked.
          second_moments: where second moments come from; None means the model's own.
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
    """What generated texts are compared with; None if the records ask for none.

    Args:
      dataset: factworld's records are compared with factworld's texts, others with the published ones.
      snippets_path, tfidf_dir: files to take instead.
      seed: of the texts.

    Raises:
      ValueError, OSError: files that cannot be read or fetched.
      MissingPackageError: a package of the extra `eval` is missing.
    """
    if not any(getattr(record, "generation_prompts", ()) for record in dataset.records):
        return None
    extras.check("nltk", "eval", "the fluency of generated texts (--generation)")
    extras.check("sklearn", "eval", "the consistency of generated texts (--generation)")
    world = dataset.source == FACTWORLD
    snippets = load_snippets(snippets_path, world)
    return GenerationTests(snippets, tfidf_vectorizer(*load_tfidf(tfidf_dir, world)), seed)


def find_run(results_dir: str | Path, algorithm: str, continue_from: str | None = None) -> Path:
    """The folder of a method's next run, or of the run to resume.

    Args:
      results_dir: holds a folder a method.
      algorithm: name of the method.
      continue_from: name of the run to resume; None means the next one.

    Raises:
      ValueError: `continue_from` is not there.
    """
    directory = Path(results_dir) / algorithm
    if continue_from is None:
        return runs.next_run(directory)
    found = directory / continue_from
    if not found.is_dir():
        there = ", ".join(sorted(path.name for path in directory.glob("run_*"))) or "none"
        raise ValueError(f"there is no run {found} to continue: {directory} has {there}.")
    return found


@dataclasses.dataclass(frozen=True)
class EvaluationRun:
    """The folders of a run.

    Attributes:
      directory: of the run.
      pre: of the unedited model's scores.
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
        """Begins a run, or resumes one of the same settings.

        Args:
          results_dir: holds a folder a method.
          settings: all that decides the numbers.
          continue_from: name of the run to resume; None begins one.
          flags: what else is written down of a new run.

        Raises:
          ValueError: `continue_from` is not there, or of other settings, which are named.
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
        """Begins a run in a folder of one's choice, or resumes the one in it.

        Args:
          directory: of the run.
          pre_dir: holds a folder of the unedited model's scores for each model and data.
          settings: of the run.
          remedy: what to do about a run of other settings.
          flags: what else is written down of a new run.

        Raises:
          ValueError: a run of other settings, which are named.
        """
        directory = Path(directory)
        runs.open_run(
            directory,
            {**settings.edit, **settings.scores},
            recorded={"flags": dict(flags or {}), "wall_time": 0.0},
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
        """The file of a case."""
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
        """Evaluates the cases that are not there yet, with a bar that says S of all so far."""
        todo = [record for record in dataset.records if not self.path(record).exists()]
        done = [record for record in dataset.records if self.path(record).exists()]
        options = {"generation": generation, "max_tokens": max_tokens}
        size = batch_size if editor.factored else 1
        measured = [summaries.case_metrics(summaries.read_case(self.path(r))) for r in done]
        with tqdm(
            total=len(dataset.records), initial=len(done), unit="case", desc=editor.algorithm
        ) as bar:
            bar.set_postfix_str(_running(measured))
            for pool in _batches(todo, batch_size):
                begun = time.monotonic()
                # The first cases compile, which can take longer than all that follows.
                bar.set_postfix_str("scoring the unedited model")
                pre = self._pre(editor, dataset, pool, options)
                bar.set_postfix_str("editing and scoring")
                for batch in _batches(pool, size):
                    for record, case in zip(
                        batch, _edit(editor, dataset, batch, options), strict=True
                    ):
                        case["pre"] = pre[record.case_id]
                        runs.write_json(self.path(record), case)
                        measured.append(summaries.case_metrics(case))
                    bar.update(len(batch))
                    bar.set_postfix_str(_running(measured))
                self._add_wall_time(time.monotonic() - begun)

    def cases(self, dataset: Dataset) -> list[dict[str, Any]]:
        """The results of a data set's records.

        Raises:
          ValueError: a damaged file.
        """
        return [summaries.read_case(self.path(record)) for record in dataset.records]

    def _pre(
        self,
        editor: Editor,
        dataset: Dataset,
        records: Sequence[Record],
        options: Mapping[str, Any],
    ) -> dict[int, Any]:
        """The unedited model's scores by case id; those that are not there are computed."""
        paths = {record.case_id: self.pre / f"case_{record.case_id}.json" for record in records}
        missing = [record for record in records if not paths[record.case_id].exists()]
        if missing:
            scores = evaluate_records(editor.model, dataset.name, missing, **options)
            for record, score in zip(missing, scores, strict=True):
                content = {"case_id": record.case_id, "pre": score}
                runs.write_json(paths[record.case_id], content)
        return {case_id: summaries.read_case(path)["pre"] for case_id, path in paths.items()}

    def _add_wall_time(self, seconds: float) -> None:
        about = runs.read_run(self.directory)
        about["wall_time"] = about.get("wall_time", 0.0) + seconds
        runs.write_json(self.directory / "run.json", about)


def _edit(
    editor: Editor, dataset: Dataset, records: Sequence[Record], options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Edits records and scores the edits: their case files but for `pre`."""
    begun = time.monotonic()
    deltas = editor.compute([record.request for record in records], progress=True)
    seconds = (time.monotonic() - begun) / len(records)
    posts = evaluate_records(editor.model, dataset.name, records, deltas, **options)
    return [
        {
            "case_id": record.case_id,
            "requested_rewrite": record.requested_rewrite,
            "time": seconds,
            "post": post,
        }
        for record, post in zip(records, posts, strict=True)
    ]


def _batches(records: Sequence[Record], size: int) -> list[Sequence[Record]]:
    """Batches of at most `size`, as equal as can be: few shapes, few programs."""
    count = math.ceil(len(records) / size)
    bounds = np.linspace(0, len(records), count + 1).round().astype(int)
    return [records[a:b] for a, b in itertools.pairwise(bounds)]


def _running(measured: Sequence[Mapping[str, float]]) -> str:
    """S of the cases so far."""
    for metric in ("success", "acc"):
        names = [f"post_{kind}_{metric}" for kind in ("rewrite", "paraphrase", "neighborhood")]
        values = [[one[name] for one in measured if name in one] for name in names]
        if all(values):
            return f"S {harmonic_mean(*(100 * np.mean(value) for value in values)):.1f}"
    return ""
