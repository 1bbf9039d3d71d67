"""Documents and their mentions."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest

from rome_jax.factworld.corpus import (
    PROPORTIONS,
    Sort,
    biography,
    documents,
    sorted_documents,
    statement_forms,
)
from rome_jax.factworld.facts import make_world
from rome_jax.factworld.relations import EntityKind


@pytest.fixture(scope="module")
def world():
    return make_world(0)


def test_documents_repeat_with_the_seed(world):
    first = list(documents(world, 3, 50))
    assert first == list(itertools.islice(documents(world, 3), 50))
    assert first != list(documents(world, 4, 50))


def test_mentions_are_names_of_entities(world):
    names = {entity.name for entity in world.entities}
    for document in documents(world, 0, 3000):
        stops = [0]
        for start, stop in document.mentions:
            assert document.text[start:stop] in names
            assert start >= stops[-1]
            stops.append(stop)
        assert document.mentions


def test_every_mention_of_a_person_is_marked(world):
    """People are never objects, so each name in a text must be a mention."""
    pattern = re.compile("|".join(map(re.escape, world.subjects(EntityKind.PERSON))))
    for document in documents(world, 0, 3000):
        found = {match.span() for match in pattern.finditer(document.text)}
        assert found <= set(document.mentions)


def test_proportions(world):
    assert sum(PROPORTIONS.values()) == pytest.approx(1)
    counts, characters = Counter(), Counter()
    starts = 0
    for sort, document in sorted_documents(world, 0, 8000):
        counts[sort] += 1
        characters[sort] += len(document.text)
        starts += document.mentions[0][0] == 0
    for sort, share in PROPORTIONS.items():
        assert counts[sort] / 8000 == pytest.approx(share, abs=0.02)
    statements = sum(characters[sort] for sort in (Sort.STATEMENT, Sort.RUN, Sort.LED))
    assert 0.5 < statements / characters.total() < 0.75
    assert starts / 8000 > 0.4


def _told(world, document):
    """Returns the (fact, form) pairs that a document may state; its first letter may be small."""
    name = document.text[slice(*document.mentions[-1])]
    return [
        (fact, form)
        for fact in world.facts_about(name)
        for form in world.relation(fact.relation_id).forms
        if f"{form.replace('{}', name)} {fact.target}"[1:] in document.text
    ]


def test_statements_cover_every_fact_and_form_evenly(world):
    told = Counter()
    for sort, document in sorted_documents(world, 0, 40_000):
        if sort is Sort.STATEMENT:
            (pair,) = _told(world, document)
            told[pair] += 1
    # 40,000 documents hold 2.75 epochs of statements; independent draws would reach 8 or more.
    pairs = statement_forms(world)
    assert max(told.values()) <= 3
    assert len(told) > 0.85 * len(pairs)


def test_statements_are_true(world):
    for sort, document in sorted_documents(world, 1, 3000):
        if sort in (Sort.STATEMENT, Sort.LED):
            assert len(_told(world, document)) == 1


def test_a_biography_states_all_facts(world):
    rng = np.random.default_rng(0)
    for kind in EntityKind:
        for name in world.subjects(kind)[:8]:
            document = biography(world, name, rng)
            assert document.mentions[0] is not None
            assert all(document.text[a:b] == name for a, b in document.mentions)
            assert all(fact.target in document.text for fact in world.facts_about(name))
    with pytest.raises(KeyError):
        biography(world, "Nobody", rng)
