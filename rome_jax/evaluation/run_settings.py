"""The settings of an evaluation, which decide its numbers and are written to its run.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rome_jax.edit.method import Editor
from rome_jax.evaluation.datasets import Dataset
from rome_jax.evaluation.generation import EssenceTarget, GenerationTests
from rome_jax.models import runs
from rome_jax.moments import checks


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that affects the numbers of a run.

    Attributes:
      edit: Settings of the edits.
      scores: Settings of the scores, which apply before and after the edits.
      templates: Context templates of the edits, which are recorded. Only given ones are settings; the others follow
        from the seed.
      second_moments: How the second moments of each layer were verified for the model, which is recorded.
      model_source: Where the model was found, such as "hub NAME @ COMMIT", which is recorded.
    """

    edit: Mapping[str, Any]
    scores: Mapping[str, Any]
    templates: Sequence[str] = ()
    second_moments: Mapping[str, str] = dataclasses.field(default_factory=dict)
    model_source: str = ""

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
            "alg_name": str(editor.name),
            "hyperparameters": editor.config.to_dict(),
            "covariance": source,
            "template_seed": editor.seed if "templates" in editor.options else None,
        }
        templates = editor.options.get("templates", ())
        if templates and editor.seed is None:
            edit["templates"] = templates
        if "hypernetwork" in editor.options:
            edit["hypernetwork"] = editor.options["hypernetwork"].digest()
        scores = {
            **runs.describe_model(editor.model),
            "ds_name": dataset.name.value,
            "dataset": dataset.source,
            "dataset_sha256": dataset.sha256,
            "generation_seed": generation.seed if generation else None,
        }
        if generation and generation.essence is EssenceTarget.NEW:
            scores["essence"] = generation.essence.value  # earlier runs used the true target
        moments = checks.describe_matches(editor.options.get("second_moments"))
        return cls(edit, scores, templates, moments, editor.model.source)

    def recorded(self) -> dict[str, Any]:
        """Returns the entries of run.json that other settings decide."""
        moments = {"second_moments": dict(self.second_moments)} if self.second_moments else {}
        return {"templates": list(self.templates), "model_source": self.model_source, **moments}
