"""CounterFact and zsRE records: real ones, factworld's, and malformed ones."""

import copy
import hashlib
import json
from pathlib import Path

import pytest

from rome_jax.data.published import DataError
from rome_jax.data.request import EditRequest
from rome_jax.evaluation.datasets import (
    CounterFactRecord,
    DatasetName,
    load_dataset,
    parse_counterfact,
    parse_one_paraphrase,
    parse_zsre,
)
from rome_jax.factworld import records as factworld
from rome_jax.factworld.facts import make_world

SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "data"
COUNTERFACT, ZSRE = (SAMPLES / f"{name}_sample_100.json" for name in ("counterfact", "zsre"))
real = pytest.mark.skipif(not SAMPLES.exists(), reason="no real records on this machine")

REWRITE = {
    "prompt": "The mother tongue of {} is",
    "relation_id": "P103",
    "target_new": {"str": "English", "id": "Q1860"},
    "target_true": {"str": "French", "id": "Q150"},
    "subject": "Danielle Darrieux",
}
CF = {
    "case_id": 7,
    "pararel_idx": 2796,
    "requested_rewrite": REWRITE,
    "paraphrase_prompts": ["\n\n. Danielle Darrieux, a native ", "Danielle Darrieux speaks {}"],
    "neighborhood_prompts": ["The mother tongue of Léon Blum is"],
    "attribute_prompts": ["J.R.R. Tolkien spoke"],
    "generation_prompts": ["Danielle Darrieux was born in"],
}
FLAT = {
    "case_id": 7,
    "prompt": "The mother tongue of Danielle Darrieux is",
    "target_new": "English",
    "subject": "Danielle Darrieux",
    "ground_truth": ["French"],
    "rephrase_prompt": "Danielle Darrieux speaks",
    "locality_prompt": "Michel Rocard is a native speaker of",
    "locality_ground_truth": "French",
}
QUESTION = {
    "subject": "Rome",
    "src": "Is Rome the Rome of old?",
    "rephrase": "Is this still Rome?",
    "alt": "",
    "answers": ["yes", "hardly"],
    "loc": "nq question: who wrote emma",
    "loc_ans": "Jane Austen",
}
MISSING = object()


def changed(record, path, value):
    """Returns a copy in which the field at `path`, such as "a.b", is set, or removed if the value is MISSING."""
    record = copy.deepcopy(record)
    *above, last = path.split(".")
    inner = record
    for name in above:
        inner = inner[name]
    if value is MISSING:
        del inner[last]
    else:
        inner[last] = value
    return record


def test_counterfact_fields():
    portable = {**CF, "portability_prompts": [{"prompt": "Her country is", "target": "Wales"}]}
    (record,) = parse_counterfact([portable])
    assert record == CounterFactRecord(
        EditRequest("The mother tongue of {} is", "Danielle Darrieux", "English", "French", 7),
        paraphrase_prompts=tuple(CF["paraphrase_prompts"]),  # unchanged, including white space
        neighborhood_prompts=("The mother tongue of Léon Blum is",),
        attribute_prompts=("J.R.R. Tolkien spoke",),
        generation_prompts=("Danielle Darrieux was born in",),
        portability_prompts=(("Her country is", "Wales"),),
        relation_id="P103",
        target_new_id="Q1860",
        target_true_id="Q150",
    )
    assert record.case_id == 7
    assert record.requested_rewrite == REWRITE


def test_optional_fields_of_counterfact():
    record = changed(CF, "requested_rewrite.relation_id", None)
    record = changed(record, "requested_rewrite.target_new.id", MISSING)
    record = changed(record, "attribute_prompts", MISSING)
    record = changed(record, "generation_prompts", None)
    record = changed(changed(record, "case_id", MISSING), "neighborhood_prompts", [])
    _, parsed = parse_counterfact([CF, record])
    assert parsed.case_id == 1
    assert (parsed.relation_id, parsed.target_new_id, parsed.target_true_id) == (None, None, "Q150")
    assert parsed.neighborhood_prompts == parsed.attribute_prompts == ()
    assert parsed.generation_prompts == parsed.portability_prompts == ()


