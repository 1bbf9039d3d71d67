"""A run of `eval.evaluate`: the loop that fills its folder; see `rome_jax.evaluation.run_folder`.

A case file is written whole or not at all, and a case that has a file is not computed again. A case that cannot be
edited or scored has a file with the reason, and the run continues without it.

Several processes may share a run. Each takes its share of the batches and writes the files of their cases. The batches
do not depend on the number of processes, and neither does any number in a case file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rome_jax.edit import edit_warnings
from rome_jax.edit.method import Editor
from rome_jax.evaluation import summaries
from rome_jax.evaluation.batch import edit_batch, failed_case, find_refused, split
from rome_jax.evaluation.case_files import read_case
from rome_jax.evaluation.datasets import FACTWORLD, Dataset
from rome_jax.evaluation.evaluate import check_record, evaluate_records
from rome_jax.evaluation.generation import EssenceTarget, GenerationTests
from rome_jax.evaluation.metrics import harmonic_mean
from rome_jax.evaluation.record_types import Record
from rome_jax.evaluation.run_folder import RunFolder
from rome_jax.evaluation.snippets import load_snippets, load_tfidf
from rome_jax.evaluation.text_metrics import tfidf_vectorizer
from rome_jax.evaluation.timing import Stopwatch
from rome_jax.files import extras
from rome_jax.files.checked import check
from rome_jax.files.groups import ALONE, ProcessGroup
from rome_jax.files.progress import tqdm
from rome_jax.models import runs


def has_generation_prompts(dataset: Dataset) -> bool:
    """Returns whether any record has prompts for generated texts."""
    return any(getattr(record, "generation_prompts", ()) for record in dataset.records)


def load_generation_tests(
    dataset: Dataset,
    snippets_path: str | None,
    tfidf_dir: str | None,
    seed: int,
    essence: EssenceTarget | None = None,
) -> GenerationTests | None:
    """Loads what generated texts are compared with; None if no record has generation prompts.

    Args:
      dataset: Records of factworld are compared with factworld's texts, other records with the published ones.
      snippets_path, tfidf_dir: Files to use instead.
      seed: Seed of the generated texts.
      essence: Where the essence texts are looked up; by default under the true target for records of factworld, and
        under the new one, as in the published code, for others.

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
    if not has_generation_prompts(dataset):
        return None
    extras.check("nltk", "eval", "the fluency of generated texts (--generation)")
    extras.check("sklearn", "eval", "the consistency of generated texts (--generation)")
    world = dataset.source == FACTWORLD
    snippets = load_snippets(snippets_path, world)
    vectorizer = tfidf_vectorizer(*load_tfidf(tfidf_dir, world))
    default = EssenceTarget.TRUE if world else EssenceTarget.NEW
    return GenerationTests(snippets, vectorizer, seed, essence or default)


