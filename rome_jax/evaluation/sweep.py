"""Sweeps: evaluations at every point of a grid of hyperparameters.

    RESULTS_DIR/sweeps/NAME/run.json     settings that all points share
    RESULTS_DIR/sweeps/NAME/POINT/       a run of `eval.evaluate`; POINT is a name such as layers=0,v_lr=0.5
    RESULTS_DIR/sweeps/NAME/sweep.csv    one row per point

Points that differ only in learning rates and other plain numbers share their compiled programs. Each layer and each
number of steps compiles programs of its own.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rome_jax.edit import edit_warnings
from rome_jax.edit.method import Editor, MethodName
from rome_jax.edit.variant import MethodVariant
from rome_jax.evaluation import summaries, tables
from rome_jax.evaluation.datasets import Dataset
from rome_jax.evaluation.generation import GenerationTests
from rome_jax.evaluation.grid import Grid
from rome_jax.evaluation.run import EvaluationRun
from rome_jax.evaluation.run_settings import Settings
from rome_jax.evaluation.summaries import Summary
from rome_jax.files.artifacts import write_whole
from rome_jax.files.places import check_name
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
    """A grid of hyperparameters, and what is evaluated at each of its points.

    Attributes:
      grid: The points.
      algorithm: The editing method.
      model: The unedited model.
      dataset: The records to edit and score.
      generation: The tests of generated texts; None generates no texts.
      moments_source: Source of second moments, as for the flag --second_moments.
      seed: Seed of the context templates.
      hypernetwork_source: Source of a hypernetwork, as for the flag --hypernetwork.
      templates: Context templates; None samples them.
    """

    grid: Grid
    algorithm: MethodName
    model: LanguageModel
    dataset: Dataset
    generation: GenerationTests | None = None
    moments_source: str | None = None
    seed: int = 0
    hypernetwork_source: str | None = None
    templates: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """The default name: method, model, data and keys, so that further values of these keys join the same sweep."""
        model = runs.short_name(self.model).replace("/", "_")
        return "_".join(
            [
                MethodVariant.of(self.algorithm, self.grid.base),
                model,
                self.dataset.name,
                *self.grid.keys,
            ]
        )

    def run(
        self,
        directory: str | Path,
        pre_dir: str | Path,
        *,
        batch_size: int = 32,
        chunk_size: int = 8,
        max_tokens: int,
    ) -> dict[str, Summary]:
        """Evaluates the cases of all points that have not been evaluated yet.

        Args:
          directory: Folder of the sweep.
          pre_dir: Folder of the unedited model's scores, which all runs share.
          batch_size, chunk_size, max_tokens: As for the flags of `eval.evaluate`.

        Returns:
          The summaries of the points by name.

        Raises:
          ValueError: If the folder holds a sweep with other settings, the model does not have a layer, or an edit is
            refused.
          OSError: If second moments cannot be read or downloaded.
        """
        flags = {"batch_size": batch_size, "chunk_size": chunk_size, "max_tokens": max_tokens}
        points = self.grid.points
        for point in points:
            check_name(point.name, "--sweep")
        for layer in {layer for point in points for layer in point.config.to_dict()["layers"]}:
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
                templates=self.templates,
            )
            settings = Settings.of(editor, self.dataset, self.generation, self.moments_source)
            if number == 1 and (Path(directory) / "run.json").exists():
                runs.check_settings(Path(directory), self._shared(settings), _REMEDY)
            run = EvaluationRun.at(
                Path(directory) / point.name, pre_dir, settings, _REMEDY, flags=flags
            )
            if number == 1:  # after the run, which removes the folder if it fails to start
                self._open(directory, settings, run)
            print(f"[{number}/{len(points)}] {point.name}", flush=True)
            with edit_warnings.collected() as warned:
                run.evaluate(
                    editor,
                    self.dataset,
                    self.generation,
                    batch_size=batch_size,
                    max_tokens=max_tokens,
                )
            for warning in warned:
                print(f"  Warning: {warning}")
            found[point.name] = summaries.summarize(run.cases(self.dataset))
        return found

    def _open(self, directory: str | Path, settings: Settings, run: EvaluationRun) -> None:
        """Writes the settings that the points share, or compares them with those in the folder."""
        try:
            runs.open_run(directory, self._shared(settings), remedy=_REMEDY)
        except Exception:
            run.discard()
            raise

    def _shared(self, settings: Settings) -> dict[str, Any]:
        """Returns the settings that the points have in common."""
        fixed = {k: v for k, v in self.grid.base.to_dict().items() if k not in self.grid.keys}
        return {
            "alg_name": str(MethodVariant.of(self.algorithm, self.grid.base)),
            "swept": self.grid.keys,
            "hyperparameters": fixed,
            "covariance": self.moments_source,
            "template_seed": None if self.templates else self.seed,
            **({"templates": self.templates} if self.templates else {}),
            **settings.scores,
        }


def text_table(found: Mapping[str, Summary]) -> str:
    """Renders the table to print: score, efficacy, generalization, specificity, fluency and consistency.

    Args:
      found: The summaries of the points by name.
    """
    return tables.render(tables.select(tables.make_rows(found), _SHOWN))


def write_csv(path: Path, grid: Grid, found: Mapping[str, Summary]) -> None:
    """Writes all metrics, one row per point, below the row of the unedited model.

    The values of the varied hyperparameters come first.

    Args:
      path: Path of the file.
      grid: The points.
      found: The summaries of the points by name.

    Raises:
      OSError: If the file cannot be written; the message names it and a remedy.
    """
    labels = {point.name: point.labels.values() for point in grid.points}
    rendered = tables.render(tables.make_rows(found), tables.TableFormat.CSV)
    head, *body = csv.reader(io.StringIO(rendered))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*grid.keys, *head])
    for line in body:
        # The unedited model has no hyperparameters.
        writer.writerow([*labels.get(line[0], [""] * len(grid.keys)), *line])
    write_whole(path, file.getvalue().encode())
