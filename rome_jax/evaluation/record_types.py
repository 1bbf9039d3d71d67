"""Records to edit and to score: a request, and the prompts that measure its effects."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, TypeAlias

from rome_jax.data.request import EditRequest


class DatasetName(enum.StrEnum):
    """A data set, by the names of the original's flag."""

    CF = "cf"
    ZSRE = "zsre"


@dataclasses.dataclass(frozen=True)
class CounterFactRecord:
    """A counterfactual to write, and prompts that measure its effects.

    Attributes:
      request: The edit, with its `target_true`.
      paraphrase_prompts: Paraphrases of the rewrite prompt; the new target should follow.
      neighborhood_prompts: Prompts about other subjects with the same true target, which should not change.
      attribute_prompts: Prompts about other subjects, the true target of which is the new target.
      generation_prompts: Beginnings of texts about the subject.
      portability_prompts: Prompts and the targets that follow from the edit; few data sets have them.
      relation_id, target_new_id, target_true_id: Wikidata ids, by which reference texts are found; None if unknown.
      locality_prompts: Prompts that the edit should not affect, each with its own true target, unlike neighborhood
        prompts.
    """

    request: EditRequest
    paraphrase_prompts: tuple[str, ...]
    neighborhood_prompts: tuple[str, ...]
    attribute_prompts: tuple[str, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    portability_prompts: tuple[tuple[str, str], ...] = ()
    relation_id: str | None = None
    target_new_id: str | None = None
    target_true_id: str | None = None
    locality_prompts: tuple[tuple[str, str], ...] = ()

    @property
    def case_id(self) -> int:
        """The id of the record."""
        return self.request.case_id

    @property
    def target_true(self) -> str:
        """The true target, with which every record is scored.

        Raises:
          ValueError: If the request has none.
        """
        if self.request.target_true is None:
            raise ValueError(f"case {self.case_id} has no target_true: give one to score against.")
        return self.request.target_true

    @property
    def requested_rewrite(self) -> dict[str, Any]:
        """The edit in the layout of counterfact.json."""
        return {
            "prompt": self.request.prompt,
            "relation_id": self.relation_id,
            "target_new": {"str": self.request.target_new, "id": self.target_new_id},
            "target_true": {"str": self.request.target_true, "id": self.target_true_id},
            "subject": self.request.subject,
        }


@dataclasses.dataclass(frozen=True)
class ZsRERecord:
    """A question with a new answer, paraphrases of it, and unrelated questions.

    Attributes:
      request: The edit; its prompt is the question.
      paraphrase_prompts: Paraphrases of the question.
      locality_prompt: An unrelated question; None if there is none.
      locality_target: The answer to the unrelated question.
      locality_prompts: Further unrelated questions and their answers; zsRE itself has none.
      portability_prompts: Questions and the answers that follow from the edit; zsRE itself has none.
    """

    request: EditRequest
    paraphrase_prompts: tuple[str, ...]
    locality_prompt: str | None = None
    locality_target: str | None = None
    locality_prompts: tuple[tuple[str, str], ...] = ()
    portability_prompts: tuple[tuple[str, str], ...] = ()

    @property
    def unrelated(self) -> tuple[tuple[str, str], ...]:
        """All unrelated questions and their answers."""
        if self.locality_prompt is None or self.locality_target is None:
            return self.locality_prompts
        return ((self.locality_prompt, self.locality_target), *self.locality_prompts)

    @property
    def case_id(self) -> int:
        """The id of the record."""
        return self.request.case_id

    @property
    def requested_rewrite(self) -> dict[str, Any]:
        """The edit in the layout of the original's case files."""
        return {
            "prompt": self.request.prompt,
            "subject": self.request.subject,
            "target_new": {"str": self.request.target_new},
            "target_true": {"str": self.request.target_true},
        }


Record: TypeAlias = CounterFactRecord | ZsRERecord