def test_the_flat_layout():
    (record,) = parse_one_paraphrase([FLAT])
    assert record == CounterFactRecord(
        EditRequest("The mother tongue of {} is", "Danielle Darrieux", "English", "French", 7),
        paraphrase_prompts=("Danielle Darrieux speaks",),
        neighborhood_prompts=("Michel Rocard is a native speaker of",),
    )
    with_slot = changed(FLAT, "prompt", "Danielle Darrieux, or {}, says")
    with_slot = changed(changed(with_slot, "case_id", MISSING), "locality_prompt", MISSING)
    _, other = parse_one_paraphrase([FLAT, changed(with_slot, "locality_ground_truth", MISSING)])
    assert other.request.text == "Danielle Darrieux, or Danielle Darrieux, says"
    assert other.request.prompt == "Danielle Darrieux, or {}, says"
    assert (other.case_id, other.neighborhood_prompts) == (1, ())


def test_zsre_fields():
    (record,) = parse_zsre([QUESTION])
    assert record.request == EditRequest(
        "Is {} the Rome of old?", "Rome", "yes", "<|endoftext|>", 0
    )
    assert record.paraphrase_prompts == ("Is this still Rome?",)
    assert record.locality_prompt == "nq question: who wrote emma?"
    assert record.locality_target == "Jane Austen"
    assert record.requested_rewrite == {
        "prompt": "Is {} the Rome of old?",
        "subject": "Rome",
        "target_new": {"str": "yes"},
        "target_true": {"str": "<|endoftext|>"},
    }
    assert parse_zsre([{**QUESTION, "case_id": 5}])[0].case_id == 5


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "requested_rewrite",
            MISSING,
            "case 7: requested_rewrite is missing; there is attribute_p",
        ),
        ("requested_rewrite", "x", "case 7: requested_rewrite is 'x'; give an object with fields."),
        ("requested_rewrite.subject", MISSING, "case 7: requested_rewrite.subject is missing"),
        (
            "requested_rewrite.subject",
            " ",
            "case 7: requested_rewrite.subject is ' '; give a text ",
        ),
        ("requested_rewrite.subject", "Rome ", "case 7: subject='Rome ' has white space around it"),
        ("requested_rewrite.prompt", "She speaks", "case 7: prompt='She speaks' has 0 '{}'"),
        ("requested_rewrite.prompt", "{} and {}", "case 7: prompt='{} and {}' has 2 '{}'"),
        ("requested_rewrite.target_new", "Wu", "requested_rewrite.target_new is 'Wu'; give an obj"),
        ("requested_rewrite.target_new.str", 3, "requested_rewrite.target_new.str is 3; give a te"),
        ("requested_rewrite.target_new.str", "Wu ", "target_new='Wu ' ends in white space"),
        ("requested_rewrite.target_true.str", "", "requested_rewrite.target_true.str is ''; give"),
        ("requested_rewrite.target_true.id", 7, "requested_rewrite.target_true.id is 7; give a te"),
        ("paraphrase_prompts", MISSING, "case 7: paraphrase_prompts is missing"),
        ("paraphrase_prompts", "x" * 200, "paraphrase_prompts is 'xxxxx.*xxx...; give a list."),
        ("neighborhood_prompts", ["a", ""], r"neighborhood_prompts is \['a', ''\]; give a list of"),
        ("attribute_prompts", [None], r"attribute_prompts is \[None\]; give a list of texts"),
        ("portability_prompts", [{"prompt": "a"}], r"portability_prompts\[0\].target is missing"),
        ("portability_prompts", ["a"], r"case 7: portability_prompts\[0\] is 'a'; give an object"),
        ("case_id", "13", "record 0: case_id is '13'; give an integer from 0 to 4294967295."),
        ("case_id", True, "record 0: case_id is True; give"),
        ("case_id", -1, "record 0: case_id is -1; give"),
    ],
)
def test_a_malformed_counterfact_record_is_named(path, value, message):
    with pytest.raises(DataError, match=message):
        parse_counterfact([changed(CF, path, value)])


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "prompt",
            "She speaks",
            "case 7: prompt is 'She speaks'; give a text with the subject, 'Dan",
        ),
        ("target_new", ["a", "b"], r"case 7: target_new is \['a', 'b'\]; give a text that is not"),
        ("ground_truth", [], r"case 7: ground_truth is \[\]; give a text"),
        ("rephrase_prompt", MISSING, "case 7: rephrase_prompt is missing"),
        (
            "locality_ground_truth",
            "Wu",
            "is 'Wu'; neighborhood prompts are scored with .* 'French'",
        ),
    ],
)
def test_a_malformed_flat_record_is_named(path, value, message):
    with pytest.raises(DataError, match=message):
        parse_one_paraphrase([changed(FLAT, path, value)])


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("src", "Is {} old?", "case 0: src is 'Is {} old.'; give a text with the subject, 'Rome',"),
        ("src", "Is {} in Rome?", "case 0: prompt='Is {} in {}.' has 2"),
        ("answers", [], r"case 0: answers is \[\]; give at least"),
        ("answers", "yes", "case 0: answers is 'yes'; give a list"),
        ("loc_ans", None, "case 0: loc_ans is None; give a text"),
        ("loc", MISSING, "case 0: loc is missing"),
    ],
)
def test_a_malformed_zsre_record_is_named(path, value, message):
    with pytest.raises(DataError, match=message):
        parse_zsre([changed(QUESTION, path, value)])


