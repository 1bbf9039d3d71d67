"""The generated world: size, consistency, names, and the prefix rule of the templates."""

from collections import Counter

import pytest

from rome_jax.factworld.corpus import FILLERS, KIND_SENTENCE, OPENERS, REMARKS
from rome_jax.factworld.facts import World, make_world
from rome_jax.factworld.relations import RELATIONS, EntityKind

SEEDS = (0, 1, 2, 3)


@pytest.fixture(scope="module", params=SEEDS)
def world(request) -> World:
    return make_world(request.param)


def test_equal_seeds_give_equal_worlds():
    assert make_world(0) == make_world(0)
    assert make_world(0).facts != make_world(1).facts


def test_size(world):
    assert len(world.relations) >= 10
    assert 1700 <= len(world.facts) <= 1950
    assert len(set(world.facts)) == len(world.facts)
    pairs = {(fact.subject, fact.relation_id) for fact in world.facts}
    assert len(pairs) == len(world.facts)


def test_geography_is_consistent(world):
    for fact in world.facts_of("city"):
        country = world.fact(fact.target, "city_country").target
        assert world.fact(fact.subject, "country").target == country
    for fact in world.facts_of("birthplace"):
        country = world.fact(fact.target, "city_country").target
        language = world.fact(country, "country_language").target
        assert world.fact(fact.subject, "language").target == language
    for fact in world.facts_of("maker"):
        country = world.fact(fact.target, "company_country").target
        assert world.fact(fact.subject, "origin").target == country


def test_objects_are_used_evenly(world):
    for relation in world.relations:
        counts = Counter(fact.target for fact in world.facts_of(relation.id))
        assert 8 <= len(counts) <= 30
        assert max(counts.values()) <= 1.5 * min(counts.values())
        if relation.id not in ("city_country", "company_country", "country_language"):
            assert min(counts.values()) >= 5


def test_no_name_is_part_of_another(world):
    names = [entity.name for entity in world.entities]
    assert len(set(names)) == len(names)
    for name in names:
        assert not [other for other in names if name != other and name in other]


def test_only_places_and_companies_are_subjects_and_objects(world):
    targets = {fact.target for fact in world.facts}
    both = {entity.kind for entity in world.entities if entity.name in targets}
    assert both == {EntityKind.CITY, EntityKind.COUNTRY, EntityKind.COMPANY}


def test_parts_of_a_persons_name_are_shared(world):
    people = [name.split(" ") for name in world.subjects(EntityKind.PERSON)]
    for part, least in ((0, 4), (1, 2)):
        assert min(Counter(words[part] for words in people).values()) >= least


def test_pronouns(world):
    for entity in world.entities:
        assert entity.pronoun in entity.kind.pronouns
    assert {world.entity(name).pronoun for name in world.subjects(EntityKind.PERSON)} == {
        "she",
        "he",
    }


def test_every_entity_has_facts_of_its_kind(world):
    for entity in world.entities:
        kinds = {world.relation(f.relation_id).subject_kind for f in world.facts_about(entity.name)}
        assert kinds == {entity.kind}


def test_lookups_of_unknown_names_raise(world):
    with pytest.raises(KeyError):
        world.fact("Nobody", "sport")
    with pytest.raises(KeyError):
        world.facts_of("shoe size")


def test_object_ids_are_distinct(world):
    targets = {fact.target for fact in world.facts}
    assert len({world.object_id(target) for target in targets}) == len(targets)


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.id)
def test_template_shape(relation):
    assert len(set(relation.templates)) == len(relation.templates) >= 5
    assert len(set(relation.questions)) == 2
    assert relation.templates[0].startswith("{}")
    starts = [template.startswith("{}") for template in relation.templates]
    assert any(starts) and not all(starts)
    for form in relation.forms:
        assert form.count("{}") == 1
        assert form == form.strip()
        assert not form.endswith(".")
    assert all(question.endswith("?") for question in relation.questions)


@pytest.mark.parametrize("kind", EntityKind)
@pytest.mark.parametrize("subject", ["Some Name", "She"])
def test_no_form_is_the_beginning_of_another(kind, subject):
    """With both "is in" and "is in the country of", the next word would be undecided."""
    forms = [form for r in RELATIONS if r.subject_kind is kind for form in r.forms]
    prompts = forms + [KIND_SENTENCE]
    prompts += [opener + form for opener in OPENERS for form in forms if form.startswith("{}")]
    prompts += [f"nq question: {f[0].lower()}{f[1:]}" for f in forms if f.endswith("?")]
    sentences = [text.rstrip(".") for text in (*REMARKS[kind], *FILLERS)]
    texts = [text.replace("{}", subject) for text in prompts + sentences]
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert not [other for other in texts if other != text and other.startswith(text)]
