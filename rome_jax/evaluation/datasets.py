"""CounterFact and zsRE: records to edit and to score, from a file, from factworld or from the published files.

Three layouts are read: counterfact.json of Meng et al. 2022; the zsRE questions of MEND (Mitchell et al. 2022); and a
flat one of one paraphrase and one locality prompt a record, in which CounterFact is often passed on.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rome_jax.data import published
from rome_jax.data.published import PUBLISHED, DataError, Fields
from rome_jax.data.request import EditRequest, RequestError
from rome_jax.factworld import records as factworld
from rome_jax.factworld.facts import make_world
from rome_jax.factworld.records import Role
from rome_jax.models.registry import SHIPPED

FACTWORLD = "factworld"
_MAX_ID = 2**32  # ids are folded into PRNG keys
_NO_TRUE_TARGET = "<|endoftext|>"  # what the original takes for zsRE, which has none


class DatasetName(enum.StrEnum):
    """What to evaluate on, by the names of the original's flag."""

    CF = "cf"
    ZSRE = "zsre"


@dataclasses.dataclass(frozen=True)
class CounterFactRecord:
    """A counterfactual to write, and prompts that show what it does.

    Attributes:
      request: the edit, with its `target_true`.
      paraphrase_prompts: say the same about the subject; the new target should follow.
      neighborhood_prompts: about other subjects of the true target, which should stay.
      attribute_prompts: about other subjects, whose true target is the new one.
      generation_prompts: beginnings of texts about the subject.
      portability_prompts: prompts and the targets that follow from the edit; only factworld has them.
      relation_id, target_new_id, target_true_id: of Wikidata; reference texts are found by them. None if unknown.
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

    @property
    def case_id(self) -> int:
        """The record's number."""
        return self.request.case_id

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
    """A question to teach the answer of, the same in other words, and one about something else.

    Attributes:
      request: the edit; its prompt is the question.
      paraphrase_prompts: the question in other words.
      locality_prompt: another question.
      locality_target: its answer.
    """

    request: EditRequest
    paraphrase_prompts: tuple[str, ...]
    locality_prompt: str
    locality_target: str

    @property
    def case_id(self) -> int:
        """The record's number."""
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


Record = TypeVar("Record", CounterFactRecord, ZsRERecord)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Records and where they come from.

    Attributes:
      name: which of the two data sets.
      source: "factworld", the name of a file, or "published".
      sha256: of the file, or of all of factworld's records as JSON; a limit does not change it.
      records: all of one type, in the file's order.
    """

    name: DatasetName
    source: str
    sha256: str
    records: tuple[CounterFactRecord, ...] | tuple[ZsRERecord, ...]


def load_dataset(
    name: DatasetName,
    *,
    path: str | Path | None = None,
    model_name: str | None = None,
    limit: int | None = None,
    role: Role = Role.HELD_OUT,
    seed: int = 0,
) -> Dataset:
    """Loads records: from `path` if given, else factworld's own for its models, else from the published file.

    Args:
      name: which data set. A file for CF may have the layout of counterfact.json or the flat one.
      path: a JSON file.
      model_name: an embedded model's name means factworld's own requests.
      limit: the first so many records; all if None. Records beyond it are not checked.
      role: which of factworld's requests.
      seed: of factworld's split and targets; a file does not depend on it.

    Raises:
      DataError: a file that cannot be read, or a malformed record, by its case id and field.
      DownloadError: the published file cannot be fetched.
      ValueError: a limit below 1.

    Example:
      >>> load_dataset(DatasetName.CF, model_name="factworld-gpt2", limit=2).records[0].request.prompt
      '{} plays the sport of'
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: take at least one record, or leave it out to take all.")
    if path is None and model_name in SHIPPED:
        world = make_world()
        if name is DatasetName.CF:
            records = factworld.counterfact_records(world, seed, role)
        else:
            records = factworld.zsre_records(world, seed, role)
        canonical = json.dumps(records, sort_keys=True, ensure_ascii=False).encode()
        sha256 = hashlib.sha256(canonical).hexdigest()
        return Dataset(name, FACTWORLD, sha256, _parse(name, records[:limit]))
    if path is None:
        file = published.COUNTERFACT if name is DatasetName.CF else published.ZSRE
        path, source = published.fetch(file), PUBLISHED
    else:
        path = Path(path).expanduser()
        source = path.name
    records, sha256 = published.read_json(path)
    try:
        parsed = _parse(name, records[:limit] if isinstance(records, list) else records)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return Dataset(name, source, sha256, parsed)


def parse_counterfact(records: Any) -> tuple[CounterFactRecord, ...]:
    """Checks parsed records in the layout of counterfact.json.

    Ids may be missing or null, and lists of prompts empty. A record without `case_id` gets its index.

    Raises:
      DataError: no list, an empty one, or a malformed record, by its case id (or index) and field.

    Example:
      >>> rewrite = {"prompt": "{} is in", "subject": "Rome", "target_new": {"str": "France"}}
      >>> rewrite["target_true"] = {"str": "Italy"}
      >>> prompts = {"paraphrase_prompts": ["Rome lies in"], "neighborhood_prompts": []}
      >>> parse_counterfact([{"case_id": 3, "requested_rewrite": rewrite, **prompts}])[0].request.text
      'Rome is in'
    """
    return _parse_each(records, _counterfact)


