"""Sweeps: evaluations at every point of a grid of hyperparameters.

    RESULTS_DIR/sweeps/NAME/run.json     what all points share
    RESULTS_DIR/sweeps/NAME/POINT/       a run of `eval.evaluate`; POINT is such as layers=0,v_lr=0.5
    RESULTS_DIR/sweeps/NAME/sweep.csv    a row a point

Points that differ in learning rates and other plain numbers share their compiled programs; each layer, and each number
of steps, compiles its own.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rome_jax.data.request import EditWarning
from rome_jax.edit.method import Editor, MethodName
from rome_jax.evaluation import summaries, tables
from rome_jax.evaluation.datasets import Dataset
from rome_jax.evaluation.generation import GenerationTests
from rome_jax.evaluation.grid import Grid
from rome_jax.evaluation.run import EvaluationRun, Settings
from rome_jax.evaluation.summaries import Summary
from rome_jax.files.artifacts import write_whole
from rome_jax.models import runs
from rome_jax.models.registry import LanguageModel

_SHOWN = (
    "score",
    *(
        f"{kind}_{m}"
        for kind in ("rewrite", "paraphrase", "neighborhood")
        for m in ("success", "acc")
    ),
    "ngram_entropy",
    "reference_score",
)
_REMEDY = "give another --sweep_name"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What is evaluated at every point.

    Attributes:
      grid: the points.
      algorithm, model: which method, on which model.
      dataset, generation: what is asked; no texts are generated if None.
      moments_source: as the flag --second_moments.
      seed: of the context templates.
      hypernetwork_source: as the flag --hypernetwork.
    """

    grid: Grid
    algorithm: MethodName
    model: LanguageModel
    dataset: Dataset
    generation: GenerationTests | None = None
    moments_source: str | None = None
    seed: int = 0
    hypernetwork_source: str | None = None

    @property
    def name(self) -> str:
        """The default name: method, model, data and keys. Further values of these keys belong to the same sweep."""
        model = runs.short_name(self.model).replace("/", "_")
        return "_".join([self.algorithm, model, self.dataset.name, *self.grid.keys])

    def run(
        self,
        directory: str | Path,
        pre_dir: str | Path,
        *,
        batch_size: int = 32,
        chunk_size: int = 8,
        max_tokens: int,
    ) -> dict[str, Summary]:
        """Evaluates the cases of all points that are not there yet.

        Args:
          directory: of the sweep.
          pre_dir: of the unedited models' scores, which all runs share.
          batch_size, chunk_size, max_tokens: as the flags of `eval.evaluate`.

        Returns:
          The points' summaries by name.

        Raises:
          ValueError: a sweep of other settings, a layer that the model does not have, or what an edit refuses.
          OSError: second moments that cannot be read or fetched.
        """
        flags = {"batch_size": batch_size, "chunk_size": chunk_size, "max_tokens": max_tokens}
        points = self.grid.points
        for layer in {layer for point in points for layer in point.config.layers}:
            self.model.config.check_layer(layer, "layers")
        found = {}
        for number, point in enumerate(points, 1):
            editor = Editor.prepare(
                self.algorithm,
                self.model,
                point.config,
                moments_source=self.moments_source,
                hypernetwork_source=self.hypernetwork_source,
                seed=self.seed,
                chunk_size=chunk_size,
            )
            settings = Settings.of(editor, self.dataset, self.generation, self.moments_source)
            if number == 1:
                runs.open_run(directory, self._shared(settings), remedy=_REMEDY)
            run = EvaluationRun.at(
                Path(directory) / point.name, pre_dir, settings, _REMEDY, flags=flags
            )
            print(f"[{number}/{len(points)}] {point.name}", flush=True)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", EditWarning)  # whole points may disable the model
                run.evaluate(
                    editor,
                    self.dataset,
                    self.generation,
                    batch_size=batch_size,
                    max_tokens=max_tokens,
                )
            caught = [warning for warning in caught if issubclass(warning.category, EditWarning)]
            if caught:
                print(f"  {len(caught)} warnings, such as: {caught[0].message}")
            found[point.name] = summaries.summarize(run.cases(self.dataset))
        return found

    def _shared(self, settings: Settings) -> dict[str, Any]:
        """The settings that the points have in common."""
        fixed = {k: v for k, v in self.grid.base.to_dict().items() if k not in self.grid.keys}
        return {
            "alg_name": self.algorithm.value,
            "swept": self.grid.keys,
            "hyperparameters": fixed,
            "covariance": self.moments_source,
            "template_seed": self.seed,
            **settings.scores,
        }


def text_table(found: Mapping[str, Summary]) -> str:
    """The table to print: score, efficacy, generalization and specificity; with texts fluency and consistency.

    Args:
      found: the points' summaries by name.
    """
    return tables.render(tables.select(tables.make_rows(found), _SHOWN))


def write_csv(path: Path, grid: Grid, found: Mapping[str, Summary]) -> None:
    """Writes all metrics, a row a point; the values of the varied hyperparameters come first.

    Args:
      path: of the file.
      grid: the points.
      found: their summaries by name.
    """
    labels = {point.name: point.labels.values() for point in grid.points}
    rendered = tables.render(tables.make_rows(found), tables.TableFormat.CSV)
    head, *body = csv.reader(io.StringIO(rendered))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*grid.keys, *head])
    for line in body:  # the unedited model has no values
        writer.writerow([*labels.get(line[0], [""] * len(grid.keys)), *line])
    write_whole(path, file.getvalue().encode())
