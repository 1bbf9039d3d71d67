"""Random params, made where jax computes, a layer at a time; `weights_torch` makes the same ones."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.counters import HALF_WIDTH, scramble, seed_of
from rome_jax.models.config import ModelConfig
from rome_jax.models.forward import Params, param_shapes


def random_params(config: ModelConfig, dtype: str = "float32") -> Params:
    """Kernels and embeddings uniform with standard deviation 0.02, biases 0, scales 1.

    Example:
      >>> random_params(config, "bfloat16")["wte"]["embedding"].dtype  # doctest: +SKIP
      dtype(bfloat16)
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _leaf("/".join(key.key for key in path), leaf.shape, dtype),
        param_shapes(config),
    )


def _leaf(path: str, shape: tuple[int, ...], dtype: str) -> jax.Array:
    name = path.rsplit("/", 1)[-1]
    if name in ("bias", "scale"):
        return jnp.full(shape, float(name == "scale"), dtype)
    if not path.startswith("blocks/"):
        return _uniform(np.array([seed_of(path)], np.uint32), shape, dtype)[0]
    seeds = np.array([seed_of(path, layer) for layer in range(shape[0])], np.uint32)
    return _uniform(seeds, shape[1:], dtype)


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _uniform(seeds: jax.Array, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """[layers, *shape] from a seed for each layer; holds one layer in float32 at a time."""

    def one(seed):
        index = jnp.arange(np.prod(shape), dtype=jnp.uint32) + seed
        unit = (scramble(index, jnp.uint32) >> 8).astype(jnp.float32) * 2.0**-23 - 1  # exact
        return (unit * jnp.float32(HALF_WIDTH)).reshape(shape).astype(dtype)

    return jax.lax.map(one, seeds)
