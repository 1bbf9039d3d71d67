"""Edits of factworld's facts to train on: which facts are kept apart, and what the examples contain."""

import numpy as np
import pytest

from rome_jax.data.request import fill
from rome_jax.factworld.corpus import FILLERS
from rome_jax.factworld.facts import make_world
from rome_jax.factworld.records import Role, edit_requests
from rome_jax.factworld_training.edit_examples import VALIDATION_SHARE, split_examples


@pytest.fixture(scope="module")
def world():
    return make_world(0)


@pytest.fixture(scope="module")
def split(world):
    return split_examples(world, 0)


@pytest.fixture(scope="module")
def drawn(split):
    return [examples.draw(np.random.default_rng(0), 400) for examples in split]


def facts_of(world, example):
    """Looks up the edited fact of an example, and the fact that must not change."""
    request = example.request
    (edited,) = [
        fact
        for fact in world.facts
        if fact.subject == request.subject
        and fact.target == request.target_true
        and request.prompt in world.relation(fact.relation_id).templates
    ]
    (other,) = [
        fact
        for fact in world.facts
        if f" {fact.target}" == example.other_target
        and example.other_prompt
        in [fill(t, fact.subject) for t in world.relation(fact.relation_id).templates]
    ]
    return edited, other


def test_training_validation_and_evaluation_share_no_fact(world, split):
    training, validation = (set(examples.facts) for examples in split)
    held_out = {request.fact for request in edit_requests(world, 0, Role.HELD_OUT)}
    tuning = {request.fact for request in edit_requests(world, 0, Role.TUNING)}
    assert not training & validation and not (training | validation) & held_out
    assert training | validation == tuning
    assert len(validation) == len(tuning) // VALIDATION_SHARE
    # Both contain all relations.
    relations = {fact.relation_id for fact in tuning}
    assert all(
        {fact.relation_id for fact in facts} == relations for facts in (training, validation)
    )


def test_examples_only_involve_their_own_facts(world, split, drawn):
    for examples, found in zip(split, drawn, strict=True):
        for example in found:
            edited, other = facts_of(world, example)
            assert edited in examples.facts and other in examples.facts
            assert other.subject != edited.subject


def test_targets_are_other_objects_of_the_relation(world, drawn):
    for example in drawn[0]:
        edited, _ = facts_of(world, example)
        new = example.request.target_new
        assert new != edited.target and new in world.objects(edited.relation_id)


def test_paraphrases_ask_for_the_edited_fact(world, drawn):
    fillers, first = 0, 0
    for example in drawn[0]:
        edited, _ = facts_of(world, example)
        templates = world.relation(edited.relation_id).templates
        plain = [fill(template, edited.subject) for template in templates]
        assert example.paraphrase.endswith(tuple(plain))
        if example.paraphrase not in plain:
            fillers += 1
            (prompt,) = [p for p in plain if example.paraphrase.endswith(f" {p}")]
            assert example.paraphrase.removesuffix(f" {prompt}") in FILLERS
        first += example.request.prompt == templates[0]
    assert 150 < fillers < 250
    assert 200 < first < 300  # Half of them, and some of the other half.


def test_draws_depend_on_the_generator_alone(split, drawn):
    training = split[0]
    assert training.draw(np.random.default_rng(0), 400) == drawn[0]
    assert training.draw(np.random.default_rng(0), 7) == drawn[0][:7]
    assert training.draw(np.random.default_rng(1), 7) != drawn[0][:7]


def test_the_split_depends_on_the_seed(world, split):
    assert split_examples(world, 0) == split
    other = split_examples(world, 1)
    assert set(other[1].facts) != set(split[1].facts)
    # The roles do not depend on the seed, so held-out facts are never trained on.
    facts = [{*training.facts, *validation.facts} for training, validation in (split, other)]
    assert facts[0] == facts[1]
