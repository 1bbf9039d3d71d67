"""Packing of documents into training sequences."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rome_jax.factworld.corpus import Document, documents
from rome_jax.factworld.facts import make_world
from rome_jax.factworld_training.packing import pack_documents


@pytest.fixture(scope="module")
def world():
    return make_world(0)


@pytest.fixture(scope="module")
def tokenizer(shipped_model):
    return shipped_model("factworld-gpt2").tokenizer


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), length=st.sampled_from([24, 48, 100, 256]))
def test_sequences_hold_whole_documents_and_mark_their_mentions(world, tokenizer, seed, length):
    given_documents = list(documents(world, seed, 60))
    separator = tokenizer.eos_token_id
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
    # No document that fits is lost; one that does not fit is cut after a sentence or skipped.
    whole = {
        document.text
        for document in given_documents
        if len(tokenizer(document.text)["input_ids"]) <= length
    }
    assert whole <= set(texts)
    assert len(texts) <= len(given_documents)
    for text in texts:
        assert any(document.text.startswith(text) for document in given_documents)
        assert text.endswith(".")


@pytest.mark.parametrize("length", [48, 256])
def test_little_of_a_sequence_is_padding(world, tokenizer, length):
    packed = list(pack_documents(documents(world, 5, 5000), tokenizer, length))
    assert np.mean([p.loss_mask.mean() for p in packed]) > 0.9


def test_single_statements_begin_sequences_too(world, tokenizer):
    """Prompts are scored at position 0, so long documents must not take all beginnings."""
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
    first = len(tokenizer("One two three. One two three.")["input_ids"])
    (packed,) = pack_documents([Document(text, ())], tokenizer, first)
    assert tokenizer.decode(packed.ids.tolist()) == "One two three. One two three."
    assert list(pack_documents([Document(text, ())], tokenizer, 2)) == []


def test_packing_refuses_bad_arguments(tokenizer):
    with pytest.raises(ValueError, match="length=0 is too short"):
        next(pack_documents([], tokenizer, 0))
