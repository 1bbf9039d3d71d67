"""The layouts in which facts to edit are published, and how each becomes a record.

A layout is a schema of the fields that are read, and a function from checked fields to a record. Fields that no score
needs are ignored. Fields with prompts that would not be scored are refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from rome_jax.data.request import SLOT, EditRequest, RequestError
from rome_jax.evaluation.layout_schemas import (
    Biography,
    CaseId,
    CounterFact,
    Flat,
    MultiHop,
    Probe,
    Question,
    Rewrite,
    Row,
)
from rome_jax.evaluation.record_types import CounterFactRecord, DatasetName, Record, ZsRERecord
from rome_jax.files.checked import check, listed, shown
from rome_jax.files.records import DataError

_NO_TRUE_TARGET = "<|endoftext|>"  # the original's placeholder for zsRE, which has no true targets


def _template(text: str, subject: str, name: str, *, slot: bool = True) -> str:
    """Replaces the subject's first occurrence in a text by `{}`, which with `slot` the text may already have."""
    if slot and SLOT in text:
        return text
    if subject not in text:
        raise DataError(f"{name}={shown(text)}: give a text with the subject, {subject!r}, in it.")
    return text.replace(subject, SLOT, 1)


def _pairs(groups: Mapping[str, list[Probe] | None] | None) -> tuple[tuple[str, str], ...]:
    """Returns the prompts and answers of all groups."""
    lists = (probes or () for probes in (groups or {}).values())
    return tuple((probe["prompt"], probe["ground_truth"]) for probes in lists for probe in probes)


def _lists(fields: Any) -> dict[str, Any]:
    """Returns the prompts of a record by the names of `CounterFactRecord`."""
    names = (
        "paraphrase_prompts",
        "neighborhood_prompts",
        "attribute_prompts",
        "generation_prompts",
    )
    consequences = fields.get("portability_prompts") or ()
    follow = tuple((one["prompt"], one["target"]) for one in consequences)
    return {name: fields.get(name) or () for name in names} | {
        "portability_prompts": (*follow, *_pairs(fields.get("portability"))),
        "locality_prompts": _pairs(fields.get("locality")),
    }


def _ids(rewrite: Rewrite) -> dict[str, Any]:
    """Returns the Wikidata ids of an edit by the names of `CounterFactRecord`."""
    return {
        "relation_id": rewrite.get("relation_id"),
        "target_new_id": rewrite["target_new"].get("id"),
        "target_true_id": rewrite["target_true"].get("id"),
    }


def _counterfact(fields: CounterFact, case_id: int) -> CounterFactRecord:
    """Builds a record from counterfact.json."""
    rewrite = fields["requested_rewrite"]
    return CounterFactRecord(_request(rewrite, case_id), **_lists(fields), **_ids(rewrite))


def _request(rewrite: Rewrite, case_id: int) -> EditRequest:
    """Builds the request of an edit of counterfact.json."""
    return EditRequest(
        prompt=rewrite["prompt"],
        subject=rewrite["subject"],
        target_new=rewrite["target_new"]["str"],
        target_true=rewrite["target_true"]["str"],
        case_id=case_id,
    )


def _multi_hop(fields: MultiHop, case_id: int) -> CounterFactRecord:
    """Builds a record from MQuAKE; its question is a paraphrase, and the multi-hop questions measure portability."""
    rewrite, *others = fields["requested_rewrite"]
    if others:
        raise DataError(
            f"case {case_id}: requested_rewrite holds {len(others) + 1} edits, and each case is one edit on the "
            "original model: leave out the cases with several."
        )
    questions, answer = fields.get("questions") or (), fields.get("new_answer")
    if questions and answer is None:
        raise DataError(f"case {case_id}: new_answer is missing: give the answer to questions.")
    question = rewrite.get("question")
    return CounterFactRecord(
        _request(rewrite, case_id),
        paraphrase_prompts=() if question is None else (question,),
        neighborhood_prompts=(),
        portability_prompts=tuple((one, str(answer)) for one in questions),
        **_ids(rewrite),
    )


def _flat_counterfact(fields: Flat, case_id: int) -> CounterFactRecord:
    """Builds a record with a true target from a flat one."""
    record = CounterFactRecord(
        _flat_request(fields, case_id),
        **_lists(fields) | {"paraphrase_prompts": _paraphrases(fields)},
        relation_id=fields.get("relation_id"),
    )
    true = record.request.target_true
    if true is None:
        raise DataError(
            f"case {case_id}: ground_truth is missing: give it, or give ds_name=zsre, which needs no true target."
        )
    prompt, answer = fields.get("locality_prompt"), fields.get("locality_ground_truth")
    if prompt is None:
        return record
    if answer is None or answer == true:  # a neighbor, as in CounterFact
        return dataclasses.replace(
            record, neighborhood_prompts=(*record.neighborhood_prompts, prompt)
        )
    return dataclasses.replace(
        record, locality_prompts=((prompt, answer), *record.locality_prompts)
    )


