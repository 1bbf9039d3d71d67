"""Edits that take no time to compute, for tests of how edits are scored, and a comparison of results."""

import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.edit.method import Editor
from rome_jax.models.interventions import Delta, DenseUpdate, Leaf, LowRankUpdate, Part


class RandomEdits(Editor):
    """A method that makes random rank-one edits of layer 0, which depend only on the case id."""

    def compute(self, requests, progress=False):
        """Returns one edit per request."""
        shapes = (self.model.config.mlp_width, self.model.config.width)
        left, right = (
            np.stack([np.random.default_rng(r.case_id).normal(size=(n, 1)) for r in requests])
            for n in shapes
        )
        layers = jnp.zeros(len(requests), jnp.int32)
        factors = (jnp.asarray(x, jnp.float32) for x in (0.1 * left, right))
        return Delta((LowRankUpdate(Leaf.MLP_DOWN, layers, *factors),))


class DenseRandomEdits(RandomEdits):
    """The same edits as dense matrices, which is what fine-tuning makes."""

    def compute(self, requests, progress=False):
        """Returns one edit per request."""
        (update,) = super().compute(requests, progress).updates
        change = jnp.einsum("nfr,ndr->nfd", update.left, update.right)
        return Delta((DenseUpdate(update.leaf, Part.KERNEL, update.layer, change),))


def assert_same(one, other):
    """Asserts that two results are equal, with numbers to 1e-4."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, float):
            assert value == pytest.approx(other[name], rel=1e-4, abs=1e-6), name
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for a, b in zip(value, other[name], strict=True):
                assert a == pytest.approx(b, rel=1e-4, abs=1e-4), name
        else:
            assert value == other[name], name
