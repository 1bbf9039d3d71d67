"""CounterFact and zsRE: records to edit and to score, from a file, from factworld or from the published files.

Three layouts are supported: counterfact.json of Meng et al. 2022, the zsRE questions of MEND (Mitchell et al. 2022),
and a flat layout with one paraphrase and one locality prompt per record, in which CounterFact is often redistributed.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from rome_jax.data import published
from rome_jax.data.published import PUBLISHED, DataError, Fields
from rome_jax.data.request import EditRequest, RequestError
from rome_jax.factworld import records as factworld
from rome_jax.factworld.facts import make_world
from rome_jax.factworld.records import Role
from rome_jax.models.registry import SHIPPED

FACTWORLD = "factworld"
_MAX_ID = 2**32  # ids are folded into PRNG keys
_NO_TRUE_TARGET = "<|endoftext|>"  # the original's placeholder for zsRE, which has no true targets


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
      portability_prompts: Prompts and the targets that follow from the edit; only factworld has them.
      relation_id, target_new_id, target_true_id: Wikidata ids, by which reference texts are found; None if unknown.
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
    """A question with a new answer, paraphrases of it, and an unrelated question.

    Attributes:
      request: The edit; its prompt is the question.
      paraphrase_prompts: Paraphrases of the question.
      locality_prompt: An unrelated question.
      locality_target: The answer to the unrelated question.
    """

    request: EditRequest
    paraphrase_prompts: tuple[str, ...]
    locality_prompt: str
    locality_target: str

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
_Parsed = TypeVar("_Parsed", CounterFactRecord, ZsRERecord)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Records and where they come from.

    Attributes:
      name: Which of the two data sets.
      source: "factworld", the name of a file, or "published".
      sha256: Checksum of the file, or of all of factworld's records as JSON; a limit does not change it.
      records: Records of one type, in the order of the file.
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
      name: Which data set. A file for CF may have the layout of counterfact.json or the flat one.
      path: A JSON file.
      model_name: Name of the model; a factworld model gets factworld's own requests.
      limit: Load only the first `limit` records; by default all. Further records are not checked.
      role: Which of factworld's requests to load.
      seed: Seed of factworld's split and targets; it has no effect on a file.

    Raises:
      DataError: If a file cannot be read or a record is malformed; the message names its case id and field.
      DownloadError: If the published file cannot be downloaded.
      ValueError: If the limit is below 1.

    Example:
      >>> load_dataset(DatasetName.CF, model_name="factworld-gpt2", limit=2).records[0].request.prompt
      '{} plays the sport of'
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: load at least one record, or leave it out to load all.")
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
    """Parses records in the layout of counterfact.json.

    Ids may be missing or null, and lists of prompts may be empty. A record without `case_id` gets its index.

    Args:
      records: The list that was read from JSON.

    Raises:
      DataError: If `records` is not a list with at least one record, or a record is malformed; the message names its
        case id or index and the field.

    Example:
      >>> rewrite = {"prompt": "{} is in", "subject": "Rome", "target_new": {"str": "France"}}
      >>> rewrite["target_true"] = {"str": "Italy"}
      >>> prompts = {"paraphrase_prompts": ["Rome is a city in"], "neighborhood_prompts": []}
      >>> parse_counterfact([{"case_id": 3, "requested_rewrite": rewrite, **prompts}])[0].request.text
      'Rome is in'
    """
    return _parse_each(records, _counterfact)


def parse_one_paraphrase(records: Any) -> tuple[CounterFactRecord, ...]:
    """Parses records in the flat layout.

    The required fields are `prompt`, which contains the subject or `{}` in its place, `subject`, `target_new`,
    `ground_truth` and `rephrase_prompt`. `locality_prompt`, `locality_ground_truth` and `case_id` are optional; the
    default case id is the index. Each target may be a list of one text. The first occurrence of the subject in `prompt`
    becomes `{}`.

    Args:
      records: The list that was read from JSON.

    Raises:
      DataError: As for `parse_counterfact`, and if `locality_ground_truth` differs from `ground_truth`, because
        neighborhood prompts are scored with the record's true target.

    Example:
      >>> record = {"prompt": "Rome is in", "subject": "Rome", "target_new": "France", "ground_truth": ["Italy"]}
      >>> record |= {"rephrase_prompt": "Rome is a city in", "locality_prompt": "Milan is in"}
      >>> parse_one_paraphrase([record])[0].request.prompt
      '{} is in'
    """
    return _parse_each(records, _one_paraphrase)


def parse_zsre(records: Any) -> tuple[ZsRERecord, ...]:
    """Parses records in MEND's zsRE layout.

    The prompt is `src` with the first occurrence of the subject replaced by `{}`, and the new target is the first of
    `answers`. A record without `case_id`, as in the published file, gets its index.

    Args:
      records: The list that was read from JSON.

    Raises:
      DataError: As for `parse_counterfact`.

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
    """Parses records of a data set in the layout of the first record."""
    if name is DatasetName.ZSRE:
        return parse_zsre(records)
    first = records[0] if isinstance(records, list) and records else None
    if isinstance(first, dict) and "requested_rewrite" not in first:
        if "src" in first:
            raise DataError("these are zsRE records: give ds_name=zsre.")
        return parse_one_paraphrase(records)
    return parse_counterfact(records)


def _parse_each(records: Any, parse_one: Callable[[Fields, int], _Parsed]) -> tuple[_Parsed, ...]:
    """Parses each record of a list, and checks that case ids are valid and unique."""
    if not isinstance(records, list) or not records:
        raise DataError("there are no records: give a JSON list with at least one record.")
    parsed: dict[int, _Parsed] = {}
    for index, record in enumerate(records):
        case_id = Fields.of(record, f"record {index}").values.get("case_id", index)
        if isinstance(case_id, bool) or not isinstance(case_id, int) or not 0 <= case_id < _MAX_ID:
            raise DataError(
                f"record {index}: case_id is {case_id!r}; give an integer from 0 to {_MAX_ID - 1}."
            )
        if case_id in parsed:
            raise DataError(
                f"record {index}: case_id {case_id} is also that of an earlier record; give each record its own."
            )
        try:
            parsed[case_id] = parse_one(Fields(record, f"case {case_id}"), case_id)
        except RequestError as error:
            raise DataError(f"case {case_id}: {error}") from error
    return tuple(parsed.values())


def _counterfact(fields: Fields, case_id: int) -> CounterFactRecord:
    """Parses one record in the layout of counterfact.json."""
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
    """Parses one record in the flat layout."""
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
                f"neighborhood prompts are scored with ground_truth, {true!r}: give a locality_prompt with that "
                "answer, or leave it out",
            )
    return CounterFactRecord(
        request,
        paraphrase_prompts=(fields.text("rephrase_prompt"),),
        neighborhood_prompts=() if locality is None else (locality,),
    )


def _zsre(fields: Fields, case_id: int) -> ZsRERecord:
    """Parses one record in MEND's zsRE layout."""
    subject, answers = fields.text("subject"), fields.texts("answers")
    if not answers:
        raise fields.error("answers", "give at least one answer, which becomes the new target")
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