class EvaluationRun(RunFolder):
    """A run: its folders, and the loop that fills them; `open` or `at` begins or resumes it."""

    def evaluate(
        self,
        editor: Editor,
        dataset: Dataset,
        generation: GenerationTests | None,
        *,
        batch_size: int,
        max_tokens: int,
        group: ProcessGroup = ALONE,
    ) -> None:
        """Edits and scores the cases that have no file yet; a progress bar shows S over all cases so far.

        Batches are made of all records, whether they have a file or not, so that a resumed run computes what an
        uninterrupted one computes, to the last bit. Several processes take turns at the batches.

        Args:
          editor: The method, prepared for its model.
          dataset: The records to edit and score.
          generation: The tests of generated texts, or None.
          batch_size: Number of cases that are edited and scored together.
          max_tokens: As for `evaluate_records`.
          group: The processes that share the run.

        Raises:
          ValueError: If the method cannot work with its configuration, or a case file is damaged.
          IncompleteError: If another process ended before its cases were complete.
          OSError: If a file cannot be written, or the run is in use.
        """
        pools = split(dataset.records, batch_size)

        def unfinished() -> list[int]:
            return [number for number, pool in enumerate(pools) if self._missing(pool)]

        with group.working_in(self.directory, "the run", unfinished) as todo:
            if group.count > 1:
                pools = [pools[number] for number in group.share(todo)]
            try:
                self._evaluate(editor, dataset, generation, pools, batch_size, max_tokens, group)
            except Exception:
                if group.count == 1:
                    self._discard()
                raise
            group.finish(lambda: self._missing(dataset.records))

    def _missing(self, records: Sequence[Record]) -> int:
        """Returns the number of records without a case file."""
        return sum(not self.path(record).exists() for record in records)

    def _evaluate(
        self,
        editor: Editor,
        dataset: Dataset,
        generation: GenerationTests | None,
        pools: Sequence[Sequence[Record]],
        batch_size: int,
        max_tokens: int,
        group: ProcessGroup,
    ) -> None:
        """Edits and scores the cases of some batches that have no file yet."""
        options = {"generation": generation, "max_tokens": max_tokens}
        size = batch_size if editor.factored else 1

        def check_all(records: Sequence[Record]) -> None:
            for record in records:
                check_record(editor.model, dataset.name, record, generation)

        done: dict[int, Mapping[str, float]] = {
            record.case_id: summaries.case_metrics(self._read(record))
            for pool in pools
            for record in pool
            if self.path(record).exists()
        }
        total = sum(map(len, pools))
        with (
            edit_warnings.summarized(total - len(done)),
            tqdm(total=total, initial=len(done), unit="case", desc=editor.name) as bar,
        ):
            bar.set_postfix_str(_running_score(done.values()))
            for pool in pools:
                if all(record.case_id in done for record in pool):
                    continue
                with Stopwatch() as watch:
                    refused = find_refused(check_all, pool)
                    failed = [record for record in pool if record.case_id in refused]
                    self._write((failed_case(r, refused[r.case_id]) for r in failed), done)
                    usable = [record for record in pool if record.case_id not in refused]
                    # The first cases compile, which can take longer than all that follow.
                    bar.set_postfix_str("scoring the unedited model")
                    pre = self._pre(editor, dataset, usable, options)
                    bar.set_postfix_str("editing and scoring")
                    for batch in split(usable, size):
                        if not all(record.case_id in done for record in batch):
                            self._write(edit_batch(editor, dataset.name, batch, pre, options), done)
                        bar.update(len(done) - bar.n)
                        bar.set_postfix_str(_running_score(done.values()))
                if group.index == 0:  # the one writer of run.json
                    self._add_times(watch)

    def _write(
        self, cases: Iterable[Mapping[str, Any]], done: dict[int, Mapping[str, float]]
    ) -> None:
        """Writes the files of cases that have none yet, and adds their metrics to `done`."""
        for case in cases:
            if case["case_id"] not in done:
                runs.write_state(self.directory / f"case_{case['case_id']}.json", case)
                done[case["case_id"]] = summaries.case_metrics(case)

    def _read(self, record: Record) -> dict[str, Any]:
        """Reads the file of a case."""
        return read_case(self.path(record), needs=("pre", "post"))

    def cases(self, dataset: Dataset) -> list[dict[str, Any]]:
        """Reads the results of a data set's records.

        Raises:
          ValueError: If a file is damaged.
        """
        return [self._read(record) for record in dataset.records]

    def _pre(
        self,
        editor: Editor,
        dataset: Dataset,
        records: Sequence[Record],
        options: Mapping[str, Any],
    ) -> dict[int, Any]:
        """Returns the unedited model's scores by case id; if one has no file yet, it scores the whole batch."""
        paths = {record.case_id: self.pre / f"case_{record.case_id}.json" for record in records}
        missing = {case_id for case_id, path in paths.items() if not path.exists()}
        if missing:
            scores = evaluate_records(editor.model, dataset.name, records, **options)
            for record, score in zip(records, scores, strict=True):
                if record.case_id in missing:
                    content = {"case_id": record.case_id, "pre": score}
                    runs.write_state(paths[record.case_id], content)
        return {case_id: read_case(path, needs=("pre",))["pre"] for case_id, path in paths.items()}

    def _add_times(self, watch: Stopwatch) -> None:
        """Adds wall time and compile time to run.json."""
        path = self.directory / "run.json"
        about = runs.read_run(self.directory)
        times = {"wall_time": watch.seconds, "compile_time": watch.compile_seconds}
        for name, seconds in times.items():
            about[name] = check(float, about.get(name, 0.0), f"{path}: {name}") + seconds
        runs.write_state(path, about)


def _running_score(measured: Collection[Mapping[str, float]]) -> str:
    """Returns S of the cases so far as text; empty if a part of it has not been measured yet."""
    for metric in ("success", "acc"):
        names = [f"post_{kind}_{metric}" for kind in ("rewrite", "paraphrase", "neighborhood")]
        values = [[one[name] for one in measured if name in one] for name in names]
        if all(values):
            return f"S {harmonic_mean(*(100 * float(np.mean(value)) for value in values)):.1f}"
    return ""
