"""Property test of independent edits: ΔW of a request depends neither on the other requests nor on order and chunks."""

import functools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rome_jax.edit.delta import dense
from rome_jax.edit.method import METHODS
from tests.edit.methods.test_editors import FAMILY, config_of


@pytest.fixture(scope="module")
def edits(model, requests, templates, moments):
    """edits(name, order, chunk_size) -> float64 [len(order), F, D] ΔW of each layer, of requests in some order."""

    @functools.cache
    def compute(name, order, chunk_size):
        delta = METHODS[name].compute_deltas(
            model,
            [requests[index] for index in order],
            config_of(name),
            second_moments=moments,
            templates=templates,
            chunk_size=chunk_size,
        )
        return {
            int(update.layer[0]): np.asarray(dense(update), np.float64) for update in delta.updates
        }

    return compute


@pytest.mark.parametrize("name", FAMILY)
@settings(deadline=None, max_examples=12)
@given(
    order=st.lists(st.sampled_from(range(3)), min_size=1, max_size=3, unique=True).map(tuple),
    chunk_size=st.sampled_from([1, 2, 8]),
)
@example(order=(2, 0, 1), chunk_size=1)
@example(order=(1, 2, 0), chunk_size=8)
def test_an_edit_depends_on_its_request_alone(name, order, chunk_size, edits):
    expected, found = edits(name, (0, 1, 2), 8), edits(name, order, chunk_size)
    assert found.keys() == expected.keys()
    for layer, changes in expected.items():
        for change, index in zip(found[layer], order, strict=True):
            error = np.linalg.norm(change - changes[index]) / np.linalg.norm(changes[index])
            assert error < 1e-4, (layer, index)
