"""What requests share is run once, and only the time shows it."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rome_jax.data.positions import FactToken
from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import TokenBatch, pad
from rome_jax.edit.stages.inputs import EditInputs, tokenize_requests
from rome_jax.edit.stages.key import layer_states
from rome_jax.edit.stages.shared_contexts import SharedContexts, pack_rows
from rome_jax.edit.stages.suffix import freeze_prefix
from rome_jax.models import forward

LAYER = 1
SUBJECTS = ("The Space Needle", "Linux", "Slavoj Žižek")
PROMPTS = ("{} is in the city of", "The mother tongue of {} is", "{} is")
TARGETS = ("Rome", "English")


def inputs_of(model, templates, count):
    requests = [
        EditRequest(PROMPTS[n % 3], SUBJECTS[(n // 3) % 3] + " of" * (n // 9), TARGETS[n % 2])
        for n in range(count)
    ]
    return tokenize_requests(model.tokenizer, requests, templates, FactToken.SUBJECT_LAST, 64)


@pytest.mark.parametrize(("count", "groups"), [(2, 1), (11, 2)])
def test_states_and_prefixes_are_those_of_plain_rows(model, templates, count, groups):
    """11 requests make a group of 6 and one of 5."""
    inputs = inputs_of(model, templates, count)
    assert len(inputs.shared.rows.batch.ids) == groups * (len(templates) + 1)
    arguments = model.params, model.config, inputs.batch, inputs.fact, LAYER
    plain, shared = layer_states(*arguments), layer_states(*arguments, shared=inputs.shared)
    for name in ("key", "value"):
        np.testing.assert_allclose(getattr(shared, name), getattr(plain, name), rtol=0, atol=2e-6)
    mask = np.asarray(inputs.batch.mask)
    np.testing.assert_allclose(shared.hidden[mask], plain.hidden[mask], rtol=0, atol=2e-6)

    num_prefix = inputs.num_prefix
    arguments = model.params, model.config, inputs.batch, num_prefix, plain.hidden, LAYER
    caches = (freeze_prefix(*arguments, shared).cache for shared in (inputs.shared, None))
    for ours, theirs in zip(*map(jax.tree.leaves, caches), strict=True):
        seen = np.broadcast_to(mask[None, :, None, :num_prefix, None], theirs.shape)
        np.testing.assert_allclose(ours[seen], theirs[seen], rtol=0, atol=2e-6)


@settings(deadline=None, max_examples=8)
@given(
    seed=st.integers(0, 2**32 - 1), count=st.sampled_from([2, 9, 18]), left=st.sampled_from([0, 1])
)
def test_packing_loses_no_column_and_shows_none_of_others(seed, count, left):
    generator, contexts = np.random.default_rng(seed), 3
    beginnings = [generator.integers(100, size=length).tolist() for length in (0, 2, 5)]
    sequences = [
        beginnings[k] + generator.integers(100, size=generator.integers(1, 7)).tolist()
        for k in range(contexts)
        for _ in range(count)
    ]
    batch = pad(sequences, multiple=12, left=bool(left))
    packed = pack_rows(batch, [len(beginning) for beginning in beginnings])
    assert len(packed.batch.ids) == contexts * -(-count // 8)
    ids, mask = np.asarray(batch.ids), np.asarray(batch.mask)
    np.testing.assert_array_equal(packed.unpack(packed.batch.ids)[mask], ids[mask])
    np.testing.assert_array_equal(
        packed.pack(ids)[packed.batch.mask], packed.batch.ids[packed.batch.mask]
    )

    plain, attention = map(jax.jit(forward.plain_attention), (batch, packed.batch))
    positions = packed.unpack(np.asarray(attention.positions))
    np.testing.assert_array_equal(positions[mask], np.asarray(plain.positions)[mask])
    visible = np.asarray(attention.mask)
    width = packed.batch.ids.shape[1]
    for row, columns in enumerate(mask):
        row_places = packed.place[row][columns]
        packed_row, places = row_places[0] // width, row_places % width
        for t, place in enumerate(places):
            np.testing.assert_array_equal(
                np.flatnonzero(visible[packed_row, place]), places[: t + 1]
            )


def test_the_beginning_that_is_shared_ends_before_what_an_edit_changes():
    """Rows of two contexts: in the first, two tokens are shared before column 3; in the second, the fact token is."""
    batch = pad([[7, 8, 1, 5], [7, 8, 2, 5], [7, 8, 9], [7, 8, 9]])
    shared = SharedContexts.find(batch, num_requests=2, num_prefix=2)
    assert shared.rows.batch.branches[0, :6].tolist() == [0, 0, 1, 1, 2, 2]
    assert shared.rows.batch.branches[1, :4].tolist() == [0, 0, 1, 2]
    assert shared.rows.batch.mask.sum(1).tolist() == [6, 4]
    assert shared.prefixes.batch.mask.sum(1).tolist() == [2, 2]
    assert shared.prefixes.batch.ids[:, :2].tolist() == [[7, 8], [7, 8]]


def test_nothing_shared_is_none(model, templates):
    inputs: EditInputs = inputs_of(model, templates, 1)
    assert inputs.shared is None, "one request has nobody to share with"
    ids = np.array([[1, 2, 3], [4, 2, 3]])
    batch = TokenBatch(ids, np.ones(ids.shape, bool))
    assert SharedContexts.find(batch, num_requests=2, num_prefix=2) is None
    same = TokenBatch(ids[[0, 0]], np.ones(ids.shape, bool))
    assert SharedContexts.find(same, num_requests=2, num_prefix=0) is None


def test_states_of_no_layers_are_packed_too(model, templates):
    """Above the last layer nothing is cached: the axis of layers is empty."""
    inputs = inputs_of(model, templates, 2)
    rows = inputs.shared.prefixes
    plain = jax.numpy.zeros((*rows.place.shape, 0, 3))
    assert rows.pack(plain).shape == (*rows.source.shape, 0, 3)
    assert rows.unpack(rows.pack(plain)).shape == plain.shape