@pytest.mark.parametrize("parse", [parse_counterfact, parse_one_paraphrase, parse_zsre])
def test_something_that_is_not_a_list_of_records_is_refused(parse):
    for records in ({}, [], None):
        with pytest.raises(DataError, match="there are no records: give a JSON list"):
            parse(records)
    with pytest.raises(DataError, match="record 0 is 3; give an object with fields"):
        parse([3])


def test_case_ids_are_unique():
    with pytest.raises(DataError, match="record 1: case_id 7 is also that of an earlier record"):
        parse_counterfact([CF, CF])
    with pytest.raises(
        DataError, match="record 1: case_id 1 is also that"
    ):  # the default id is the index
        parse_zsre([{**QUESTION, "case_id": 1}, QUESTION])


@real
def test_real_counterfact():
    content = COUNTERFACT.read_bytes()
    dataset = load_dataset(DatasetName.CF, path=COUNTERFACT)
    assert (dataset.name, dataset.source) == (DatasetName.CF, COUNTERFACT.name)
    assert dataset.sha256 == hashlib.sha256(content).hexdigest()
    records = json.loads(content)
    assert [one.requested_rewrite for one in dataset.records] == [
        one["requested_rewrite"] for one in records
    ]
    assert [(one.case_id, *one.paraphrase_prompts) for one in dataset.records] == [
        (one["case_id"], *one["paraphrase_prompts"]) for one in records
    ]
    assert load_dataset(DatasetName.CF, path=str(COUNTERFACT), limit=3) == type(dataset)(
        dataset.name, dataset.source, dataset.sha256, dataset.records[:3]
    )


