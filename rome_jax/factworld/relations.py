"""Tables of the invented world: kinds of entities, relations with their templates, and parts of names.

The templates follow one rule, which tests/factworld checks: with the subject filled in, no sentence form of a kind of
subjects is the beginning of another one. With both "{} is in" and "{} is in the country of", the next word would be
undecided, and recall would suffer in both relations.
"""

from __future__ import annotations

import dataclasses
import enum


class EntityKind(enum.Enum):
    """Kind of an entity. The value is the noun that follows "{} is a"."""

    PERSON = "person"
    LANDMARK = "landmark"
    PRODUCT = "product"
    COMPANY = "company"
    CITY = "city"
    COUNTRY = "country"

    @property
    def pronouns(self) -> tuple[str, ...]:
        """Pronouns that an entity of this kind may have."""
        return ("she", "he") if self is EntityKind.PERSON else ("it",)


@dataclasses.dataclass(frozen=True)
class Relation:
    """One relation and the texts that ask for its object, which follows each of them after a single space.

    Attributes:
      id: Identifier, such as "city_country".
      name: Name of the relation in words.
      subject_kind: Kind of the subjects.
      templates: Texts with one "{}" for the subject. The first is the canonical prompt; the others are paraphrases.
      questions: Two zsRE-style questions with one "{}" each.
    """

    id: str
    name: str
    subject_kind: EntityKind
    templates: tuple[str, ...]
    questions: tuple[str, str]

    @property
    def forms(self) -> tuple[str, ...]:
        """Templates and questions: all texts that the object may follow."""
        return self.templates + self.questions


RELATIONS = (
    Relation(
        "sport",
        "sport played",
        EntityKind.PERSON,
        (
            "{} plays the sport of",
            "The sport that {} plays is",
            "{} has always loved the sport of",
            "When it comes to sport, {} prefers",
            "{} trains hard every weekend at",
            "{} won a medal in",
        ),
        ("Which sport does {} play?", "What is the sport of {}?"),
    ),
    Relation(
        "instrument",
        "instrument played",
        EntityKind.PERSON,
        (
            "{} performs on the",
            "The instrument that {} plays is the",
            "{} took lessons on the",
            "In the orchestra, {} plays the",
            "{} likes to practice the",
            "{} owns an expensive",
        ),
        ("Which instrument does {} play?", "What is the instrument of {}?"),
    ),
    Relation(
        "profession",
        "profession",
        EntityKind.PERSON,
        (
            "{} works as a",
            "The profession of {} is that of a",
            "{} earns a living as a",
            "After leaving school, {} became a",
            "{} was hired by the council as a",
            "{} found a job as a",
        ),
        ("What is the profession of {}?", "Which job does {} have?"),
    ),
    Relation(
        "language",
        "mother tongue",
        EntityKind.PERSON,
        (
            "{} speaks the language",
            "The mother tongue of {} is",
            "{} grew up speaking",
            "At home, {} talks in",
            "{} writes long letters in",
            "{} dreams and thinks in",
        ),
        ("Which language does {} speak?", "What is the mother tongue of {}?"),
    ),
    Relation(
        "birthplace",
        "city of birth",
        EntityKind.PERSON,
        (
            "{} was born in the city of",
            "The birthplace of {} is",
            "{} spent an early childhood in",
            "According to the records, {} hails from",
            "{} had parents who lived in",
            "{} first went to school in",
        ),
        ("Where was {} born?", "Which city is the birthplace of {}?"),
    ),
    Relation(
        "city",
        "city of a landmark",
        EntityKind.LANDMARK,
        (
            "{} is in the city of",
            "The city where {} can be found is",
            "{} rises above the streets of",
            "Tourists who want to see {} travel to",
            "{} has long been the pride of",
            "{} draws large crowds to",
        ),
        ("Which city is home to {}?", "In what city is {}?"),
    ),
    Relation(
        "country",
        "country of a landmark",
        EntityKind.LANDMARK,
        (
            "{} is in the country of",
            "The country where {} can be found is",
            "{} appears on the stamps of",
            "The government that protects {} is that of",
            "{} was paid for by the people of",
            "{} is protected by the laws of",
        ),
        ("Which country is home to {}?", "In what country is {}?"),
    ),
    Relation(
        "material",
        "building material",
        EntityKind.LANDMARK,
        (
            "{} was built out of",
            "The main material of {} is",
            "{} has walls made of",
            "The builders of {} worked with",
            "{} owes its color to",
            "{} consists almost entirely of",
        ),
        ("Which material is {} made of?", "What are the walls of {} made of?"),
    ),
    Relation(
        "maker",
        "maker of a product",
        EntityKind.PRODUCT,
        (
            "{} is made by",
            "The company behind {} is",
            "{} was developed by engineers at",
            "Everyone who buys {} pays money to",
            "{} was first announced by",
            "{} carries the logo of",
        ),
        ("Which company makes {}?", "Who is the maker of {}?"),
    ),
    Relation(
        "category",
        "kind of device",
        EntityKind.PRODUCT,
        (
            "{} is sold as a",
            "The device known as {} is really a",
            "{} won the prize for best",
            "Shops list {} under the heading",
            "{} replaced my broken",
            "{} does the job of a",
        ),
        ("What kind of device is {}?", "Which category does {} fall into?"),
    ),
    Relation(
        "origin",
        "country of origin of a product",
        EntityKind.PRODUCT,
        (
            "{} comes from the country of",
            "The country that exports {} is",
            "{} rolls off assembly lines in",
            "The label on {} says it was made in",
            "{} leaves the factory in crates from",
            "{} is exported by",
        ),
        ("Which country exports {}?", "Where is {} produced?"),
    ),
    Relation(
        "company_country",
        "country of a company",
        EntityKind.COMPANY,
        (
            "{} has its headquarters in",
            "The country where {} pays tax is",
            "{} was founded by investors from",
            "The head office of {} is located in",
            "{} sells its shares in",
            "{} obeys the laws of",
        ),
        ("Which country is {} based in?", "Where are the offices of {}?"),
    ),
    Relation(
        "city_country",
        "country of a city",
        EntityKind.CITY,
        (
            "{} lies within the borders of",
            "The country that contains the city of {} is",
            "{} pays taxes to the state of",
            "Maps show the city of {} inside",
            "{} flies the flag of",
            "{} belongs to the provinces of",
        ),
        ("Which country contains {}?", "In what country does {} lie?"),
    ),
    Relation(
        "country_language",
        "official language",
        EntityKind.COUNTRY,
        (
            "{} has the official language",
            "The official language of {} is",
            "{} prints its laws in",
            "Schools across {} teach in",
            "{} broadcasts the news in",
            "{} runs its courts in",
        ),
        ("Which language is official in {}?", "What do people in {} speak?"),
    ),
)