def _flat_question(fields: Flat, case_id: int) -> ZsRERecord:
    """Builds a record that is scored by accuracies from a flat one."""
    request, lists = _flat_request(fields, case_id), _lists(fields)
    true, prompt = request.target_true, fields.get("locality_prompt")
    neighbors = [(one, true) for one in lists["neighborhood_prompts"]]
    if prompt is not None:
        neighbors.append((prompt, fields.get("locality_ground_truth") or true))
    if any(answer is None for _, answer in neighbors):
        raise DataError(f"case {case_id}: locality_ground_truth is missing: give it.")
    if true is None:
        request = dataclasses.replace(request, target_true=_NO_TRUE_TARGET)
    answered = tuple((one, str(answer)) for one, answer in neighbors)
    return ZsRERecord(
        request,
        _paraphrases(fields),
        locality_prompts=(*answered, *lists["locality_prompts"]),
        portability_prompts=lists["portability_prompts"],
    )


def _flat_request(fields: Flat, case_id: int) -> EditRequest:
    """Builds the request of a flat record."""
    return EditRequest(
        prompt=_template(fields["prompt"], fields["subject"], f"case {case_id}: prompt"),
        subject=fields["subject"],
        target_new=fields["target_new"],
        target_true=fields.get("ground_truth") or fields.get("target_true"),
        case_id=case_id,
    )


def _paraphrases(fields: Flat) -> tuple[str, ...]:
    """Returns the paraphrases of a flat record, which have several names."""
    names = ("rephrase_prompt", "rephrase", "paraphrase_prompts")
    lists: list[tuple[str, ...]] = [fields.get(name) or () for name in names]  # type: ignore[misc]
    return tuple(prompt for prompts in lists for prompt in prompts)


def _zsre(fields: Question, case_id: int) -> ZsRERecord:
    """Builds a record from MEND's zsRE."""
    request = EditRequest(
        prompt=_template(fields["src"], fields["subject"], f"case {case_id}: src", slot=False),
        subject=fields["subject"],
        target_new=fields["answers"][0],
        target_true=_NO_TRUE_TARGET,
        case_id=case_id,
    )
    return ZsRERecord(
        request,
        (fields["rephrase"],),
        fields["loc"] + "?",
        fields["loc_ans"],
        _pairs(fields.get("locality")),
        _pairs(fields.get("portability")),
    )


def _biography(fields: Biography, case_id: int) -> ZsRERecord:
    """Builds a record from WikiBio: the sentence that should follow a text about a person."""
    text, concept = fields["text"].rstrip(), fields["concept"].strip()
    request = EditRequest(
        prompt=_template(text, concept, f"case {case_id}: text", slot=False),
        subject=concept,
        target_new=fields["labels"].rstrip(),
        target_true=_NO_TRUE_TARGET,
        case_id=case_id,
    )
    return ZsRERecord(
        request,
        (),
        locality_prompts=_pairs(fields.get("locality")),
        portability_prompts=_pairs(fields.get("portability")),
    )


def _row(fields: Row, case_id: int) -> CounterFactRecord:
    """Builds a record from a row for tracing; subjects and targets have leading spaces there."""
    subject = fields["subject"].strip()
    request = EditRequest(
        prompt=_template(fields["prompt"].rstrip(), subject, f"case {case_id}: prompt"),
        subject=subject,
        target_new=fields["target_false"].strip(),
        target_true=fields["target_true"].strip(),
        case_id=case_id,
    )
    return CounterFactRecord(
        request,
        **_lists(fields),
        relation_id=fields.get("relation_id"),
        target_new_id=fields.get("target_false_id"),
        target_true_id=fields.get("target_true_id"),
    )


