"""Packing: whole documents, full rows, a state that can resume, and the states of unpacked runs."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rome_jax.data.packing import Packer, stack
from rome_jax.data.tokens import TokenBatch, pad
from rome_jax.models import forward
from rome_jax.models.interventions import Site
from tests.models.checkpoints import FAMILIES, random_params, tiny_config

LENGTHS = st.lists(st.integers(1, 12), max_size=60)


def documents(lengths):
    """Builds documents of these lengths, each filled with its own number."""
    return [np.full(length, number, np.int32) for number, length in enumerate(lengths)]


def numbers(rows):
    return [[int(ids[0]) for ids in row] for row in rows]


@settings(deadline=None, max_examples=50)
@given(lengths=LENGTHS, window=st.integers(1, 9))
def test_every_document_is_in_one_row_whole(lengths, window):
    given_documents = documents(lengths)
    rows = list(Packer(iter(given_documents), 12, window=window))
    assert all(0 < sum(map(len, row)) <= 12 for row in rows)
    assert sorted(itertools.chain(*numbers(rows))) == list(range(len(lengths)))
    assert all(len(ids) == lengths[ids[0]] for row in rows for ids in row)
    waiting = set(range(len(lengths)))
    for row in numbers(rows):
        assert row[0] == min(waiting)  # the oldest waits for no other
        waiting -= set(row)


@settings(deadline=None, max_examples=50)
@given(lengths=LENGTHS, done=st.integers(0, 20), window=st.integers(1, 9))
def test_a_new_packer_resumes_where_an_old_one_stopped(lengths, done, window):
    whole = numbers(Packer(iter(documents(lengths)), 12, window=window))
    stream = iter(documents(lengths))
    packer = Packer(stream, 12, window=window)
    first = numbers(itertools.islice(packer, done))
    rest = numbers(Packer(stream, 12, waiting=packer.waiting, window=window))
    assert first + rest == whole


@pytest.mark.parametrize(
    ("median", "spread", "length"), [(300, 1.1, 1024), (600, 1.0, 2048), (25, 0.6, 256)]
)
def test_rows_are_full_where_lengths_are_like_those_of_articles(median, spread, length):
    sizes = np.random.default_rng(0).lognormal(np.log(median), spread, 10_000)
    sizes = np.clip(sizes.astype(int), 1, length)
    rows = list(Packer(iter(documents(sizes)), length))
    assert sizes.sum() / (len(rows) * length) >= 0.99


def test_a_document_must_fit():
    with pytest.raises(ValueError, match="13 tokens does not fit into a row: give 1 to 12"):
        next(Packer(iter(documents([13])), 12))
    with pytest.raises(ValueError, match="0 tokens"):
        next(Packer(iter(documents([0])), 12))


def test_stack_pads_rows_and_adds_empty_ones():
    batch = stack([[np.array([5, 6]), np.array([7])]], 2, 4)
    assert batch.ids.tolist() == [[5, 6, 7, 0], [0, 0, 0, 0]]
    assert batch.segments.tolist() == [[1, 1, 2, 0], [0, 0, 0, 0]]
    assert batch.mask.tolist() == [[True, True, True, False], [False] * 4]


def test_positions_begin_at_zero_in_every_segment_and_continue_in_every_branch():
    segments = jnp.array([[1, 1, 1, 2, 3, 3, 3, 3, 0]])
    batch = TokenBatch(jnp.zeros_like(segments), segments > 0, segments=segments)
    positions = forward.plain_attention(batch).positions
    assert positions.tolist() == [[0, 1, 2, 0, 0, 1, 2, 3, 0]]
    branched = batch.replace(branches=jnp.array([[0, 1, 2, 0, 0, 1, 1, 2, 0]]))
    positions = forward.plain_attention(branched).positions
    assert positions.tolist() == [[0, 1, 1, 0, 0, 1, 2, 1, 0]]


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_have_the_states_of_separate_runs(family):
    config = tiny_config(family)
    params = random_params(config)
    generator = np.random.default_rng(3)
    given_documents = [
        generator.integers(0, 50, length).astype(np.int32) for length in (9, 14, 5, 32, 1, 20, 7)
    ]
    rows = list(Packer(iter(given_documents), 32))
    packed = stack(rows, len(rows) + 1, 32)
    alone = pad([ids.tolist() for ids in given_documents], multiple=32)
    sites = (Site.MLP_KEY, Site.RESIDUAL)
    states, wanted = (
        {site: np.asarray(values) for site, values in found.items()}
        for found in (forward.capture(params, config, batch, sites) for batch in (packed, alone))
    )
    index = {ids.tobytes(): number for number, ids in enumerate(given_documents)}
    for r, row in enumerate(rows):
        start = 0
        for ids in row:
            number, columns = index[ids.tobytes()], slice(start, start + len(ids))
            for site in sites:
                actual, expected = states[site][:, r, columns], wanted[site][:, number, : len(ids)]
                np.testing.assert_allclose(actual, expected, atol=2e-5)
            start = columns.stop
    assert sum(len(row) > 1 for row in rows) >= 2
