"""Files of known facts: their formats, and how a malformed record is named."""

import json

import pytest

from rome_jax.trace.facts import FactsError, KnownFact, open_facts, parse_facts

FACT = {"known_id": 3, "subject": "Rome", "attribute": "Italy", "prompt": "Rome is in"}


def test_facts_are_read_from_json_and_json_lines(tmp_path):
    facts = (KnownFact(3, "Rome", "Italy", "Rome is in"),)
    lines = json.dumps({**FACT, "template": None, "prediction": "x"}) + "\n"
    for content in (json.dumps([FACT]), lines, "\ufeff" + lines):
        (tmp_path / "mine.json").write_text(content, encoding="utf-8")
        assert open_facts(tmp_path / "mine.json").facts == facts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subject": None}, "record 0: subject=None: give a text"),
        ({"attribute": 3}, "record 0: attribute=3: give a text"),
        ({"prompt": " "}, "record 0: prompt=' ': give a text that is not empty"),
        ({"prompt": "a \ud83d b"}, "record 0: prompt=.*: give valid Unicode"),
        ({"template": ["a"]}, r"record 0: template=\['a'\]: give a text"),
        ({"known_id": True}, "record 0: known_id=True: give an integer"),
        ({"known_id": -1}, "record 0: known_id=-1: give a number of 0 or more"),
        ({"known_id": 10**30}, "record 0: known_id=10"),
    ],
)
def test_a_malformed_fact_is_named(tmp_path, change, message):
    (tmp_path / "mine.json").write_text(json.dumps([FACT | change]))
    with pytest.raises(FactsError, match=f"mine.json: {message}"):
        open_facts(tmp_path / "mine.json")


def test_what_is_no_list_of_facts_is_refused(tmp_path):
    with pytest.raises(FactsError, match="record 0=3: give a mapping"):
        parse_facts([3])
    with pytest.raises(FactsError, match="known facts must be a list with at least one record"):
        parse_facts([])
    with pytest.raises(FactsError, match="record 1: known_id 3 is that of an earlier record"):
        parse_facts([FACT, FACT])
    (tmp_path / "mine.json").write_bytes("Léon".encode("latin-1"))
    with pytest.raises(FactsError, match=r"mine\.json is not UTF-8"):
        open_facts(tmp_path / "mine.json")


def test_the_well_known_facts_of_the_package_have_their_subjects_in_the_prompts():
    facts = open_facts("sample").facts
    assert len({fact.prompt for fact in facts}) == len(facts) == 20
    for fact in facts:
        first, last = fact.characters
        assert fact.prompt[first:last] == fact.subject