@dataclasses.dataclass(frozen=True)
class Layout:
    """A layout of records.

    Attributes:
      name: What its records are called in errors.
      mark: The field by which they are recognized.
      schema: The fields that are read.
      builders: How a checked record becomes one that is scored as CounterFact or as zsRE is.
      unscored: Fields with prompts that are known not to be scored.
    """

    name: str
    mark: str
    schema: Any
    builders: Mapping[DatasetName, Callable[[Any, int], Record]]
    unscored: frozenset[str] = frozenset()

    def parse(self, records: Any, name: DatasetName) -> tuple[Any, ...]:
        """Checks each record of a list and builds what is scored.

        Args:
          records: The records as they were read.
          name: How they are scored.

        Raises:
          DataError: If there is no record, one is malformed, or two have the same case id.
        """
        if name not in self.builders:
            (other,) = self.builders
            raise DataError(f"these are {self.name} records: give ds_name={other}.")
        if not isinstance(records, list) or not records:
            raise DataError("there are no records: give a list with at least one record.")
        built: dict[int, Record] = {}
        for index, record in enumerate(records):
            record = check(dict, record, f"record {index}", error=DataError)
            given = record.get("case_id")
            case_id = index if given is None else given
            case_id = check(CaseId, case_id, f"record {index}: case_id", error=DataError)
            if case_id in built:
                raise DataError(
                    f"record {index}: case_id {case_id} is also that of an earlier record; give each record its own."
                )
            fields = check(self.schema, record, f"case {case_id}", error=DataError)
            self._refuse_unscored(record, case_id)
            try:
                built[case_id] = self.builders[name](fields, case_id)
            except RequestError as error:
                raise DataError(f"case {case_id}: {error}") from error
        return tuple(built.values())

    def _refuse_unscored(self, record: Mapping[str, Any], case_id: int) -> None:
        """Refuses a record with prompts in a field that is not read."""
        unread = record.keys() - self.schema.__annotations__.keys() - self.unscored
        if fields := sorted(name for name in unread if _has_prompts(name, record[name])):
            raise DataError(
                f"case {case_id}: {listed(fields)} would not be scored: remove it, or bring it into one of the "
                f"layouts that are read ({described()})."
            )


def _has_prompts(name: str, value: Any, depth: int = 8) -> bool:
    """Returns whether a field holds prompts, by its name and the names of the fields in it, up to a depth."""
    if not value or not isinstance(value, list | dict) or not depth:
        return False
    names = {"locality", "portability", "prompt", "prompts", "question", "questions"}
    if name.lower() in names or name.lower().endswith(("_prompts", "_questions")):
        return True
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return any(str(key).lower() in names or _has_prompts("", one, depth - 1) for key, one in inner)


COUNTERFACT = Layout(
    "CounterFact", "requested_rewrite", CounterFact, {DatasetName.CF: _counterfact}
)
MULTI_HOP = Layout(
    "MQuAKE",
    "requested_rewrite",
    MultiHop,
    {DatasetName.CF: _multi_hop},
    unscored=frozenset({"single_hops", "new_single_hops"}),
)
ZSRE = Layout("zsRE", "src", Question, {DatasetName.ZSRE: _zsre})
BIOGRAPHY = Layout("WikiBio", "concept", Biography, {DatasetName.ZSRE: _biography})
ROW = Layout("CounterFact tracing", "target_false", Row, {DatasetName.CF: _row})
FLAT = Layout(
    "flat",
    "prompt",
    Flat,
    {DatasetName.CF: _flat_counterfact, DatasetName.ZSRE: _flat_question},
)
# In the order in which they are tried.
LAYOUTS = (COUNTERFACT, ZSRE, BIOGRAPHY, ROW, FLAT)


def described() -> str:
    """Names the layouts and the fields by which they are recognized."""
    return "; ".join(
        (
            "CounterFact and MQuAKE: requested_rewrite",
            "zsRE: src",
            "WikiBio: concept, text, labels",
            "rows of CounterFact for tracing: target_false",
            "EasyEdit, KnowEdit and other flat records: prompt, subject, target_new",
        )
    )


def recognize(records: Any) -> Layout:
    """Recognizes the layout of records by the fields of the first one.

    Args:
      records: The records as they were read.

    Raises:
      DataError: If it is none that is read.

    Example:
      >>> recognize([{"src": "Where is Rome?", "answers": ["Italy"]}]).name
      'zsRE'
    """
    first = records[0] if isinstance(records, list) and records else None
    if not isinstance(first, dict):
        return COUNTERFACT  # which refuses them
    if found := sorted({"pre", "post"} & first.keys()):
        raise DataError(
            f"record 0 has {' and '.join(found)}, so these are results of an evaluation: give the data set that was "
            "evaluated."
        )
    for layout in LAYOUTS:
        if layout.mark in first:
            several = layout is COUNTERFACT and isinstance(first[layout.mark], list)
            return MULTI_HOP if several else layout
    raise DataError(
        f"record 0 has {f'the fields {listed(first)}' if first else 'no fields'}: give one of the layouts that are "
        f"read ({described()})."
    )
