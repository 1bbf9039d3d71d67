"""Positions among a text's own tokens, and their columns in a padded batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rome_jax.data.positions import FactToken, columns, fact_token_index
from rome_jax.data.tokens import pad

RAGGED = np.array([[False, True, True, True], [True, True, False, False]])


def test_columns_of_left_and_right_padded_rows():
    found = columns(RAGGED, np.array([0, 1]))
    assert found.tolist() == [1, 1]
    assert found.dtype == np.int32


def test_negative_indices_count_from_the_last_real_token():
    assert columns(RAGGED, np.array([-1, -2])).tolist() == [3, 0]


def test_several_indices_a_row():
    indices = np.array([[0, 1, -1], [1, 0, -1]])
    assert columns(RAGGED, indices).tolist() == [[1, 2, 3], [1, 0, 1]]


@pytest.mark.parametrize("index", [2, -3])
def test_an_index_beyond_its_row_is_an_error(index):
    assert columns(RAGGED[:1], np.array([index])).tolist() == [3 if index == 2 else 1]
    with pytest.raises(IndexError, match=r"rows of \[3, 2\] tokens"):
        columns(RAGGED, np.array([0, index]))


def test_a_row_of_padding_has_no_columns():
    with pytest.raises(IndexError):
        columns(np.zeros((1, 3), bool), np.array([0]))


@st.composite
def rows_and_indices(draw):
    rows = draw(st.lists(st.lists(st.integers(1, 999), min_size=1, max_size=8), min_size=1))
    return rows, [draw(st.integers(-len(row), len(row) - 1)) for row in rows]


@settings(deadline=None, max_examples=60)
@given(
    case=rows_and_indices(), left=st.booleans(), multiple=st.integers(1, 9), extra=st.integers(0, 3)
)
def test_the_column_holds_the_same_token_whatever_the_padding(case, left, multiple, extra):
    rows, indices = case
    batch = pad(rows, left=left, multiple=multiple)
    room = ((0, 0), (extra, extra))  # padding on both sides at once
    ids, mask = np.pad(batch.ids, room), np.pad(batch.mask, room)
    found = columns(mask, np.array(indices))
    assert [ids[i, c] for i, c in enumerate(found)] == [r[i] for r, i in zip(rows, indices)]
    assert mask[np.arange(len(rows)), found].all()


@pytest.mark.parametrize(
    ("strategy", "index"),
    [("subject_first", 2), ("subject_last", 4), ("subject_first_after_last", 5), ("last", 8)],
)
def test_fact_token_strategies(strategy, index):
    assert fact_token_index(FactToken(strategy), (2, 5), 9) == index


def test_a_prompt_that_ends_with_the_subject_has_no_token_after_it():
    with pytest.raises(ValueError, match=r"subject_first_after_last.*use 'subject_last'"):
        fact_token_index(FactToken.SUBJECT_FIRST_AFTER_LAST, (2, 5), 5)
    assert fact_token_index(FactToken.SUBJECT_LAST, (2, 5), 5) == 4
    assert fact_token_index(FactToken.LAST, (2, 5), 5) == 4


def test_an_unknown_strategy_is_an_error():
    with pytest.raises(ValueError, match="subject_middle"):
        FactToken("subject_middle")
