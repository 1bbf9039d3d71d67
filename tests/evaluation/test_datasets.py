"""CounterFact and zsRE records: real ones, factworld's, and malformed ones."""

import copy
import hashlib
import json
from pathlib import Path

import pytest

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
from rome_jax.files.records import DataError

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
            "case 7: requested_rewrite is missing: give it.",
        ),
        ("requested_rewrite", "x", "case 7: requested_rewrite='x': give a mapping of names"),
        ("requested_rewrite.subject", MISSING, "case 7: requested_rewrite.subject is missing"),
        (
            "requested_rewrite.subject",
            " ",
            "case 7: requested_rewrite.subject=' ': give a text that is not empty",
        ),
        ("requested_rewrite.subject", "Rome ", "case 7: subject='Rome ' has white space around it"),
        ("requested_rewrite.prompt", "She speaks", "case 7: prompt='She speaks' has 0 '{}'"),
        ("requested_rewrite.prompt", "{} and {}", "case 7: prompt='{} and {}' has 2 '{}'"),
        ("requested_rewrite.target_new", "Wu", "requested_rewrite.target_new='Wu': give a mapping"),
        ("requested_rewrite.target_new.str", 3, "requested_rewrite.target_new.*=3: give a text"),
        ("requested_rewrite.target_new.str", "Wu ", "target_new='Wu ' ends in white space"),
        (
            "requested_rewrite.target_true.str",
            "",
            "requested_rewrite.target_true.*='': give a text that",
        ),
        (
            "requested_rewrite.target_true.id",
            7,
            "requested_rewrite.target_true.id=7: give a text",
        ),
        ("paraphrase_prompts", MISSING, "case 7: paraphrase_prompts is missing"),
        ("paraphrase_prompts", 3, r"paraphrase_prompts\[0\]=3: give a text"),
        ("paraphrase_prompts", ["x \ud83d"], r"paraphrase_prompts\[0\]=.*: give valid Unicode"),
        ("requested_rewrite.target_new.str", None, "target_new.*=None: give a text"),
        ("more_prompts", ["x"], "case 7: more_prompts would not be scored: remove it"),
        ("hops", [{"question": "Where?"}], "case 7: hops would not be scored: remove it"),
        (
            "neighborhood_prompts",
            ["a", ""],
            r"neighborhood_prompts\[1\]='': give a text that is not empty",
        ),
        ("attribute_prompts", [None], r"attribute_prompts\[0\]=None: give a text"),
        ("portability_prompts", [{"prompt": "a"}], r"portability_prompts\[0\].target is missing"),
        ("portability_prompts", ["a"], r"case 7: portability_prompts\[0\]='a': give a mapping"),
        ("case_id", "x", "record 0: case_id='x': give an integer"),
        ("case_id", True, "record 0: case_id=True: give an integer"),
        ("case_id", -1, "record 0: case_id=-1: give a number of 0 or more"),
        ("case_id", 2**32, "record 0: case_id=4294967296: give a number below 4294967296"),
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
            "case 7: prompt='She speaks': give a text with the subject, 'Dan",
        ),
        ("target_new", [3, "b"], "case 7: target_new=3: give a text"),
        ("ground_truth", [], r"case 7: ground_truth=\[\]: give a text"),
        ("ground_truth", MISSING, "case 7: ground_truth is missing: give it, or give ds_name=zsre"),
        ("locality", {"a": [{"prompt": "b"}]}, r"locality.a\[0\].ground_truth is missing"),
    ],
)
def test_a_malformed_flat_record_is_named(path, value, message):
    with pytest.raises(DataError, match=message):
        parse_one_paraphrase([changed(FLAT, path, value)])


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("src", "Is {} old?", "case 0: src='Is {} old.': give a text with the subject, 'Rome',"),
        ("src", "Is {} in Rome?", "case 0: prompt='Is {} in {}.' has 2"),
        ("answers", [], r"case 0: answers=\[\]: give more items"),
        ("answers", 3, "case 0: answers.*=3: give a text"),
        ("loc_ans", None, "case 0: loc_ans=None: give a text"),
        ("loc", MISSING, "case 0: loc is missing"),
    ],
)
def test_a_malformed_zsre_record_is_named(path, value, message):
    with pytest.raises(DataError, match=message):
        parse_zsre([changed(QUESTION, path, value)])


@pytest.mark.parametrize("parse", [parse_counterfact, parse_one_paraphrase, parse_zsre])
def test_something_that_is_not_a_list_of_records_is_refused(parse):
    for records in ({}, [], None):
        with pytest.raises(DataError, match="there are no records: give a list"):
            parse(records)
    with pytest.raises(DataError, match="record 0=3: give a mapping"):
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
    with pytest.raises(ValueError, match=f"limit={limit}: give a number of 1 or more"):
        load_dataset(DatasetName.CF, model_name="factworld-gpt2", limit=limit)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'[{"case_id": 7, "reques',
            r"mine.json ends within a value \(column 17\): it was cut short",
        ),
        (b"[\xff]", "mine.json is not UTF-8 .*: convert it with iconv -f LATIN1"),
        (b'{"case_id": 7}', "mine.json: record 0 has the fields case_id: give one of the layouts"),
        (b"[]", "mine.json: there are no records: give a list"),
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


