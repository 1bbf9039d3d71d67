"""What requests share is run once, and nothing but the time shows it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rome_jax.data.positions import FactToken
from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import TokenBatch, pad
from rome_jax.edit.stages.inputs import tokenize_requests
from rome_jax.edit.stages.key import layer_states
from rome_jax.edit.stages.shared_contexts import SharedContexts
from rome_jax.edit.stages.suffix import freeze_prefix
from rome_jax.models import forward

LAYER = 1
SUBJECTS = ("The Space Needle", "Linux", "Slavoj Žižek")
PROMPTS = ("{} is in the city of", "The mother tongue of {} is", "{} is")
TARGETS = ("Rome", "English")


def inputs_of(model, templates, count, **options):
    requests = [
        EditRequest(PROMPTS[n % 3], SUBJECTS[(n // 3) % 3] + " of" * (n // 9), TARGETS[n % 2])
        for n in range(count)
    ]
    return tokenize_requests(
        model.tokenizer, requests, templates, FactToken.SUBJECT_LAST, 64, **options
    )


@pytest.mark.parametrize("count", [2, 8, 11, 18])
def test_states_and_prefixes_are_those_of_plain_rows(model, templates, count):
    """11 requests make two groups of 6, the last of them not full; 18 make three."""
    inputs = inputs_of(model, templates, count)
    assert inputs.contexts.num_shared >= 4, "the templates' own tokens"
    lookup = inputs.lookup.reshape(-1)
    arguments = model.params, model.config, inputs.batch, lookup, LAYER
    plain, shared = layer_states(*arguments), layer_states(*arguments, contexts=inputs.contexts)
    for name in ("key", "value"):
        np.testing.assert_allclose(getattr(shared, name), getattr(plain, name), rtol=0, atol=2e-6)
    mask = np.asarray(inputs.batch.mask)
    np.testing.assert_allclose(shared.hidden[mask], plain.hidden[mask], rtol=0, atol=2e-6)

    def prefix(contexts):
        given = inputs.replace(contexts=contexts)
        return freeze_prefix(model.params, model.config, given, plain.hidden, LAYER)

    columns = np.arange(inputs.num_prefix)
    before = mask[:, : len(columns)] & (columns < inputs.start.reshape(-1, 1))
    for ours, theirs in zip(*(jax.tree.leaves(prefix(x).cache) for x in (inputs.contexts, None))):
        seen = np.broadcast_to(before[None, :, None, :, None], theirs.shape)
        np.testing.assert_allclose(ours[seen], theirs[seen], rtol=0, atol=2e-6)


@settings(deadline=None, max_examples=12)  # few: each is new shapes, and shapes are compiled
@given(seed=st.integers(0, 2**32 - 1), count=st.sampled_from([2, 9]))
def test_packing_loses_no_column_and_shows_none_of_others(seed, count):
    generator, rows = np.random.default_rng(seed), 3
    shared = [generator.integers(100, size=generator.integers(6)).tolist() for _ in range(rows)]
    sequences = [
        shared[row] + generator.integers(100, size=generator.integers(1, 7)).tolist()
        for _ in range(count)
        for row in range(rows)
    ]
    batch = pad(sequences, multiple=12)
    start = np.array([len(shared[i % rows]) for i in range(len(sequences))]).reshape(count, rows)
    contexts = SharedContexts.find(batch, start)
    if contexts is None:
        assert not any(shared)
        return
    assert contexts.lengths.tolist() == list(map(len, shared))

    packed = np.asarray(contexts.pack(batch.ids, contexts.num_own))
    whole = forward.plain_attention(batch)
    attention = contexts.attention(whole, contexts.num_own)
    columns = jnp.broadcast_to(jnp.arange(batch.ids.shape[1]), batch.ids.shape)
    row, column = map(np.asarray, contexts.place(columns, contexts.num_own))
    np.testing.assert_array_equal(packed[row, column][batch.mask], batch.ids[batch.mask])
    positions = np.asarray(attention.positions)[row, column]
    np.testing.assert_array_equal(positions[batch.mask], np.asarray(whole.positions)[batch.mask])
    for r, mask in enumerate(batch.mask):
        for t in np.flatnonzero(mask):
            seen = np.flatnonzero(attention.mask[row[r, t], column[r, t]])
            np.testing.assert_array_equal(seen, np.sort(column[r, : t + 1]))


def test_nothing_shared_is_none(model, templates):
    assert inputs_of(model, templates, 1).contexts is None, "a request shares with nobody"
    ids = np.array([[1, 2, 3], [4, 2, 3]])
    batch = TokenBatch(ids, np.ones(ids.shape, bool))
    assert SharedContexts.find(batch, np.array([[2], [2]])) is None
    alike = TokenBatch(ids[[0, 0]], np.ones(ids.shape, bool))
    assert SharedContexts.find(alike, np.array([[0], [2]])) is None, "an edit's column is nobody's"
