"""The world in the formats of the published data files."""

import json
from collections import Counter
from math import log

import numpy as np
import pytest

from rome_jax.factworld.facts import make_world
from rome_jax.factworld.records import (
    Role,
    attribute_snippets,
    biographies,
    counterfact_records,
    edit_requests,
    editable_relations,
    known_facts,
    tfidf_vocabulary,
    zsre_records,
)


@pytest.fixture(scope="module")
def world():
    return make_world(0)


@pytest.fixture(scope="module")
def records(world):
    return counterfact_records(world, 0, Role.HELD_OUT)


def _object_of(world, relation_id, prompt):
    """Looks up the subject of a prompt and its true object."""
    (fact,) = [
        fact
        for fact in world.facts_of(relation_id)
        for template in world.relation(relation_id).templates
        if template.replace("{}", fact.subject) == prompt
    ]
    return fact.subject, fact.target


def _layout(value):
    """Returns the layout of a nested value: its keys, and whether a value is a list."""
    if isinstance(value, dict):
        return {key: _layout(item) for key, item in value.items()}
    return list if isinstance(value, list) else None


def test_roles_share_no_fact(world):
    tuning, held_out = (edit_requests(world, 0, role) for role in Role)
    assert len(tuning) >= 300 and len(held_out) >= 300
    facts = [request.fact for request in tuning + held_out]
    assert len(set(facts)) == len(facts)
    assert len({request.case_id for request in tuning + held_out}) == len(facts)


def test_requests_depend_on_the_seed(world):
    assert edit_requests(world, 0, Role.TUNING) == edit_requests(world, 0, Role.TUNING)
    assert edit_requests(world, 0, Role.TUNING) != edit_requests(world, 1, Role.TUNING)


def test_a_short_list_begins_a_longer_one(world, records):
    assert counterfact_records(world, 0, Role.HELD_OUT, 30) == records[:30]


def test_relations_take_turns(world):
    requests = edit_requests(world, 0, Role.HELD_OUT, 300)
    counts = Counter(request.fact.relation_id for request in requests)
    assert set(counts) == set(editable_relations(world))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_too_many_requests_is_an_error(world):
    with pytest.raises(
        ValueError, match="count=5000 is more than the 876 edit requests of role tuning"
    ):
        edit_requests(world, 0, Role.TUNING, 5000)
    with pytest.raises(ValueError, match="count=5000 is more than the 1800 facts of the world"):
        known_facts(world, 0, 5000)


def test_targets(world, records):
    for record in records:
        rewrite = record["requested_rewrite"]
        relation_id = rewrite["relation_id"]
        new, true = rewrite["target_new"], rewrite["target_true"]
        assert new["str"] != true["str"] and new["id"] != true["id"]
        assert new["str"] in world.objects(relation_id)
        assert world.fact(rewrite["subject"], relation_id).target == true["str"]
        assert rewrite["prompt"] == world.relation(relation_id).templates[0]


def test_prompts_about_other_subjects(world, records):
    for record in records[:100]:
        rewrite = record["requested_rewrite"]
        relation_id = rewrite["relation_id"]
        for prompts, target, fewest in (
            (record["neighborhood_prompts"], rewrite["target_true"]["str"], 4),
            (record["attribute_prompts"], rewrite["target_new"]["str"], 4),
        ):
            pairs = [_object_of(world, relation_id, prompt) for prompt in prompts]
            assert fewest <= len(pairs) <= 10
            assert {pair[1] for pair in pairs} == {target}
            subjects = [pair[0] for pair in pairs]
            assert len(set(subjects)) == len(subjects)
            assert rewrite["subject"] not in subjects


def test_prompts_about_the_subject(world, records):
    for record in records:
        rewrite = record["requested_rewrite"]
        subject = rewrite["subject"]
        templates = world.relation(rewrite["relation_id"]).templates
        filled = [template.replace("{}", subject) for template in templates]
        used = [p for p in filled if any(t.endswith(p) for t in record["paraphrase_prompts"])]
        assert len(record["paraphrase_prompts"]) == len(used) == 2
        assert filled[0] not in used
        assert not set(record["generation_prompts"]) & set(used)
        assert all(prompt.startswith(subject) or subject in prompt for prompt in used)
    led = [p for r in records for p in r["paraphrase_prompts"] if ". " in p]
    assert 0.3 < len(led) / (2 * len(records)) < 0.7


