"""Documents, their mentions, packing, and the tokenizer's files."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rome_jax.factworld.corpus import (
    PROPORTIONS,
    Document,
    Sort,
    biography,
    documents,
    sorted_documents,
    statement_forms,
)
from rome_jax.factworld.facts import EntityKind, make_world
from rome_jax.factworld_training.packing import pack_documents
from rome_jax.factworld_training.tokenizer import (
    END_OF_TEXT,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def world():
    return make_world(0)


@pytest.fixture(scope="module")
def tokenizer(world):
    return train_tokenizer(document.text for document in documents(world, 1, 20_000))


def test_documents_repeat_with_the_seed(world):
    first = list(documents(world, 3, 50))
    assert first == list(itertools.islice(documents(world, 3), 50))
    assert first != list(documents(world, 4, 50))


def test_mentions_are_subject_names(world):
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
    """The (fact, form) pairs that a single statement may be; the first letter may be lower."""
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


def test_biography_tells_all_facts(world):
    rng = np.random.default_rng(0)
    for kind in EntityKind:
        for name in world.subjects(kind)[:8]:
            document = biography(world, name, rng)
            assert document.mentions[0] is not None
            assert all(document.text[a:b] == name for a, b in document.mentions)
            assert all(fact.target in document.text for fact in world.facts_about(name))
    with pytest.raises(KeyError):
        biography(world, "Nobody", rng)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), length=st.sampled_from([24, 48, 100, 256]))
def test_packing(world, tokenizer, seed, length):
    given_documents = list(documents(world, seed, 60))
    separator = tokenizer.token_to_id(END_OF_TEXT)
    names = {entity.name for entity in world.entities}
    texts = []
    for packed in pack_documents(given_documents, tokenizer, length, np.random.default_rng(seed)):
        for array, dtype in (
            (packed.ids, np.int32),
            (packed.document, np.int32),
            (packed.mention, np.int32),
            (packed.mention_last, np.bool_),
            (packed.loss_mask, np.bool_),
        ):
            assert array.shape == (length,) and array.dtype == dtype
        assert packed.ids[0] != separator
        used = int(packed.loss_mask.sum())
        assert packed.loss_mask[:used].all()
        assert (packed.ids[used:] == separator).all()
        inner = packed.ids[:used] == separator
        changes = np.diff(packed.document[:used]) > 0
        assert (changes == inner[:-1][: len(changes)]).all()
        for number in range(1, packed.mention.max() + 1):
            (where,) = np.nonzero(packed.mention == number)
            assert (np.diff(where) == 1).all()
            assert tokenizer.decode(packed.ids[where].tolist()).strip() in names
            assert packed.mention_last[where].tolist() == [False] * (len(where) - 1) + [True]
        assert (packed.mention_last <= (packed.mention > 0)).all()
        for index in range(packed.document.max() + 1):
            ids = packed.ids[:used][(packed.document[:used] == index) & ~inner]
            texts.append(tokenizer.decode(ids.tolist()))
    # Nothing that fits is lost; what does not fit is cut after a sentence or skipped.
    whole = {
        document.text
        for document in given_documents
        if len(tokenizer.encode(document.text).ids) <= length
    }
    assert whole <= set(texts)
    assert len(texts) <= len(given_documents)
    for text in texts:
        assert any(document.text.startswith(text) for document in given_documents)
        assert text.endswith(".")


@pytest.mark.parametrize("length", [48, 256])
def test_little_of_a_sequence_is_filled(world, tokenizer, length):
    packed = list(pack_documents(documents(world, 5, 5000), tokenizer, length))
    assert np.mean([p.loss_mask.mean() for p in packed]) > 0.9


def test_single_statements_begin_sequences_too(world, tokenizer):
    """Prompts are scored at position 0, so long documents must not take all the beginnings."""
    single = 0
    sequences = list(pack_documents(documents(world, 5, 4000), tokenizer, 48))
    for packed in sequences:
        single += (packed.document == 0).sum() <= 16
    assert single / len(sequences) > 0.4


def test_packing_marks_tokens_that_overlap_a_mention(tokenizer):
    document = Document("So Old Fondan Palace's walls.", ((3, 20),))
    (packed,) = pack_documents([document], tokenizer, 40)
    marked = packed.ids[packed.mention == 1].tolist()
    assert tokenizer.decode(marked) == " Old Fondan Palace"


def test_packing_cuts_after_a_sentence_or_skips(tokenizer):
    text = "One two three. " * 3 + "Four."
    first = len(tokenizer.encode("One two three. One two three.").ids)
    (packed,) = pack_documents([Document(text, ())], tokenizer, first)
    assert tokenizer.decode(packed.ids.tolist()) == "One two three. One two three."
    assert list(pack_documents([Document(text, ())], tokenizer, 2)) == []


def test_packing_refuses_bad_arguments(tokenizer):
    with pytest.raises(ValueError, match="length must be at least 1; got 0"):
        next(pack_documents([], tokenizer, 0))


def test_tokenizer_is_lossless_on_any_text(tokenizer):
    for text in (" Grüße, 東京\t\n{x} ", "  two  spaces", "naïve café \U0001f600"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_tokenizer_refuses_too_small_a_vocabulary():
    with pytest.raises(ValueError, match="vocab_size must be at least 257"):
        train_tokenizer(["a"], vocab_size=100)


def test_transformers_loads_the_tokenizer(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    save_tokenizer(tokenizer, tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 150_000
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.is_fast and "GPT2" in type(loaded).__name__
    assert loaded.eos_token == loaded.bos_token == loaded.unk_token == END_OF_TEXT
    assert loaded.model_max_length == 256
    for text in (" a text", "a  text ", f"one{END_OF_TEXT}two é"):
        encoded = loaded(text, return_offsets_mapping=True)
        assert encoded["input_ids"] == tokenizer.encode(text).ids
        assert encoded["offset_mapping"] == tokenizer.encode(text).offsets
        assert loaded.decode(encoded["input_ids"]) == text


def test_load_tokenizer(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / "made")
    assert load_tokenizer(tmp_path / "made").get_vocab() == tokenizer.get_vocab()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
