"""Known facts to trace, in the layout of the original's known_1000.json.

A file holds records with the fields `known_id`, `subject`, `attribute` and `prompt`. Most records also have
`template`, `prediction` and `relation_id`. The facts of factworld are available in the same layout.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from rome_jax.data.request import SLOT
from rome_jax.data.samples import KNOWN_FACTS, SAMPLE
from rome_jax.files.checked import Seed, check, check_fields
from rome_jax.files.records import Text, find, read_records

FACTWORLD = "factworld"


class _Record(TypedDict):
    """The fields of known_1000.json that are read."""

    known_id: Seed
    subject: Text
    attribute: Text
    prompt: Text
    template: NotRequired[str | None]


class FactsError(ValueError):
    """A file of known facts that cannot be read, or a record that is malformed."""


@dataclasses.dataclass(frozen=True)
class KnownFact:
    """A prompt that a model may know the answer to.

    Attributes:
      known_id: Number of the fact, from 0 to 2³² − 1. It names files and is folded into the key of the noise.
      subject: What the fact is about.
      attribute: The expected answer; empty if it is unknown.
      prompt: Text with the subject in it.
      template: Beginning of the prompt, with `{}` for the subject; it may be shorter than the prompt.

    Raises:
      FactsError: If a value has another type or is out of range, or another text is empty.
    """

    known_id: Seed
    subject: Text
    attribute: str
    prompt: Text
    template: str = ""

    def __post_init__(self) -> None:
        check_fields(self, error=FactsError)

    @property
    def characters(self) -> tuple[int, int] | None:
        """The characters (start, end) of the subject in the prompt; None if the template does not tell.

        Example:
          >>> KnownFact(0, "Rome", "Italy", "Rome, or New Rome, is in", "Rome, or New {}, is in").characters
          (13, 17)
        """
        start = self.template.find(SLOT)
        end = start + len(self.subject)
        return (start, end) if start >= 0 and self.prompt[start:end] == self.subject else None


@dataclasses.dataclass(frozen=True)
class KnownFacts:
    """Facts and their source.

    Attributes:
      name: Name of the file, "factworld" or "sample".
      sha256: Checksum of the file, or of the records as JSON.
      facts: The facts in the file's order.
    """

    name: str
    sha256: str
    facts: tuple[KnownFact, ...]

    @property
    def subjects(self) -> list[str]:
        """The subject of each fact. Noise levels such as s3 are measured on all of them."""
        return [fact.subject for fact in self.facts]


def open_facts(name: str | Path) -> KnownFacts:
    """Reads known facts.

    Args:
      name: "factworld", the facts that the factworld models were trained on; "sample", 20 well-known facts; or a file
        of records: a JSON list, JSON Lines, parquet or arrow.

    Returns:
      The facts, with their name and checksum.

    Raises:
      FactsError: If the file does not exist or cannot be read, or a record is malformed; the message gives the
        index and the field of the record.

    Example:
      >>> open_facts("factworld").facts[0].prompt
      'Kalina Drathsten owns an expensive'
    """
    if str(name) == FACTWORLD:
        from rome_jax.factworld.facts import make_world
        from rome_jax.factworld.records import known_facts

        records = known_facts(make_world(), seed=0)
        content = json.dumps(records, ensure_ascii=False).encode()
        return KnownFacts(FACTWORLD, hashlib.sha256(content).hexdigest(), parse_facts(records))
    if str(name) == SAMPLE:
        content = json.dumps(KNOWN_FACTS).encode()
        facts = tuple(
            KnownFact(number, subject, attribute, template.replace("{}", subject), template)
            for number, (template, subject, attribute) in enumerate(KNOWN_FACTS)
        )
        return KnownFacts(SAMPLE, hashlib.sha256(content).hexdigest(), facts)
    path = find(name, error=FactsError)
    records, sha256 = read_records(path, error=FactsError)
    try:
        facts = parse_facts(records)
    except FactsError as error:
        raise FactsError(f"{path}: {error}") from error
    return KnownFacts(path.name, sha256, facts)


def parse_facts(records: Sequence[Any]) -> tuple[KnownFact, ...]:
    """Checks records and makes facts of them.

    Args:
      records: The list of a JSON file.

    Returns:
      One fact per record, in their order.

    Raises:
      FactsError: If the list is empty or a record is malformed; the message gives its index and field.

    Example:
      >>> record = {"known_id": 0, "subject": "Rome", "attribute": "Italy", "prompt": "Rome is in"}
      >>> parse_facts([record])[0].attribute
      'Italy'
    """
    if not isinstance(records, list) or not records:
        raise FactsError(
            "known facts must be a list with at least one record, in the layout of known_1000.json."
        )
    facts: dict[int, KnownFact] = {}
    for index, record in enumerate(records):
        fields = check(_Record, record, f"record {index}", error=FactsError)
        number = fields["known_id"]
        if number in facts:
            raise FactsError(
                f"record {index}: known_id {number} is that of an earlier record: give each record its own."
            )
        facts[number] = KnownFact(
            number,
            fields["subject"],
            fields["attribute"],
            fields["prompt"],
            fields.get("template") or "",
        )
    return tuple(facts.values())
