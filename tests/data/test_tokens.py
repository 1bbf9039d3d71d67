"""Padding, and the conversion of character spans to token spans."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rome_jax.data.tokens import SequenceTooLongError, bucket, encode, pad, round_up, token_span

ROWS = [[5, 6, 7], [8]]


@pytest.fixture(scope="module")
def tokenizer(golden_model):
    return golden_model("gpt2").tokenizer


# Padding


def test_padding_on_the_right():
    batch = pad(ROWS)
    assert batch.ids[0].tolist() == [5, 6, 7]
    assert batch.ids[1, 0] == 8
    assert batch.mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.case is None


def test_padding_on_the_left():
    batch = pad(ROWS, left=True)
    assert batch.ids[1, 2] == 8
    assert batch.mask.tolist() == [[True, True, True], [False, False, True]]


@pytest.mark.parametrize(
    ("multiple", "context", "length"), [(1, None, 3), (8, None, 8), (8, 6, 6), (8, 3, 3), (2, 9, 4)]
)
def test_length_is_rounded_up_but_never_beyond_the_context(multiple, context, length):
    assert pad(ROWS, multiple=multiple, context_length=context).ids.shape == (2, length)


@settings(deadline=None, max_examples=50)
@given(
    rows=st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1),
    left=st.booleans(),
    multiple=st.integers(1, 9),
)
def test_the_mask_gives_back_the_rows(rows, left, multiple):
    batch = pad(rows, left=left, multiple=multiple)
    assert [ids[mask].tolist() for ids, mask in zip(batch.ids, batch.mask)] == rows
    assert batch.ids.shape[1] % multiple == 0
    assert batch.ids.shape[1] - max(map(len, rows)) < multiple
    edge = batch.mask[:, -1 if left else 0]
    assert edge.all()
    assert (np.diff(batch.mask.astype(int), axis=1) != 0).sum(axis=1).max(initial=0) <= 1
    assert batch.ids.dtype == np.int32


@settings(deadline=None, max_examples=50)
@given(length=st.integers(0, 1000), multiple=st.integers(1, 100))
def test_round_up_is_the_least_multiple_that_suffices(length, multiple):
    rounded = round_up(length, multiple)
    assert rounded % multiple == 0
    assert 0 <= rounded - length < multiple


def test_an_empty_sequence_is_named():
    with pytest.raises(ValueError, match="sequence 1 has no tokens"):
        pad([[1], [], [2]])


def test_a_sequence_beyond_the_context_is_named():
    assert pad([[1], [1, 2, 3]], context_length=3).ids.shape == (2, 3)
    with pytest.raises(SequenceTooLongError, match=r"sequence 1 has 3 tokens.*context of 2"):
        pad([[1], [1, 2, 3]], context_length=2)


def test_encode_pads_what_the_tokenizer_gives(tokenizer):
    texts = ["The city of Rome", "A"]
    batch = encode(tokenizer, texts, left=True, multiple=4)
    kept = [tokenizer.decode(ids[mask]) for ids, mask in zip(batch.ids, batch.mask)]
    assert kept == texts
    assert batch.mask[:, -1].all()
    with pytest.raises(ValueError, match="sequence 1 has no tokens"):
        encode(tokenizer, ["A", ""])


# Spans


def tokens_of(tokenizer, text):
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], encoded["offset_mapping"]


@pytest.mark.parametrize(
    ("before", "subject", "after"),
    [
        ("", "The Space Needle", " is in"),
        ("The mother tongue of ", "Danielle Darrieux", " is"),
        ("One of the buildings of Rome is the ", "Colosseum", ""),
        ("", "Rome", ""),
        ('He wrote "', "Hamlet", '" in'),
        ("He wrote (", "Hamlet", ") in"),
        ("The home of ", "Slavoj Žižek", " is"),
        ("", "Žižek", " taught"),
        ("In ", "東京", " people speak"),
        ("In ", "京", "都 people speak"),
        ("x ", "🗼", " y"),
        ("f({x, ", "{}", "}) is"),
        ("The {a} of ", "{x}", " is"),
        ("The city. ", "Rome", ", Rome is in"),
    ],
)
def test_the_span_is_the_subject_alone(tokenizer, before, subject, after):
    ids, offsets = tokens_of(tokenizer, before + subject + after)
    first, stop = token_span(offsets, len(before), len(before) + len(subject))
    # A token may bring the space in front of the subject.
    assert tokenizer.decode(ids[:first]) in (before, before.removesuffix(" "))
    assert tokenizer.decode(ids[first:stop]).removeprefix(" ") == subject
    assert tokenizer.decode(ids[stop:]) == after


@pytest.mark.parametrize("text", ["Žižek", "東京", "🗼"])
def test_these_tokens_do_split_inside_characters(tokenizer, text):
    """The cases above include characters that several tokens share."""
    _, offsets = tokens_of(tokenizer, text)
    assert len(offsets) > len(set(offsets))


def test_a_token_that_shares_one_character_counts():
    offsets = [(0, 3), (3, 9), (9, 12)]
    assert token_span(offsets, 8, 9) == (1, 2)
    assert token_span(offsets, 2, 4) == (0, 2)
    assert token_span(offsets, 3, 10) == (1, 3)
    assert token_span(offsets, 0, 12) == (0, 3)


def test_a_begin_of_text_token_covers_nothing():
    assert token_span([(0, 0), (0, 4), (4, 7)], 0, 4) == (1, 2)


def test_characters_that_no_token_covers_are_an_error():
    with pytest.raises(ValueError, match="no token covers the characters 5 to 7"):
        token_span([(0, 3), (3, 5)], 5, 7)


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_spans_agree_with_counting_bytes(tokenizer, data):
    """Computes offsets without `offset_mapping`: each character of a byte-level token represents a byte."""
    pieces = st.sampled_from(["a", "The", "Rome", " ", "Ž", "é", "東", "🗼", "'s", "{}", "."])
    text = "".join(data.draw(st.lists(pieces, min_size=1, max_size=10)))
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    assume(text[start:end] == text[start:end].strip())

    ids, offsets = tokens_of(tokenizer, text)
    ends = list(itertools.accumulate(map(len, tokenizer.convert_ids_to_tokens(ids))))
    assert ends[-1] == len(text.encode())
    first_byte = len(text[:start].encode())
    last_byte = len(text[:end].encode()) - 1
    first = next(i for i, stop in enumerate(ends) if stop > first_byte)
    last = next(i for i, stop in enumerate(ends) if stop > last_byte)
    assert token_span(offsets, start, end) == (first, last + 1)


@given(st.integers(1, 5000))
def test_buckets_are_few_and_waste_at_most_a_quarter(length):
    size = bucket(length)
    assert length <= size and 4 * (size - length) <= size
    assert bucket(size) == size
    octave = {bucket(n) for n in range(length, 2 * length)}
    assert len(octave) <= 5


def test_no_sequences_is_an_error():
    with pytest.raises(ValueError, match="no sequences"):
        pad([])
