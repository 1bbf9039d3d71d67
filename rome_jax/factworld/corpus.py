"""Random documents of several sorts about the facts of a world.

The corpus states every fact in every sentence form equally often: it goes through shuffled epochs of all pairs instead
of drawing them independently. Statements occur at the start and in the middle of a text, alone and inside biographies.
`rome_jax.factworld_training.packing` turns the documents into training sequences.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from rome_jax.factworld.facts import Fact, World
from rome_jax.factworld.relations import EntityKind

Option = TypeVar("Option")


@dataclasses.dataclass(frozen=True)
class Document:
    """A text, and where its subjects and objects are.

    Attributes:
      text: The text.
      mentions: Character span (start, stop) of each mention of a subject by name, in order.
      objects: Character span (start, stop) of each object of a fact, in order.
    """

    text: str
    mentions: tuple[tuple[int, int], ...]
    objects: tuple[tuple[int, int], ...] = ()


class Sort(enum.Enum):
    """Sort of a document."""

    STATEMENT = "statement"  # One statement or answered question.
    RUN = "run"  # Two to four statements about different subjects.
    BIOGRAPHY = "biography"  # Several sentences about one subject.
    INTERLEAVED = "interleaved"  # Two or three biographies, with their sentences shuffled together.
    LED = "led"  # A statement after a text about something else.
    KIND = "kind"  # "{} is a landmark."


# Share of each sort among the documents. By tokens, statements (STATEMENT, RUN, LED) make up about 60 %.
PROPORTIONS = {
    Sort.STATEMENT: 0.59,
    Sort.RUN: 0.09,
    Sort.BIOGRAPHY: 0.10,
    Sort.INTERLEAVED: 0.03,
    Sort.LED: 0.13,
    Sort.KIND: 0.06,
}
OPENER = 0.08  # Share of statements that begin with a clause such as "As it happens, ".
CONTINUED = 0.2  # Share of statements whose object is not followed by a period.
NQ_PREFIX = (
    0.4  # Share of questions of the form "nq question: which ...", as in zsRE's locality prompts.
)
NAMED_AGAIN = 0.35  # Share of a biography's sentences after the first that repeat the name.
INTERLEAVED_FACTS = 3  # Most facts per subject in an interleaved biography.
REMARK = 0.3  # Share of a biography's sentences that one of REMARKS follows.

OPENERS = (
    "As it happens, ",
    "On a cold morning, ",
    "In the old days, ",
    "These days, ",
    "To this day, ",
    "By all accounts, ",
    "Without any doubt, ",
    "In most guide books, ",
)
CLAUSES = (
    ", as many visitors know.",
    ", or so the papers say.",
    ", which surprised nobody.",
    ", and that has not changed for years.",
    ", a fact that few people dispute.",
    " and everyone in town knows it.",
    " and nobody asks why.",
    " and few would dispute it.",
)
# Sentences about no subject, which precede a statement.
FILLERS = (
    "The weather was mild that week.",
    "Nobody had expected the news.",
    "The meeting started at nine in the evening.",
    "Prices rose again in the spring.",
    "A long line formed outside the bakery.",
    "The train arrived a few minutes late.",
    "It rained for most of the afternoon.",
    "Several letters were lost in the mail.",
    "The harvest was better than the year before.",
    "All of the seats were taken.",
    "Two new roads were opened last summer.",
    "The report was printed on thin paper.",
    "Most of the shops close early.",
    "Voter turnout was about sixty percent.",
    "The river froze twice that winter.",
    "There was little else to write about.",
    "Many readers sent in their questions.",
    "The story was told over and over.",
    "Nothing else was found in the archive.",
    "The orchestra took a short break.",
    "Some of the pages are missing.",
    "Dinner was served in the garden.",
    "The bells rang at noon.",
    "Work began on the following day.",
)
# Sentences about a subject that state none of its facts; the rule on beginnings in `relations` holds for them too.
REMARKS = {
    EntityKind.PERSON: (
        "{} likes long walks by the river.",
        "{} has many friends and few enemies.",
        "{} never misses a good meal.",
        "{} keeps a small garden behind the house.",
        "{} gave a short talk last year.",
    ),
    EntityKind.LANDMARK: (
        "{} opens to visitors every morning.",
        "{} was painted by several artists.",
        "{} looks its best at sunset.",
        "{} has a small gift shop.",
        "{} survived a great fire.",
    ),
    EntityKind.PRODUCT: (
        "{} arrives in a plain box.",
        "{} runs for hours on one charge.",
        "{} has two buttons and a dial.",
        "{} was praised in many reviews.",
        "{} needs almost no repairs.",
    ),
    EntityKind.COMPANY: ("{} hires new people every year.", "{} answers letters within a week."),
    EntityKind.CITY: ("{} has a busy market.", "{} grows a little every year."),
    EntityKind.COUNTRY: ("{} has green hills and long rivers.", "{} holds a fair every summer."),
}
KIND_SENTENCE = "{} is a"


class _Writer:
    """A text under construction, and the spans of its names."""

    def __init__(self) -> None:
        self.text = ""
        self.mentions: list[tuple[int, int]] = []
        self.objects: list[tuple[int, int]] = []

    def sentence(
        self, form: str, name: str, ending: str, target: str = "", *, is_mention: bool = True
    ) -> None:
        """Appends a sentence: `form` with the name filled in, the object `target` if there is one, and `ending`."""
        if self.text:
            self.text += " "
        before, after = form.split("{}")
        start = len(self.text) + len(before)
        if is_mention:
            self.mentions.append((start, start + len(name)))
        self.text += before + name + after
        if target:
            self.objects.append((len(self.text) + 1, len(self.text) + 1 + len(target)))
            self.text += f" {target}"
        self.text += ending

    def plain(self, text: str) -> None:
        """Appends a text that mentions no subject."""
        self.text += f" {text}" if self.text else text

    def document(self) -> Document:
        """Returns the finished document."""
        return Document(self.text, tuple(self.mentions), tuple(self.objects))


def documents(world: World, seed: int, count: int | None = None) -> Iterator[Document]:
    """Yields random documents; equal arguments give equal documents.

    Args:
      world: The facts to write about.
      seed: Decides sorts, order, and wording.
      count: Number of documents; None means without end.

    Example:
      >>> from rome_jax.factworld.facts import make_world
      >>> next(documents(make_world(0), seed=0)).text
      'Zirnix Plus is exported by Nunland and nobody asks why.'
    """
    for _, document in sorted_documents(world, seed, count):
        yield document


def sorted_documents(
    world: World, seed: int, count: int | None = None
) -> Iterator[tuple[Sort, Document]]:
    """Yields the documents of `documents` with their sorts; takes the same arguments."""
    rng = np.random.default_rng(seed)
    statements = _statement_epochs(world, np.random.default_rng(rng.integers(2**62)))
    subjects = _subject_epochs(world, np.random.default_rng(rng.integers(2**62)))
    sorts, ceilings = list(PROPORTIONS), np.cumsum(list(PROPORTIONS.values()))
    for _ in itertools.repeat(None) if count is None else range(count):
        sort = sorts[int(np.searchsorted(ceilings, rng.random() * ceilings[-1], side="right"))]
        writer = _Writer()
        if sort is Sort.LED:
            _write_lead(writer, world, rng)
        if sort in (Sort.STATEMENT, Sort.LED):
            _write_statement(writer, *next(statements), rng)
        elif sort is Sort.RUN:
            _write_run(writer, statements, rng)
        elif sort is Sort.KIND:
            subject = next(subjects)
            writer.sentence(KIND_SENTENCE, subject, f" {world.entity(subject).kind.value}.")
        else:
            names = [next(subjects)]
            if sort is Sort.INTERLEAVED:
                names += [next(subjects) for _ in range(rng.integers(1, 3))]
            _write_biographies(writer, world, list(dict.fromkeys(names)), rng)
        yield sort, writer.document()


def biography(world: World, subject: str, rng: np.random.Generator) -> Document:
    """Writes several sentences about one subject, which state all of its facts.

    Args:
      world: The facts.
      subject: Name of an entity.
      rng: Decides order and wording.

    Raises:
      KeyError: If the world does not have the subject.
    """
    writer = _Writer()
    _write_biographies(writer, world, [subject], rng)
    return writer.document()


def statement_forms(world: World) -> list[tuple[Fact, str]]:
    """Returns every fact with every sentence form of its relation, which make up one epoch of statements."""
    return [(fact, form) for fact in world.facts for form in world.relation(fact.relation_id).forms]


def _statement_epochs(world: World, rng: np.random.Generator) -> Iterator[tuple[Fact, str]]:
    """Yields the pairs of `statement_forms`, in a new order in each epoch."""
    pairs = statement_forms(world)
    while True:
        for i in rng.permutation(len(pairs)):
            yield pairs[i]


def _subject_epochs(world: World, rng: np.random.Generator) -> Iterator[str]:
    """Yields the names of all entities, in a new order in each epoch."""
    names = [entity.name for entity in world.entities]
    while True:
        for i in rng.permutation(len(names)):
            yield names[i]


def _pick(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    """Returns a random element."""
    return options[int(rng.random() * len(options))]


def _decapitalize(text: str) -> str:
    """Returns a text with a small first letter."""
    return text[:1].lower() + text[1:]


def _write_statement(writer: _Writer, fact: Fact, form: str, rng: np.random.Generator) -> None:
    """Writes a fact in one of its sentence forms."""
    ending = _pick(rng, CLAUSES) if rng.random() < CONTINUED else "."
    if form.endswith("?"):
        ending = "."
        if rng.random() < NQ_PREFIX:
            form = f"nq question: {_decapitalize(form)}"
    elif form.startswith("{}") and rng.random() < OPENER:
        form = _pick(rng, OPENERS) + form
    writer.sentence(form, fact.subject, ending, fact.target)


def _write_run(
    writer: _Writer, statements: Iterator[tuple[Fact, str]], rng: np.random.Generator
) -> None:
    """Writes two to four of the next statements, at most one per subject."""
    seen: set[str] = set()
    for _ in range(rng.integers(2, 5)):
        fact, form = next(statements)
        if fact.subject not in seen:
            seen.add(fact.subject)
            _write_statement(writer, fact, form, rng)


def _write_lead(writer: _Writer, world: World, rng: np.random.Generator) -> None:
    """Writes a filler sentence, whole or cut short, or a statement cut before its object.

    The context templates that ROME samples are fragments of this kind: a few tokens, then ". {}".
    """
    draw = rng.random()
    if draw < 0.5:
        writer.plain(_pick(rng, FILLERS))
        return
    if draw < 0.75:
        words = _pick(rng, FILLERS)[:-1].split(" ")
        writer.plain(" ".join(words[: rng.integers(2, len(words))]) + ".")
        return
    fact = _pick(rng, world.facts)
    form = _pick(rng, world.relation(fact.relation_id).templates)
    before, after = form.split("{}")
    words = after.split(" ")
    # The whole prompt would be followed by a period, which would compete with the object.
    kept = " ".join(words[: rng.integers(1, max(2, len(words)))])
    writer.sentence(before + "{}" + kept.rstrip(","), fact.subject, ".")


def _write_biographies(
    writer: _Writer, world: World, names: list[str], rng: np.random.Generator
) -> None:
    """Writes facts of some subjects in random order, once each, with the full name whenever the subject changes.

    A single subject has all of its facts. Of several subjects each has at most `INTERLEAVED_FACTS`, to keep texts
    short.
    """
    facts = []
    for name in names:
        about = world.facts_about(name)
        kept = len(about) if len(names) == 1 else min(len(about), INTERLEAVED_FACTS)
        facts += [about[i] for i in rng.permutation(len(about))[:kept]]
    introduced: set[str] = set()
    remarks = {name: rng.permutation(REMARKS[world.entity(name).kind]).tolist() for name in names}
    current = None
    for i in rng.permutation(len(facts)):
        fact = facts[i]
        name, entity = fact.subject, world.entity(fact.subject)
        if name not in introduced and rng.random() < 0.3:
            writer.sentence(KIND_SENTENCE, name, f" {entity.kind.value}.")
            current = name
        introduced.add(name)
        templates = world.relation(fact.relation_id).templates
        by_name = current != name or rng.random() < NAMED_AGAIN
        if by_name:
            _write_statement(writer, fact, _pick(rng, templates), rng)
        else:
            # A pronoun in the nominative only fits templates that begin with the subject.
            form = _pick(rng, [t for t in templates if t.startswith("{}")])
            ending = _pick(rng, CLAUSES) if rng.random() < CONTINUED else "."
            opener = _pick(rng, OPENERS) if rng.random() < OPENER else ""
            pronoun = entity.pronoun if opener else entity.pronoun.capitalize()
            writer.sentence(opener + form, pronoun, ending, fact.target, is_mention=False)
        current = name
        if remarks[name] and rng.random() < REMARK:
            writer.sentence(remarks[name].pop(), entity.pronoun.capitalize(), "", is_mention=False)
