"""How many of the edits in a model hold, by the likelihood of the targets and by what the model writes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from rome_jax.data.tokens import pad
from rome_jax.evaluation.metrics import accuracy
from rome_jax.evaluation.record_types import Record, ZsRERecord
from rome_jax.evaluation.scoring import (
    MAX_TOKENS,
    TargetScore,
    make_queries,
    prompt_ids,
    score_queries,
)
from rome_jax.models.generate import generate
from rome_jax.models.registry import LanguageModel

NEWEST = 10
"""Smallest number of edits that count as the newest; a larger batch counts whole."""
SAMPLE = 50
"""Largest number of records of a group that are scored."""
NEW_TOKENS = 12
"""Number of tokens that are generated after a prompt."""

_KINDS = ("efficacy", "paraphrase", "neighborhood")
_ROWS = 32  # texts that are generated at once


@dataclasses.dataclass(frozen=True)
class GroupScores:
    """Scores of a group of edits. Rates are over prompts, in percent; None if there are no such prompts.

    The records of zsRE have no second target. Their prompts are questions, their neighbors are the locality questions,
    and the desired target of a neighbor is its own answer.

    Attributes:
      records: Number of records that were scored.
      of: Number of records in the group, of which these are a sample.
      efficacy: Rewrite prompts after which the new target is more likely than the true one. For zsRE, the accuracy: the
        mean over prompts of the share of the target's tokens that are the most likely ones, each given those before it,
        as in the columns ET, PT and ST of an evaluation.
      paraphrase: The same for paraphrases.
      neighborhood: Neighborhood prompts about unedited facts after which the true target is more likely. For zsRE, the
        accuracy on the locality questions.
      efficacy_generated, paraphrase_generated, neighborhood_generated: Prompts whose greedy continuation of at most 12
        tokens has the desired target before the other one; see `answers_first`. For zsRE, those whose continuation has
        the desired target.
      neighbors: Number of neighborhood prompts that were scored.
      neighbors_edited: Number of neighborhood prompts that were left out because their own fact was edited.
    """

    records: int
    of: int
    efficacy: float | None
    paraphrase: float | None
    neighborhood: float | None
    efficacy_generated: float | None
    paraphrase_generated: float | None
    neighborhood_generated: float | None
    neighbors: int
    neighbors_edited: int


@dataclasses.dataclass(frozen=True)
class _Question:
    """A prompt with the target that should follow, and the one that should not, which zsRE lacks."""

    group: str
    kind: str
    prompt: str
    desired: str
    other: str | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets to score, the desired one first."""
        return (self.desired,) if self.other is None else (self.desired, self.other)


def split_newest(
    records: Sequence[Record], batch_size: int
) -> tuple[Sequence[Record], Sequence[Record]]:
    """Splits the edits so far into the newest ones, which are the last batch and at least the last ten, and the others.

    Args:
      records: The edits so far, in their order.
      batch_size: Number of edits in a batch.

    Returns:
      The newest and the earlier ones.

    Example:
      >>> newest, earlier = split_newest(range(30), batch_size=1)
      >>> len(newest), len(earlier)
      (10, 20)
    """
    count = max(NEWEST, batch_size)
    return records[-count:], records[:-count]


def draw_sample(records: Sequence[Record], limit: int, seed: Sequence[int]) -> Sequence[Record]:
    """Draws records without replacement; all of them if there are no more than the limit.

    Args:
      records: The records.
      limit: Largest number to draw.
      seed: Whole numbers of 0 or more that decide the draw.

    Returns:
      The records in their order.

    Example:
      >>> draw_sample(range(100), 4, [0, 100])
      [23, 51, 63, 86]
    """
    if len(records) <= limit:
        return records
    drawn = np.random.default_rng(list(seed)).choice(len(records), limit, replace=False)
    return [records[index] for index in sorted(drawn.tolist())]


def answers_first(text: str, desired: str, other: str | None = None) -> bool:
    """Returns whether a text holds the desired answer as whole words, and does not hold the other answer before it.

    Case and the kind of white space do not matter. If both answers begin at the same place, as New York and New York
    City do, the text gives the longer one.

    Args:
      text: What a model writes after a prompt.
      desired, other: The two answers; without another one, the text has to hold the desired one.

    Example:
      >>> answers_first(" tennis. He likes rowing.", "tennis", "rowing")
      True
      >>> answers_first(" rowing, not tennis", "tennis", "rowing")
      False
    """
    own = _place(text, desired)
    before = None if other is None else _place(text, other)
    return own is not None and (before is None or own < before)


def _place(text: str, answer: str) -> tuple[int, int] | None:
    """Returns where an answer begins, and its negative length; None if the text does not hold it."""
    words = r"\s+".join(map(re.escape, answer.casefold().split()))
    match = re.search(rf"(?<!\w){words}(?!\w)", text.casefold())
    return None if match is None else (match.start(), -len(words))


