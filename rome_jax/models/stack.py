"""The stack of layers: how a loop takes one layer out of it, and what a range of layers returns.

Axes: L layers, B rows, T tokens that are run, C columns of a cache, H heads, G heads of keys and values, K head width,
D width of the residual stream.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rome_jax.models.interventions import Site
from rome_jax.models.layers import KVCache

# Keeps matrix products for the backward pass and recomputes the rest, above all each layer's slice of the weights.
checkpoint = functools.partial(
    jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
)


@struct.dataclass
class LayersOutput:
    """The result of a range of layers.

    Attributes:
      hidden: [B, T, D], the residual stream after the last of the layers.
      captures: The values at each captured site, [layers run, B, T, ...]; `Site.ATTN_PATTERN` gives
        [layers run, B, H, T, C + T].
      cache: [layers run, B, G, T, K], keys and values of the tokens that were run, or None without `keep_cache`.
    """

    hidden: jax.Array
    captures: dict[Site, jax.Array]
    cache: KVCache | None = None


def take_layer(stack: Any, index: int | jax.Array) -> Any:
    """Takes one layer of a stacked tree. Dynamic indexing copies one layer; slicing out a range would copy them all.

    Args:
      stack: Params or a cache, with a leading axis [L, ...] in each leaf.
      index: The layer's index in the stack; it may be traced.

    Example:
      >>> take_layer({"kernel": jnp.arange(6.0).reshape(3, 2)}, 1)["kernel"].tolist()
      [2.0, 3.0]
    """
    stack, index = tie(stack, jnp.asarray(index))
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), stack
    )


def tie(weights: Any, varying: jax.Array) -> tuple[Any, jax.Array]:
    """Keeps XLA from converting half-precision weights outside of the loop that uses them.

    XLA's CPU backend multiplies in float32. It moves the conversion of weights, which are the same in each iteration,
    out of the loop and keeps a float32 copy of the whole stack. A barrier makes the weights appear to depend on a value
    that varies. It costs nothing, and float32 weights are returned unchanged.

    Args:
      weights: Params, or some of their leaves.
      varying: A value that differs between iterations of the loop, and that the iteration uses.

    Returns:
      Both arguments; use these values instead of the arguments.

    Example:
      >>> weights, layer = tie({"kernel": jnp.ones((2, 3), jnp.bfloat16)}, jnp.int32(1))
      >>> weights["kernel"].dtype.name, int(layer)
      ('bfloat16', 1)
    """
    if all(leaf.dtype.itemsize >= 4 for leaf in jax.tree.leaves(weights)):
        return weights, varying
    return jax.lax.optimization_barrier((weights, varying))
