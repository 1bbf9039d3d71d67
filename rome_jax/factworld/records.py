"""The world in the file formats of CounterFact, zsRE, known facts, attribute snippets, and TF-IDF.

An edit request is a fact and a new target. Not the facts but the requests are split into roles: the model is trained on
every fact, and a method that was tuned on TUNING requests is judged on HELD_OUT requests.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from rome_jax.factworld.corpus import FILLERS, KIND_SENTENCE, biography
from rome_jax.factworld.facts import Fact, World

MIN_NEIGHBORS = 4  # A relation is editable if each of its objects has more subjects than this.
MAX_PROMPTS = 10  # Most neighborhood and attribute prompts per record, as in CounterFact.
NQ_PREFIX = "nq question: "
# The default token pattern of scikit-learn: words of two characters or more.
WORD = re.compile(r"(?u)\b\w\w+\b")

Item = TypeVar("Item")


class Role(enum.Enum):
    """Half of the edit requests: for tuning a method, or for judging it."""

    TUNING = "tuning"
    HELD_OUT = "held_out"


@dataclasses.dataclass(frozen=True)
class Request:
    """An edit request: a fact and its new target.

    Attributes:
      case_id: Index of the fact in `World.facts`.
      fact: The fact that is edited.
      target_new: The new object, another object of the fact's relation.
    """

    case_id: int
    fact: Fact
    target_new: str


def edit_requests(
    world: World, seed: int, role: Role, count: int | None = None
) -> tuple[Request, ...]:
    """Returns the edit requests of a role; the relations take turns.

    The roles share no fact. A shorter list is the beginning of a longer one.

    Args:
      world: The facts.
      seed: Decides the split, the order, and every new target.
      role: Half of the requests.
      count: Number of requests; None means all of the role.

    Raises:
      ValueError: If the role has fewer than `count` requests.

    Example:
      >>> from rome_jax.factworld.facts import make_world
      >>> (request,) = edit_requests(make_world(0), 0, Role.HELD_OUT, 1)
      >>> request.fact.subject, request.fact.target, request.target_new
      ('Gothulf Punby', 'rowing', 'speed skating')
    """
    index = {fact: i for i, fact in enumerate(world.facts)}
    queues = []
    for relation_id in editable_relations(world):
        facts = world.facts_of(relation_id)
        order = np.random.default_rng([seed, index[facts[0]]]).permutation(len(facts))
        half = len(facts) // 2
        queues.append([facts[i] for i in (order[:half] if role is Role.TUNING else order[half:])])
    turns = [q[i] for i in range(max(map(len, queues))) for q in queues if i < len(q)]
    if count is not None and count > len(turns):
        raise ValueError(
            f"count={count} is more than the {len(turns)} edit requests of role {role.value}: give at most that many."
        )
    requests = []
    for fact in turns[:count]:
        rng = _case_rng(seed, index[fact], 0)
        others = [o for o in world.objects(fact.relation_id) if o != fact.target]
        requests.append(Request(index[fact], fact, pick(rng, others)))
    return tuple(requests)


def editable_relations(world: World) -> tuple[str, ...]:
    """Returns the ids of the relations whose objects all have enough subjects for neighborhood prompts."""
    kept = []
    for relation in world.relations:
        targets = [fact.target for fact in world.facts_of(relation.id)]
        if min(targets.count(target) for target in set(targets)) > MIN_NEIGHBORS:
            kept.append(relation.id)
    return tuple(kept)


def counterfact_records(
    world: World, seed: int, role: Role, count: int | None = None
) -> list[dict[str, Any]]:
    """Returns edit requests in the full layout of CounterFact.

    If a landmark is moved to a city of another country, its record also has `portability_prompts`, a list of
    {"prompt", "target"}, because its country should change too.

    Args:
      world, seed, role, count: As in `edit_requests`.

    Raises:
      ValueError: If the role has fewer than `count` requests.

    Example:
      >>> from rome_jax.factworld.facts import make_world
      >>> record = counterfact_records(make_world(0), 0, Role.TUNING, 1)[0]
      >>> record["requested_rewrite"]["prompt"]
      '{} plays the sport of'
    """
    return [_counterfact(world, seed, r) for r in edit_requests(world, seed, role, count)]


def _counterfact(world: World, seed: int, request: Request) -> dict[str, Any]:
    """Returns the CounterFact record of a request."""
    fact, rng = request.fact, _case_rng(seed, request.case_id, 1)
    canonical, *rest = world.relation(fact.relation_id).templates
    rest = _shuffled(rng, rest)
    paraphrases = [_fill(template, fact.subject) for template in rest[:2]]
    record: dict[str, Any] = {
        "case_id": request.case_id,
        "pararel_idx": request.case_id,
        "requested_rewrite": {
            "prompt": canonical,
            "relation_id": fact.relation_id,
            "target_new": _target(world, request.target_new),
            "target_true": _target(world, fact.target),
            "subject": fact.subject,
        },
        "paraphrase_prompts": [
            f"{pick(rng, FILLERS)} {prompt}" if rng.random() < 0.5 else prompt
            for prompt in paraphrases
        ],
        "neighborhood_prompts": _prompts_with_object(world, fact, fact.target, rng),
        "attribute_prompts": _prompts_with_object(world, fact, request.target_new, rng),
        "generation_prompts": [
            _fill(template, fact.subject) for template in (*rest[2:4], KIND_SENTENCE)
        ],
    }
    if fact.relation_id == "city":
        country = world.fact(request.target_new, "city_country").target
        if country != world.fact(fact.subject, "country").target:
            record["portability_prompts"] = [
                {"prompt": _fill(template, fact.subject), "target": country}
                for template in world.relation("country").templates[:2]
            ]
    return record


def _prompts_with_object(
    world: World, fact: Fact, target: str, rng: np.random.Generator
) -> list[str]:
    """Returns prompts about other subjects with the true object `target`, one per subject."""
    templates = world.relation(fact.relation_id).templates
    subjects = [
        other.subject
        for other in world.facts_of(fact.relation_id)
        if other.target == target and other.subject != fact.subject
    ]
    return [_fill(pick(rng, templates), s) for s in _shuffled(rng, subjects)[:MAX_PROMPTS]]


def zsre_records(
    world: World, seed: int, role: Role, count: int | None = None
) -> list[dict[str, Any]]:
    """Returns the same edit requests in the zsRE layout of MEND.

    An evaluation edits the model to answer `answers[0]`. In zsRE that is the true answer, which the model does not
    know. The factworld models know every fact, so here `answers` and `alt` hold the NEW target, and `pred` holds the
    present one. `loc` asks about another subject, and `loc_ans` is its true answer.

    Args:
      world, seed, role, count: As in `edit_requests`.

    Raises:
      ValueError: If the role has fewer than `count` requests.
    """
    records = []
    for request in edit_requests(world, seed, role, count):
        fact, rng = request.fact, _case_rng(seed, request.case_id, 2)
        questions = world.relation(fact.relation_id).questions
        source = _fill(questions[0], fact.subject)
        other = pick(rng, world.facts)
        while other.subject == fact.subject or other.relation_id == fact.relation_id:
            other = pick(rng, world.facts)
        question = _fill(world.relation(other.relation_id).questions[0], other.subject)
        records.append(
            {
                "case_id": request.case_id,
                "subject": fact.subject,
                "src": source,
                "pred": fact.target,
                "rephrase": _fill(questions[1], fact.subject),
                "alt": request.target_new,
                "answers": [request.target_new],
                # The loader appends the question mark and the answer.
                "loc": NQ_PREFIX + question[:1].lower() + question[1:].removesuffix("?"),
                "loc_ans": other.target,
                "cond": f"{fact.target} >> {request.target_new} || {source}",
            }
        )
    return records


def known_facts(world: World, seed: int, count: int | None = None) -> list[dict[str, Any]]:
    """Returns facts with a random template each, in the layout of known_1000.json, for causal tracing.

    Args:
      world: The facts.
      seed: Decides the order and the templates.
      count: Number of facts; None means all.

    Raises:
      ValueError: If the world has fewer than `count` facts.

    Example:
      >>> from rome_jax.factworld.facts import make_world
      >>> (fact,) = known_facts(make_world(0), 0, 1)
      >>> fact["prompt"], fact["attribute"]
      ('Kalina Drathsten owns an expensive', 'organ')
    """
    if count is not None and count > len(world.facts):
        raise ValueError(
            f"count={count} is more than the {len(world.facts)} facts of the world: give at most that many."
        )
    rng = np.random.default_rng(seed)
    records = []
    for known_id, i in enumerate(rng.permutation(len(world.facts))[:count]):
        fact = world.facts[i]
        template = pick(rng, world.relation(fact.relation_id).templates)
        records.append(
            {
                "known_id": known_id,
                "subject": fact.subject,
                "attribute": fact.target,
                "template": template,
                "prediction": f" {fact.target}.",
                "prompt": _fill(template, fact.subject),
                "relation_id": fact.relation_id,
            }
        )
    return records


def attribute_snippets(world: World, seed: int) -> list[dict[str, Any]]:
    """Returns reference texts for every relation and object: {"relation_id", "target_id", "samples"}.

    A sample is {"name", "text"}: an entity that truly has the object, and its biography. An entity has the same
    biography in all groups.

    Args:
      world: The facts.
      seed: Decides the wording of the biographies.
    """
    names = (entity.name for entity in world.entities)
    texts = dict(zip(names, biographies(world, seed), strict=True))
    return [
        {
            "relation_id": relation.id,
            "target_id": world.object_id(target),
            "samples": [
                {"name": fact.subject, "text": texts[fact.subject]}
                for fact in world.facts_of(relation.id)
                if fact.target == target
            ],
        }
        for relation in world.relations
        for target in world.objects(relation.id)
    ]


def tfidf_vocabulary(texts: Iterable[str]) -> tuple[np.ndarray, dict[str, int]]:
    """Computes inverse document frequencies like the TfidfVectorizer of scikit-learn with its defaults.

    For n texts, df(w) of which contain the word w, idf(w) = ln((1 + n) / (1 + df(w))) + 1.

    Args:
      texts: The documents, for example all biographies.

    Returns:
      idf, float64 [V], and the index of each lower-case word in it, in alphabetical order.

    Raises:
      ValueError: If no text contains a word of two characters or more.

    Example:
      >>> idf, vocabulary = tfidf_vocabulary(["red clay", "red brick"])
      >>> vocabulary, float(idf[vocabulary["red"]])
      ({'brick': 0, 'clay': 1, 'red': 2}, 1.0)
    """
    words = [set(WORD.findall(text.lower())) for text in texts]
    vocabulary = {word: i for i, word in enumerate(sorted(set().union(*words)))}
    if not vocabulary:
        raise ValueError("texts contain no word of two characters or more: give other texts.")
    frequency = np.zeros(len(vocabulary))
    for present in words:
        frequency[[vocabulary[word] for word in present]] += 1
    return np.log((1 + len(words)) / (1 + frequency)) + 1, vocabulary


def biographies(world: World, seed: int) -> Iterator[str]:
    """Yields the biography of every entity, as in `attribute_snippets`."""
    rng = np.random.default_rng(seed)
    return (biography(world, entity.name, rng).text for entity in world.entities)


def _case_rng(seed: int, case_id: int, purpose: int) -> np.random.Generator:
    """Returns a random stream per case and purpose, so that a record does not depend on the other records."""
    return np.random.default_rng([seed, case_id, purpose])


def _target(world: World, target: str) -> dict[str, str]:
    """Returns an object as CounterFact writes it."""
    return {"str": target, "id": world.object_id(target)}


def _fill(template: str, subject: str) -> str:
    """Puts a subject into a template."""
    return template.replace("{}", subject)


def pick(rng: np.random.Generator, options: Sequence[Item]) -> Item:
    """Returns a random element of a sequence."""
    return options[int(rng.integers(len(options)))]


def _shuffled(rng: np.random.Generator, items: Sequence[Item]) -> list[Item]:
    """Returns the items in random order."""
    return [items[i] for i in rng.permutation(len(items))]