def score_groups(
    model: LanguageModel,
    groups: Mapping[str, tuple[Sequence[Record], int]],
    edited: Collection[str],
    *,
    max_tokens: int = MAX_TOKENS,
) -> dict[str, GroupScores]:
    """Scores groups of edits by the likelihood of the targets, and by what the model writes.

    Args:
      model: The model with all edits.
      groups: Records to score, and how many records they are a sample of, by the name of the group.
      edited: Prompts that ask for edited facts; see `rome_jax.evaluation.sequence.edited_prompts`.
      max_tokens: Token columns in one forward pass; bounds the memory.

    Returns:
      The scores by the name of the group.

    Raises:
      ValueError: If a record of CounterFact has no true target.
      SequenceTooLongError: If a prompt does not fit the context together with a target or its continuation.

    Example:
      >>> from rome_jax.evaluation import load_dataset
      >>> records = load_dataset("cf", model_name="factworld-gpt2", limit=2).records
      >>> scores = score_groups(model, {"newest": (records, 2)}, set())["newest"]
      >>> scores.efficacy, scores.neighborhood
      (0.0, 100.0)
    """
    asked = [
        question
        for name, (records, _) in groups.items()
        for record in records
        for question in _questions(name, record, edited)
    ]
    prompts = [one.prompt for one in asked]
    queries = make_queries(model, prompts, [one.targets for one in asked])
    forced = [_success(*scores) for scores in score_queries(model, queries, max_tokens=max_tokens)]
    texts = continuations(model, prompts)
    written = [
        answers_first(text, one.desired, one.other) for one, text in zip(asked, texts, strict=True)
    ]
    found = {}
    for name, (records, count) in groups.items():
        rates = {
            kind + suffix: _percent(
                hit
                for hit, one in zip(hits, asked, strict=True)
                if (one.group, one.kind) == (name, kind)
            )
            for suffix, hits in (("", forced), ("_generated", written))
            for kind in _KINDS
        }
        neighbors = [one.prompt for record in records for one in _neighbors(name, record)]
        left_out = sum(prompt in edited for prompt in neighbors)
        found[name] = GroupScores(
            records=len(records),
            of=count,
            neighbors=len(neighbors) - left_out,
            neighbors_edited=left_out,
            **rates,
        )
    return found


def _questions(group: str, record: Record, edited: Collection[str]) -> list[_Question]:
    """Returns the questions about one record, without those about neighbors whose own fact was edited."""
    new = record.request.target_new
    other = None if isinstance(record, ZsRERecord) else record.target_true
    return [
        _Question(group, "efficacy", record.request.text, new, other),
        *(_Question(group, "paraphrase", p, new, other) for p in record.paraphrase_prompts),
        *(one for one in _neighbors(group, record) if one.prompt not in edited),
    ]


def _neighbors(group: str, record: Record) -> list[_Question]:
    """Returns the questions about all neighbors of a record."""
    if isinstance(record, ZsRERecord):
        return [_Question(group, "neighborhood", *unrelated) for unrelated in record.unrelated]
    targets = record.target_true, record.request.target_new
    return [_Question(group, "neighborhood", p, *targets) for p in record.neighborhood_prompts]


def _success(wanted: TargetScore, unwanted: TargetScore | None = None) -> float:
    """Returns whether the wanted target is the more likely one; if there is no other, its accuracy."""
    if unwanted is None:
        return accuracy(wanted.hits)
    return float(wanted.nll < unwanted.nll)


def _percent(hits: Iterable[float]) -> float | None:
    """Returns the mean of hits, from 0 to 1 each, in percent; None if there are none to count."""
    values = list(hits)
    return 100 * sum(values) / len(values) if values else None


def continuations(
    model: LanguageModel, prompts: Sequence[str], num_tokens: int = NEW_TOKENS
) -> list[str]:
    """Returns what a model writes after each prompt, by greedy decoding.

    Args:
      model: The model.
      prompts: The prompts.
      num_tokens: Number of tokens to generate.

    Raises:
      SequenceTooLongError: If a prompt does not fit the context together with its continuation.

    Example:
      >>> continuations(model, ["Gothulf Punby plays the sport of"], 2)
      [' rowing.']
    """
    ids = prompt_ids(model, prompts)
    # Prompts of similar length share a generation: the longest one decides the number of columns in its cache.
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    texts: dict[int, str] = {}
    for start in range(0, len(order), _ROWS):
        part = order[start : start + _ROWS]
        rows = np.resize(part, _ROWS)  # a short batch is filled up, so that few shapes are compiled
        batch = pad([ids[row] for row in rows])
        out = generate(model.params, model.config, batch, max_new_tokens=num_tokens)
        written = out.texts(model.tokenizer, with_prompt=False)
        texts |= zip(part, written, strict=False)
    return [texts[index] for index in range(len(prompts))]
