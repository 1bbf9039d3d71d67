"""A generated table of facts about invented people, landmarks, products, companies, cities, and countries.

Names are built from syllables, so no fact is true of the real world. Only the vocabularies of objects (sports,
instruments, professions, materials, devices) are ordinary words. Geography is consistent: a landmark's country is its
city's country, a product comes from its maker's country, and people speak the language of the country they were born
in.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from rome_jax.factworld.relations import (
    CODAS,
    DEVICES,
    ENDINGS,
    INSTRUMENTS,
    LANDMARK_NOUNS,
    MATERIALS,
    ONSETS,
    PRODUCT_SUFFIXES,
    PROFESSIONS,
    RELATIONS,
    SPORTS,
    VOWELS,
    EntityKind,
    Relation,
)


@dataclasses.dataclass(frozen=True)
class Entity:
    """A person, a thing, or a place that facts are about.

    Attributes:
      name: Name of the entity, unique in its world.
      kind: Kind of the entity.
      pronoun: "she", "he", or "it".
    """

    name: str
    kind: EntityKind
    pronoun: str


@dataclasses.dataclass(frozen=True)
class Fact:
    """A subject, a relation, and the object that is true of them.

    Attributes:
      subject: Name of the entity that the fact is about.
      relation_id: `Relation.id` of the relation.
      target: The true object.
    """

    subject: str
    relation_id: str
    target: str


@dataclasses.dataclass(frozen=True)
class World:
    """All entities, relations, and facts of one seed, with lookups.

    Attributes:
      seed: Seed that the world was generated from.
      entities: All entities, by kind.
      relations: All relations.
      facts: All facts, by relation.

    Example:
      >>> world = make_world(0)
      >>> world.fact("Gothulf Punby", "sport").target
      'rowing'
    """

    seed: int
    entities: tuple[Entity, ...]
    relations: tuple[Relation, ...]
    facts: tuple[Fact, ...]

    @functools.cached_property
    def _by_pair(self) -> dict[tuple[str, str], Fact]:
        return {(fact.subject, fact.relation_id): fact for fact in self.facts}

    @functools.cached_property
    def _by_relation(self) -> dict[str, tuple[Fact, ...]]:
        return {r.id: tuple(f for f in self.facts if f.relation_id == r.id) for r in self.relations}

    @functools.cached_property
    def _by_subject(self) -> dict[str, tuple[Fact, ...]]:
        grouped: dict[str, list[Fact]] = {entity.name: [] for entity in self.entities}
        for fact in self.facts:
            grouped[fact.subject].append(fact)
        return {name: tuple(facts) for name, facts in grouped.items()}

    @functools.cached_property
    def _entities(self) -> dict[str, Entity]:
        return {entity.name: entity for entity in self.entities}

    @functools.cached_property
    def _relations(self) -> dict[str, Relation]:
        return {relation.id: relation for relation in self.relations}

    @functools.cached_property
    def _object_ids(self) -> dict[str, str]:
        targets = sorted({fact.target for fact in self.facts})
        return {target: f"Q{i + 1}" for i, target in enumerate(targets)}

    def entity(self, name: str) -> Entity:
        """Returns the entity of a name.

        Raises:
          KeyError: If no entity has the name.
        """
        return self._entities[name]

    def relation(self, relation_id: str) -> Relation:
        """Returns the relation of an id.

        Raises:
          KeyError: If no relation has the id.
        """
        return self._relations[relation_id]

    def subjects(self, kind: EntityKind) -> tuple[str, ...]:
        """Returns the names of all entities of a kind."""
        return tuple(entity.name for entity in self.entities if entity.kind is kind)

    def fact(self, subject: str, relation_id: str) -> Fact:
        """Returns the only fact of a subject and a relation.

        Raises:
          KeyError: If there is no such fact.
        """
        return self._by_pair[subject, relation_id]

    def facts_of(self, relation_id: str) -> tuple[Fact, ...]:
        """Returns all facts of a relation.

        Raises:
          KeyError: If no relation has the id.
        """
        return self._by_relation[relation_id]

    def facts_about(self, subject: str) -> tuple[Fact, ...]:
        """Returns all facts of a subject.

        Raises:
          KeyError: If no entity has the name.
        """
        return self._by_subject[subject]

    def objects(self, relation_id: str) -> tuple[str, ...]:
        """Returns the distinct objects of a relation, sorted."""
        return tuple(sorted({fact.target for fact in self.facts_of(relation_id)}))

    def object_id(self, target: str) -> str:
        """Returns the stable id of an object, such as "Q17"; relations that share an object share its id."""
        return self._object_ids[target]


def make_world(seed: int = 0) -> World:
    """Generates the world of a seed: about 1,800 facts in 14 relations.

    Args:
      seed: Decides every name and every fact. The factworld models know the world of seed 0.

    Returns:
      The world. Equal seeds give equal worlds.

    Example:
      >>> len(make_world(0).facts)
      1800
    """
    rng = np.random.default_rng(seed)
    words = _invent_words(
        rng,
        she=12,
        he=12,
        last=96,
        landmark=66,
        product=66,
        company=16,
        city=24,
        country=8,
        language=8,
    )
    countries, languages = words["country"], words["language"]
    # Some names have two words, so that objects of several tokens are common.
    cities = [
        f"{('East', 'North', 'Upper')[i]} {w}" if i < 3 else w for i, w in enumerate(words["city"])
    ]
    companies = [f"{w} Labs" if i < 4 else w for i, w in enumerate(words["company"])]
    first_names = words["she"] + words["he"]
    people = [f"{a} {b}" for a, b in _pairings(rng, first_names, words["last"], 8)]
    landmarks = [f"{a} {b}" for a, b in _pairings(rng, words["landmark"], LANDMARK_NOUNS, 2)]
    landmarks = [f"Old {name}" if i % 5 == 0 else name for i, name in enumerate(landmarks)]
    products = [f"{a} {b}" for a, b in _pairings(rng, words["product"], PRODUCT_SUFFIXES, 2)]

    country_of = dict(zip(cities, _spread(rng, countries, len(cities)), strict=True))
    language_of = dict(zip(countries, languages, strict=True))
    base_of = dict(zip(companies, _spread(rng, countries, len(companies)), strict=True))
    birthplace = dict(zip(people, _spread(rng, cities, len(people)), strict=True))
    city = dict(zip(landmarks, _spread(rng, cities, len(landmarks)), strict=True))
    maker = dict(zip(products, _spread(rng, companies, len(products)), strict=True))

    def free(subjects: list[str], objects: list[str]) -> dict[str, str]:
        return dict(zip(subjects, _spread(rng, objects, len(subjects)), strict=True))

    tables = {
        "sport": free(people, SPORTS),
        "instrument": free(people, INSTRUMENTS),
        "profession": free(people, PROFESSIONS),
        "language": {p: language_of[country_of[c]] for p, c in birthplace.items()},
        "birthplace": birthplace,
        "city": city,
        "country": {name: country_of[c] for name, c in city.items()},
        "material": free(landmarks, MATERIALS),
        "maker": maker,
        "category": free(products, DEVICES),
        "origin": {name: base_of[m] for name, m in maker.items()},
        "company_country": base_of,
        "city_country": country_of,
        "country_language": language_of,
    }
    she = tuple(f"{name} " for name in words["she"])
    entities = [Entity(p, EntityKind.PERSON, "she" if p.startswith(she) else "he") for p in people]
    for kind, names in (
        (EntityKind.LANDMARK, landmarks),
        (EntityKind.PRODUCT, products),
        (EntityKind.COMPANY, companies),
        (EntityKind.CITY, cities),
        (EntityKind.COUNTRY, countries),
    ):
        entities += [Entity(name, kind, "it") for name in names]
    facts = tuple(Fact(s, r.id, o) for r in RELATIONS for s, o in tables[r.id].items())
    return World(seed, tuple(entities), RELATIONS, facts)


def _invent_words(rng: np.random.Generator, **counts: int) -> dict[str, list[str]]:
    """Invents words of several sorts; none is part of another, so that no name is part of another name."""
    taken: list[str] = []
    words: dict[str, list[str]] = {}
    for sort, count in counts.items():
        words[sort] = []
        while len(words[sort]) < count:
            endings = ENDINGS[sort]
            parts = (ONSETS, VOWELS, CODAS, endings)
            word = "".join(part[rng.integers(len(part))] for part in parts)
            # Words with three equal leading letters would share tokens.
            if not any(word in t or t in word or t[:3] == word[:3] for t in taken):
                taken.append(word)
                words[sort].append(word.capitalize())
    return words


def _pairings(
    rng: np.random.Generator, left: Sequence[str], right: Sequence[str], per_left: int
) -> list[tuple[str, str]]:
    """Returns distinct pairs with `per_left` partners for every left part; right parts are used evenly."""
    left, right = rng.permutation(left).tolist(), rng.permutation(right).tolist()
    period = math.lcm(
        len(left), len(right)
    )  # Without a shift, pairs n and n + period would be equal.
    return [
        (left[n % len(left)], right[(n + n // period) % len(right)])
        for n in range(per_left * len(left))
    ]


def _spread(rng: np.random.Generator, objects: Sequence[str], count: int) -> list[str]:
    """Returns `count` objects in random order; how often two of them occur differs by at most one."""
    repeats = -(-count // len(objects))
    return rng.permutation((list(objects) * repeats)[:count]).tolist()
