"""Known facts to trace: the layout of the original's known_1000.json, and factworld's own facts in it.

A file is a JSON list of records with `known_id`, `subject`, `attribute` and `prompt`, and mostly `template`,
`prediction` and `relation_id`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rome_jax.data.request import SLOT

FACTWORLD = "factworld"
_MAX_ID = 2**32  # ids are folded into PRNG keys


class FactsError(ValueError):
    """A file of known facts that cannot be read, or a record that is not what it should be."""


@dataclasses.dataclass(frozen=True)
class KnownFact:
    """A prompt that a model may know the answer of.

    Attributes:
      known_id: its number; names files and decides the noise.
      subject: what it is about.
      attribute: the expected answer.
      prompt: the text with the subject in it.
      template: how the prompt begins, with `{}` for the subject; it may stop before the prompt does.
    """

    known_id: int
    subject: str
    attribute: str
    prompt: str
    template: str = ""

    @property
    def characters(self) -> tuple[int, int] | None:
        """(start, end) of the subject in the prompt as the template has it; None if it does not say.

        Example:
          >>> KnownFact(0, "Rome", "Italy", "Rome, or New Rome, is in", "Rome, or New {}, is in").characters
          (13, 17)
        """
        start = self.template.find(SLOT)
        end = start + len(self.subject)
        return (start, end) if start >= 0 and self.prompt[start:end] == self.subject else None


@dataclasses.dataclass(frozen=True)
class KnownFacts:
    """Facts and where they come from.

    Attributes:
      name: of the file, or "factworld".
      sha256: of the file, or of the records as JSON.
      facts: in the file's order.
    """

    name: str
    sha256: str
    facts: tuple[KnownFact, ...]

    @property
    def subjects(self) -> list[str]:
        """All of them, one for each fact; noise levels such as s3 are measured on these."""
        return [fact.subject for fact in self.facts]


def open_facts(name: str | Path) -> KnownFacts:
    """Known facts by their name.

    Args:
      name: "factworld", what the embedded models were trained on, or a .json file.

    Raises:
      FactsError: no such file, no JSON list, or a malformed record; the sentence gives its index and field.

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
    path = Path(name).expanduser()
    if not path.is_file():
        raise FactsError(f"there is no file {path}: give known facts as .json, or {FACTWORLD}.")
    content = path.read_bytes()
    try:
        records = json.loads(content)
    except ValueError as error:  # no JSON, or no UTF-8
        raise FactsError(f"{path} is not JSON ({error}): mend it or download it again.") from error
    try:
        facts = parse_facts(records)
    except FactsError as error:
        raise FactsError(f"{path}: {error}") from error
    return KnownFacts(path.name, hashlib.sha256(content).hexdigest(), facts)


def parse_facts(records: Sequence[Any]) -> tuple[KnownFact, ...]:
    """Checks parsed records.

    Raises:
      FactsError: an empty list, or a malformed record, by its index and field.

    Example:
      >>> record = {"known_id": 0, "subject": "Rome", "attribute": "Italy", "prompt": "Rome is in"}
      >>> parse_facts([record])[0].attribute
      'Italy'
    """
    if not isinstance(records, list) or not records:
        raise FactsError(
            "known facts are a JSON list with at least one record: see known_1000.json."
        )
    facts: dict[int, KnownFact] = {}
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            raise FactsError(f"record {index} is {record!r}: it must be an object with fields.")
        texts = {field: _text(record, field, index) for field in ("subject", "attribute", "prompt")}
        template = record.get("template") or ""
        if not isinstance(template, str):
            raise FactsError(f"record {index}: template is {template!r}, not a text.")
        number = record.get("known_id")
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < _MAX_ID:
            raise FactsError(
                f"record {index}: known_id is {number!r}, not an integer from 0 to {_MAX_ID - 1}."
            )
        if number in facts:
            raise FactsError(
                f"record {index}: known_id {number} is that of an earlier record too; give each its own."
            )
        facts[number] = KnownFact(number, template=template, **texts)
    return tuple(facts.values())


def _text(record: dict[str, Any], field: str, index: int) -> str:
    if field not in record:
        raise FactsError(f"record {index} has no {field!r}, only {', '.join(sorted(record))}.")
    value = record[field]
    if not isinstance(value, str) or not value.strip():
        raise FactsError(f"record {index}: {field} is {value!r}, not a text.")
    return value