@real
def test_the_flat_layout_holds_the_same_real_records(tmp_path):
    flat = [
        {
            "case_id": record["case_id"],
            "prompt": record["requested_rewrite"]["prompt"].format(
                record["requested_rewrite"]["subject"]
            ),
            "subject": record["requested_rewrite"]["subject"],
            "target_new": record["requested_rewrite"]["target_new"]["str"],
            "ground_truth": record["requested_rewrite"]["target_true"]["str"],
            "rephrase_prompt": record["paraphrase_prompts"][0],
            "locality_prompt": record["neighborhood_prompts"][0],
        }
        for record in json.loads(COUNTERFACT.read_bytes())
    ]
    path = tmp_path / "flat.json"
    path.write_text(json.dumps(flat))
    expected = load_dataset(DatasetName.CF, path=COUNTERFACT).records
    assert load_dataset(DatasetName.CF, path=path).records == expected


@real
def test_real_zsre():
    records = json.loads(ZSRE.read_bytes())
    parsed = load_dataset(DatasetName.ZSRE, path=ZSRE).records
    assert [one.case_id for one in parsed] == list(range(100))
    for one, record in zip(parsed, records, strict=True):
        assert (one.request.text, one.request.subject) == (record["src"], record["subject"])
        assert one.request.target_new == record["answers"][0]
        assert one.paraphrase_prompts == (record["rephrase"],)
        assert (one.locality_prompt, one.locality_target) == (
            record["loc"] + "?",
            record["loc_ans"],
        )


@pytest.mark.parametrize("model_name", ["factworld-gpt2", "factworld-gptj"])
def test_factworld(model_name):
    world, role = make_world(), factworld.Role.HELD_OUT
    records = factworld.counterfact_records(world, 0, role)
    dataset = load_dataset(DatasetName.CF, model_name=model_name)
    assert dataset.source == "factworld"
    assert [one.requested_rewrite for one in dataset.records] == [
        one["requested_rewrite"] for one in records
    ]
    assert [one.portability_prompts for one in dataset.records] == [
        tuple((pair["prompt"], pair["target"]) for pair in one.get("portability_prompts", []))
        for one in records
    ]
    assert any(one.portability_prompts for one in dataset.records)
    questions = load_dataset(DatasetName.ZSRE, model_name=model_name, limit=10)
    assert [one.case_id for one in questions.records] == [one["case_id"] for one in records[:10]]
    assert [one.request.target_new for one in questions.records] == [
        one.request.target_new for one in dataset.records[:10]
    ]


def test_the_checksum_of_factworld_depends_on_the_seed_and_not_on_the_limit():
    few, more, other = (
        load_dataset(DatasetName.CF, model_name="factworld-gpt2", limit=limit, seed=seed)
        for limit, seed in [(2, 0), (5, 0), (5, 1)]
    )
    assert few.sha256 == more.sha256 != other.sha256
    assert more.records[:2] == few.records
    assert more.records != other.records


def test_a_path_takes_precedence_over_the_model(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([CF]))
    dataset = load_dataset(DatasetName.CF, path=path, model_name="factworld-gpt2")
    assert (dataset.source, dataset.records) == ("mine.json", parse_counterfact([CF]))


def test_records_beyond_the_limit_are_not_checked(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([CF, {"case_id": 8}]))
    assert len(load_dataset(DatasetName.CF, path=path, limit=1).records) == 1
    with pytest.raises(DataError, match=r"mine.json: case 8: requested_rewrite is missing"):
        load_dataset(DatasetName.CF, path=path, limit=2)


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_refused(limit):
    with pytest.raises(ValueError, match=f"limit={limit}: load at least one record"):
        load_dataset(DatasetName.CF, model_name="factworld-gpt2", limit=limit)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"case_id": 7, "reques', r"mine.json is not JSON \(.*\): it may be truncated; correct"),
        (b"[\xff]", "mine.json is not JSON .*utf-8"),
        (b'{"case_id": 7}', "mine.json: there are no records: give a JSON list"),
        (b"[]", "mine.json: there are no records: give a JSON list"),
        (
            json.dumps([QUESTION]).encode(),
            "mine.json: these are zsRE records: give ds_name=zsre",
        ),
        (None, "there is no file .*mine.json: give the path of a file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, message):
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_dataset(DatasetName.CF, path=path)
