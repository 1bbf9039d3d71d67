"""Random edits of tiny models, and how close weights are after a revert."""

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.edit.delta import weight_of
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate

LEAVES = {
    "gpt2": (Leaf.MLP_DOWN, Leaf.ATTN_QKV, Leaf.MLP_UP),
    "gptj": (Leaf.MLP_DOWN, Leaf.ATTN_VALUE, Leaf.ATTN_OUT),
}
LAYERS = ((0, 2, 1), (1, 1, 1), (2, 0, 0))  # by leaf and case


def random_deltas(params, family, rank=2, seed=0):
    """Three edits of three leaves, at layers that differ by case."""
    generator = np.random.default_rng(seed)

    def factor(size):
        return jnp.asarray(0.2 * generator.standard_normal((3, size, rank)), jnp.float32)

    updates = []
    for leaf, layers in zip(LEAVES[family], LAYERS, strict=True):
        inputs, outputs = weight_of(params, 0, leaf).shape
        updates.append(LowRankUpdate(leaf, jnp.array(layers), factor(inputs), factor(outputs)))
    return Delta(tuple(updates))


def as_dtype(params, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def assert_within_rounding(got, want, *passed, dtype="float32", times=1):
    """Off by at most `times` roundings at each of the params that were passed on the way."""
    unit = float(jnp.finfo(dtype).eps)
    for a, b, *others in zip(*map(jax.tree.leaves, (got, want, *passed)), strict=True):
        a, b, *others = (np.asarray(leaf, np.float64) for leaf in (a, b, *others))
        bound = times * unit * sum(map(np.abs, others))
        assert (np.abs(a - b) - bound).max() <= 0