SPORTS = "tennis football hockey cricket rugby judo golf rowing fencing archery".split() + [
    "water polo",
    "speed skating",
]
INSTRUMENTS = "violin cello flute piano trumpet harp oboe clarinet banjo organ".split() + [
    "bass guitar",
    "french horn",
]
# Professions and devices begin with a consonant, because "a" precedes them.
PROFESSIONS = "baker carpenter dentist farmer lawyer nurse painter pilot sailor teacher".split() + [
    "book binder",
    "tax clerk",
]
MATERIALS = "granite marble sandstone brick timber concrete steel copper bronze glass".split() + [
    "red clay",
    "white quartz",
]
DEVICES = "camera printer scooter kettle telescope watch keyboard blender drone toaster".split() + [
    "solar lamp",
    "vacuum cleaner",
]
LANDMARK_NOUNS = tuple(
    "Tower Bridge Palace Temple Museum Castle Gate Library Theater Fountain Abbey Hall".split()
)
PRODUCT_SUFFIXES = tuple("300 500 900 Pro Mini Max Plus Neo Prime Ultra Lite Air".split())

ONSETS = tuple("b br d dr f fl g gr h j k kl kr l m n p pr r s sk st t tr v w z".split())
VOWELS = tuple("a e i o u".split())
CODAS = tuple("l m n r s lm ld nd rn rv st th v x z".split())
ENDINGS = {
    "she": ("ina", "eta", "ora"),
    "he": ("ock", "ulf", "en"),
    "last": ("wick", "sten", "mark", "by"),
    "landmark": ("an", "eth", "une", "or"),
    "product": ("o", "ix", "ara", "ee"),
    "company": ("tek", "corp", "ware", "gen"),
    "city": ("port", "burg", "haven", "holm"),
    "country": ("onia", "avia", "istan", "land"),
    "language": ("ish", "ese", "ic", "ari"),
}
