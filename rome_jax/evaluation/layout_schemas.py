"""Schemas of the layouts in which facts to edit are published: the fields that are read, and their types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NotRequired, TypeAlias

import pydantic
from typing_extensions import TypedDict

from rome_jax.files.records import Text

_MAX_ID = 2**32  # ids are folded into PRNG keys


def _first_alias(value: Any) -> Any:
    """Returns the first of a list of names for one answer, as the original takes the first of zsRE's answers."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return value


def _as_groups(value: Any) -> Any:
    """Brings the layouts of locality and portability prompts to one: groups of {"prompt", "ground_truth"} by name."""
    if isinstance(value, Mapping) and "New Question" in value:
        question = {"prompt": value["New Question"], "ground_truth": value.get("New Answer")}
        return {"New Question": [question]}
    return {"": value} if isinstance(value, list) else value


def _as_probes(value: Any) -> Any:
    """Makes a list of pairs of a pair of lists, or of a single pair."""
    if not (isinstance(value, Mapping) and value.keys() >= {"prompt", "ground_truth"}):
        return value
    prompts, answers = value["prompt"], value["ground_truth"]
    if isinstance(prompts, list) and isinstance(answers, list) and len(prompts) == len(answers):
        pairs = zip(prompts, answers, strict=True)
        return [{"prompt": prompt, "ground_truth": answer} for prompt, answer in pairs]
    return [value]


Texts: TypeAlias = tuple[Text, ...]
Answer: TypeAlias = Annotated[Text, pydantic.BeforeValidator(_first_alias)]
CaseId = Annotated[int, pydantic.Field(ge=0, lt=_MAX_ID)]


class Probe(TypedDict):
    """A prompt and the answer that it should have."""

    prompt: Text
    ground_truth: Answer


class Consequence(TypedDict):
    """A prompt and the target that follows from an edit."""

    prompt: Text
    target: Text


Groups: TypeAlias = Annotated[
    dict[str, Annotated[list[Probe], pydantic.BeforeValidator(_as_probes)] | None],
    pydantic.BeforeValidator(_as_groups),
]
OptionalText: TypeAlias = str | None


class Target(TypedDict):
    """A target and its Wikidata id."""

    str: Text
    id: NotRequired[OptionalText]


class Rewrite(TypedDict):
    """An edit of counterfact.json."""

    prompt: Text
    subject: Text
    target_new: Target
    target_true: Target
    relation_id: NotRequired[str | None]


class Probed(TypedDict):
    """Prompts that several layouts add to a fact."""

    locality: NotRequired[Groups | None]
    portability: NotRequired[Groups | None]


class Listed(Probed):
    """Lists of prompts that counterfact.json adds to a fact."""

    attribute_prompts: NotRequired[Texts | None]
    generation_prompts: NotRequired[Texts | None]
    portability_prompts: NotRequired[list[Consequence] | None]


class CounterFact(Listed):
    """A record of counterfact.json."""

    requested_rewrite: Rewrite
    paraphrase_prompts: Texts
    neighborhood_prompts: Texts


class Question(Probed):
    """A question of MEND's zsRE."""

    subject: Text
    src: Text
    rephrase: Text
    answers: Annotated[Texts, pydantic.Field(min_length=1)]
    loc: Text
    loc_ans: Text


class FlatLists(Listed):
    """The same lists where any may be missing."""

    paraphrase_prompts: NotRequired[Texts | None]
    neighborhood_prompts: NotRequired[Texts | None]
    relation_id: NotRequired[str | None]


class Flat(FlatLists):
    """A fact with its prompts next to it, as EasyEdit and KnowEdit store it."""

    prompt: Text
    subject: Text
    target_new: Answer
    ground_truth: NotRequired[Answer | None]
    target_true: NotRequired[Answer | None]
    rephrase_prompt: NotRequired[Texts | None]
    rephrase: NotRequired[Texts | None]
    locality_prompt: NotRequired[Text | None]
    locality_ground_truth: NotRequired[Answer | None]


class Biography(Probed):
    """A sentence of KnowEdit's WikiBio, which replaces an invented one."""

    concept: Text
    text: Text
    labels: Text


class Row(FlatLists):
    """A row of CounterFact for tracing."""

    prompt: Text
    subject: Text
    target_true: Text
    target_false: Text
    target_true_id: NotRequired[str | None]
    target_false_id: NotRequired[str | None]


class QuestionedRewrite(Rewrite):
    """An edit of MQuAKE."""

    question: NotRequired[Text | None]


class MultiHop(TypedDict):
    """A record of MQuAKE: an edit, and questions with answers that follow from it."""

    requested_rewrite: Annotated[list[QuestionedRewrite], pydantic.Field(min_length=1)]
    questions: NotRequired[Texts | None]
    new_answer: NotRequired[Text | None]