def test_portability(world, records):
    moved = [record for record in records if "portability_prompts" in record]
    assert len(moved) >= 30
    for record in moved:
        rewrite = record["requested_rewrite"]
        assert rewrite["relation_id"] == "city"
        old = world.fact(rewrite["subject"], "country").target
        new = world.fact(rewrite["target_new"]["str"], "city_country").target
        assert new != old
        assert {prompt["target"] for prompt in record["portability_prompts"]} == {new}
        first = record["portability_prompts"][0]["prompt"]
        assert first == f"{rewrite['subject']} is in the country of"


def test_zsre(world):
    for record in zsre_records(world, 0, Role.HELD_OUT, 60):
        assert record["subject"] in record["src"] and record["subject"] in record["rephrase"]
        assert record["answers"] == [record["alt"]] != [record["pred"]]
        assert record["loc"].startswith("nq question: ") and not record["loc"].endswith("?")
        assert record["subject"] not in record["loc"]
        assert record["cond"] == f"{record['pred']} >> {record['alt']} || {record['src']}"
        answers = {fact.target for fact in world.facts if fact.subject in record["loc"]}
        assert record["loc_ans"] in answers


def test_zsre_asks_for_the_same_edits_as_counterfact(world, records):
    for record, other in zip(zsre_records(world, 0, Role.HELD_OUT), records, strict=True):
        rewrite = other["requested_rewrite"]
        assert record["subject"] == rewrite["subject"]
        assert record["alt"] == rewrite["target_new"]["str"]


def test_known_facts(world):
    facts = known_facts(world, 0)
    assert [fact["known_id"] for fact in facts] == list(range(len(world.facts)))
    for fact in facts:
        assert fact["prompt"] == fact["template"].replace("{}", fact["subject"])
        assert world.fact(fact["subject"], fact["relation_id"]).target == fact["attribute"]
    assert known_facts(world, 0, 7) == facts[:7]


def test_attribute_snippets(world, records):
    groups = attribute_snippets(world, 0)
    table = {(g["relation_id"], g["target_id"]): g["samples"] for g in groups}
    assert len(table) == len(groups)
    for record in records[:50]:
        rewrite = record["requested_rewrite"]
        samples = table[rewrite["relation_id"], rewrite["target_new"]["id"]]
        assert len(samples) >= 4
        for sample in samples:
            fact = world.fact(sample["name"], rewrite["relation_id"])
            assert fact.target == rewrite["target_new"]["str"]
            assert sample["name"] in sample["text"] and fact.target in sample["text"]


def test_tfidf_vocabulary_by_hand():
    idf, vocabulary = tfidf_vocabulary(["A red fox", "red clay, RED", "a fox"])
    assert vocabulary == {"clay": 0, "fox": 1, "red": 2}
    expected = [log(4 / 2) + 1, log(4 / 3) + 1, log(4 / 3) + 1]
    np.testing.assert_allclose(idf, expected, rtol=1e-12)
    with pytest.raises(ValueError, match="contain no word"):
        tfidf_vocabulary(["a b c"])


def test_tfidf_vocabulary_equals_scikit_learns(world):
    text = pytest.importorskip("sklearn.feature_extraction.text")
    texts = list(biographies(world, 0))
    vectorizer = text.TfidfVectorizer().fit(texts)
    idf, vocabulary = tfidf_vocabulary(texts)
    assert vocabulary == vectorizer.vocabulary_
    np.testing.assert_allclose(idf, vectorizer.idf_, rtol=1e-12)


def test_everything_is_json(world, records):
    for value in (
        records,
        zsre_records(world, 0, Role.TUNING),
        known_facts(world, 0),
        attribute_snippets(world, 0),
        tfidf_vocabulary(biographies(world, 0))[1],
    ):
        assert json.loads(json.dumps(value)) == value


def test_layouts_are_those_of_the_published_files(world, records):
    text = {"str": None, "id": None}
    prompts = "paraphrase_prompts neighborhood_prompts attribute_prompts generation_prompts".split()
    counterfact = {
        "case_id": None,
        "pararel_idx": None,
        "requested_rewrite": {
            **dict.fromkeys(("prompt", "relation_id", "subject")),
            **{"target_new": text, "target_true": text},
        },
        **dict.fromkeys(prompts, list),
    }
    zsre = dict.fromkeys("subject src pred rephrase alt loc loc_ans cond".split())
    zsre["answers"] = list
    known = "known_id subject attribute template prediction prompt relation_id".split()
    for ours, published in (
        (records[0], counterfact),
        (zsre_records(world, 0, Role.TUNING, 1)[0], zsre),
        (known_facts(world, 0, 1)[0], dict.fromkeys(known)),
    ):
        assert {key: _layout(ours[key]) for key in published} == published