KNOWEDIT = {
    "subject": "Danielle Darrieux",
    "prompt": "The mother tongue of Danielle Darrieux is",
    "target_new": "English",
    "ground_truth": ["French", "français"],
    "rephrase_prompt": "Danielle Darrieux speaks",
    "locality": {
        "Relation_Specificity": [{"prompt": "Her country is", "ground_truth": [["France", "FR"]]}],
        "Forgetfulness": None,
    },
    "portability": {"Reasoning": [{"prompt": "Her accent is", "ground_truth": ["English"]}]},
}
BIOGRAPHY = {
    "concept": "Ada",
    "text": "This is a passage about Ada. ",
    "labels": "She wrote.",
    "locality": {"Relation_Specificity": [{"prompt": "Ada was", "ground_truth": ["a writer"]}]},
}
ROW = {
    "relation": "The mother tongue of {} is",
    "prompt": "The mother tongue of Danielle Darrieux is",
    "relation_id": "P103",
    "target_true": " French",
    "target_false": " English",
    "target_true_id": "Q150",
    "target_false_id": "Q1860",
    "subject": " Danielle Darrieux",
}
MULTI_HOP = {
    "case_id": 7,
    "requested_rewrite": [{**REWRITE, "question": "What does Danielle Darrieux speak?"}],
    "questions": ["Where is her language from?", "What country is her language from?"],
    "answer": "France",
    "new_answer": "England",
    "new_answer_alias": ["UK"],
    "single_hops": [
        {"question": "What does she speak?", "cloze": "She speaks", "answer": "French"}
    ],
}


def loaded(tmp_path, name, *records):
    (tmp_path / "mine.json").write_text(json.dumps(records))
    return load_dataset(name, path=tmp_path / "mine.json").records


def test_locality_and_portability_of_knowedit_are_scored(tmp_path):
    (record,) = loaded(tmp_path, DatasetName.CF, KNOWEDIT)
    (question,) = loaded(tmp_path, DatasetName.ZSRE, KNOWEDIT)
    for one in (record, question):
        assert one.request.target_true == "French", "the first alias"
        assert one.paraphrase_prompts == ("Danielle Darrieux speaks",)
        assert one.locality_prompts == (("Her country is", "France"),)
        assert one.portability_prompts == (("Her accent is", "English"),)
    assert record.neighborhood_prompts == ()
    no_truth = {name: value for name, value in KNOWEDIT.items() if name != "ground_truth"}
    (question,) = loaded(tmp_path, DatasetName.ZSRE, no_truth)
    assert question.request.target_true == "<|endoftext|>"
    # EasyEdit's older files have one question and pairs of lists.
    older = {**KNOWEDIT, "portability": {"New Question": "Where?", "New Answer": "There"}}
    older["locality"] = {"neighborhood": {"prompt": ["a", "b"], "ground_truth": ["c", "d"]}}
    (record,) = loaded(tmp_path, DatasetName.CF, older)
    assert record.portability_prompts == (("Where?", "There"),)
    assert record.locality_prompts == (("a", "c"), ("b", "d"))


def test_a_neighbor_with_another_answer_is_scored_by_it():
    (record,) = parse_one_paraphrase([changed(FLAT, "locality_ground_truth", "Wu")])
    assert record.neighborhood_prompts == ()
    assert record.locality_prompts == ((FLAT["locality_prompt"], "Wu"),)


def test_other_layouts(tmp_path):
    (record,) = loaded(tmp_path, DatasetName.ZSRE, BIOGRAPHY)
    assert record.request.text == "This is a passage about Ada."
    assert record.request.target_new == "She wrote."
    assert record.locality_prompts == (("Ada was", "a writer"),)
    (record,) = loaded(tmp_path, DatasetName.CF, ROW)
    assert record.requested_rewrite == REWRITE
    (record,) = loaded(tmp_path, DatasetName.CF, MULTI_HOP)
    assert (record.case_id, record.requested_rewrite) == (7, REWRITE)
    assert record.paraphrase_prompts == ("What does Danielle Darrieux speak?",)
    assert [target for _, target in record.portability_prompts] == ["England", "England"]
    request = {key: FLAT[key] for key in ("prompt", "subject", "target_new", "ground_truth")}
    (record,) = loaded(tmp_path, DatasetName.CF, request)  # a request of EasyEdit
    assert record.request.target_true == "French" and record.paraphrase_prompts == ()


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        (DatasetName.CF, BIOGRAPHY, "these are WikiBio records: give ds_name=zsre"),
        (DatasetName.ZSRE, ROW, "these are CounterFact tracing records: give ds_name=cf"),
        (DatasetName.ZSRE, CF, "these are CounterFact records: give ds_name=cf"),
        (
            DatasetName.CF,
            {**MULTI_HOP, "requested_rewrite": [REWRITE, REWRITE]},
            "case 7: requested_rewrite holds 2 edits, and each case is one edit",
        ),
        (
            DatasetName.CF,
            {"question": "a", "answer": "b"},
            "record 0 has the fields question, answer",
        ),
        (  # EasyEdit's results
            DatasetName.CF,
            {"case_id": 0, "requested_rewrite": FLAT, "time": 1.5, "post": {"rewrite_acc": [1.0]}},
            "record 0 has post, so these are results of an evaluation",
        ),
        (  # KnowEdit's recent facts have no true targets
            DatasetName.CF,
            {name: value for name, value in KNOWEDIT.items() if name != "ground_truth"},
            "case 0: ground_truth is missing: give it, or give ds_name=zsre",
        ),
    ],
)
def test_a_layout_that_cannot_be_scored_is_named(tmp_path, name, record, message):
    with pytest.raises(DataError, match=f"mine.json: {message}"):
        loaded(tmp_path, name, record)