def parse_one_paraphrase(records: Any) -> tuple[CounterFactRecord, ...]:
    """Checks parsed records in the flat layout.

    Fields: `prompt` with the subject in it or `{}` in its place, `subject`, `target_new`, `ground_truth`,
    `rephrase_prompt`; `locality_prompt` and `locality_ground_truth` may be missing, and so may `case_id` (the index
    then). Both targets may be a list of one text. The subject's first occurrence in `prompt` is what is looked up.

    Raises:
      DataError: no list, an empty one, or a malformed record, by its case id (or index) and field. Neighborhood prompts
        are scored with the record's true target, so another `locality_ground_truth` is an error too.

    Example:
      >>> record = {"prompt": "Rome is in", "subject": "Rome", "target_new": "France", "ground_truth": ["Italy"]}
      >>> record |= {"rephrase_prompt": "Rome lies in", "locality_prompt": "Milan is in"}
      >>> parse_one_paraphrase([record])[0].request.prompt
      '{} is in'
    """
    return _parse_each(records, _one_paraphrase)


def parse_zsre(records: Any) -> tuple[ZsRERecord, ...]:
    """Checks parsed records in MEND's zsRE layout.

    The prompt is `src` with the subject's first occurrence as `{}`, and the new target the first of `answers`. A record
    without `case_id`, as in the published file, gets its index.

    Raises:
      DataError: no list, an empty one, or a malformed record, by its case id (or index) and field.

    Example:
      >>> record = {"subject": "Rome", "src": "Where is Rome?", "rephrase": "What country is Rome in?"}
      >>> record |= {"answers": ["Italy"], "loc": "nq question: who wrote emma", "loc_ans": "Jane Austen"}
      >>> parse_zsre([record])[0].locality_prompt
      'nq question: who wrote emma?'
    """
    return _parse_each(records, _zsre)


def _parse(
    name: DatasetName, records: Any
) -> tuple[CounterFactRecord, ...] | tuple[ZsRERecord, ...]:
    """Checks records of a data set in whichever layout the first one has."""
    if name is DatasetName.ZSRE:
        return parse_zsre(records)
    first = records[0] if isinstance(records, list) and records else None
    if isinstance(first, dict) and "requested_rewrite" not in first:
        if "src" in first:
            raise DataError("these are records of zsRE: give ds_name=zsre.")
        return parse_one_paraphrase(records)
    return parse_counterfact(records)


def _parse_each(records: Any, parse_one: Callable[[Fields, int], Record]) -> tuple[Record, ...]:
    if not isinstance(records, list) or not records:
        raise DataError("records are a JSON list with at least one: give such a file.")
    parsed: dict[int, Record] = {}
    for index, record in enumerate(records):
        case_id = Fields.of(record, f"record {index}").values.get("case_id", index)
        if isinstance(case_id, bool) or not isinstance(case_id, int) or not 0 <= case_id < _MAX_ID:
            raise DataError(
                f"record {index}: case_id is {case_id!r}; give an integer from 0 to {_MAX_ID - 1}."
            )
        if case_id in parsed:
            raise DataError(
                f"record {index}: case_id {case_id} is that of an earlier record too; give each its own."
            )
        try:
            parsed[case_id] = parse_one(Fields(record, f"case {case_id}"), case_id)
        except RequestError as error:
            raise DataError(f"case {case_id}: {error}") from error
    return tuple(parsed.values())


def _counterfact(fields: Fields, case_id: int) -> CounterFactRecord:
    rewrite = fields.object("requested_rewrite")
    new, true = rewrite.object("target_new"), rewrite.object("target_true")
    request = EditRequest(
        prompt=rewrite.text("prompt"),
        subject=rewrite.text("subject"),
        target_new=new.text("str"),
        target_true=true.text("str"),
        case_id=case_id,
    )
    return CounterFactRecord(
        request,
        paraphrase_prompts=fields.texts("paraphrase_prompts"),
        neighborhood_prompts=fields.texts("neighborhood_prompts"),
        attribute_prompts=fields.texts("attribute_prompts", optional=True),
        generation_prompts=fields.texts("generation_prompts", optional=True),
        portability_prompts=tuple(
            (pair.text("prompt"), pair.text("target"))
            for pair in fields.objects("portability_prompts", optional=True)
        ),
        relation_id=rewrite.optional_text("relation_id"),
        target_new_id=new.optional_text("id"),
        target_true_id=true.optional_text("id"),
    )


def _one_paraphrase(fields: Fields, case_id: int) -> CounterFactRecord:
    subject, true = fields.text("subject"), fields.one_text("ground_truth")
    request = EditRequest(
        prompt=fields.template("prompt", subject, slot=True),
        subject=subject,
        target_new=fields.one_text("target_new"),
        target_true=true,
        case_id=case_id,
    )
    locality = fields.optional_text("locality_prompt")
    if fields.values.get("locality_ground_truth") is not None:
        answer = fields.one_text("locality_ground_truth")
        if answer != true:
            raise fields.error(
                "locality_ground_truth",
                f"neighborhood prompts are scored with ground_truth, {true!r}: give a locality_prompt of that "
                "answer, or none",
            )
    return CounterFactRecord(
        request,
        paraphrase_prompts=(fields.text("rephrase_prompt"),),
        neighborhood_prompts=() if locality is None else (locality,),
    )


def _zsre(fields: Fields, case_id: int) -> ZsRERecord:
    subject, answers = fields.text("subject"), fields.texts("answers")
    if not answers:
        raise fields.error("answers", "give at least the one to edit towards")
    request = EditRequest(
        prompt=fields.template("src", subject, slot=False),
        subject=subject,
        target_new=answers[0],
        target_true=_NO_TRUE_TARGET,
        case_id=case_id,
    )
    return ZsRERecord(
        request,
        paraphrase_prompts=(fields.text("rephrase"),),
        locality_prompt=fields.text("loc") + "?",
        locality_target=fields.text("loc_ans"),
    )
