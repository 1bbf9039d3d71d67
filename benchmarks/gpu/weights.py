"""Random params, created on jax's device one layer at a time.

`weights_torch` creates bit-identical weights in torch.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.counters import HALF_WIDTH, scramble, seed_of
from rome_jax.models.config import ModelConfig
from rome_jax.models.forward import Params
from rome_jax.models.transformer import param_shapes


def random_params(config: ModelConfig, dtype: str = "float32") -> Params:
    """Draws kernels and embeddings from a uniform distribution with standard deviation 0.02.

    Biases are 0 and scales are 1.

    Args:
      config: Configuration of the model.
      dtype: Dtype of the params.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _leaf("/".join(key.key for key in path), leaf.shape, dtype),
        param_shapes(config),
    )


def _leaf(path: str, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """Creates the leaf at a path such as "blocks/mlp/up/kernel"."""
    name = path.rsplit("/", 1)[-1]
    if name in ("bias", "scale"):
        return jnp.full(shape, float(name == "scale"), dtype)
    if not path.startswith("blocks/"):
        return _uniform(np.array([seed_of(path)], np.uint32), shape, dtype)[0]
    seeds = np.array([seed_of(path, layer) for layer in range(shape[0])], np.uint32)
    return _uniform(seeds, shape[1:], dtype)


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _uniform(seeds: jax.Array, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """Draws [layers, *shape] numbers from one seed per layer, with only one layer in float32 at a time."""

    def one(seed):
        index = jnp.arange(np.prod(shape), dtype=jnp.uint32) + seed
        unit = (scramble(index, jnp.uint32) >> 8).astype(jnp.float32) * 2.0**-23 - 1  # exact
        return (unit * jnp.float32(HALF_WIDTH)).reshape(shape).astype(dtype)

    return jax.lax.map(one, seeds)
