"""Split of the layers after the edited one into what an edit can change and what it cannot.

After the edited layer, δ changes the fact token and, by the causal mask, only the tokens that follow it. Keys and
values of the columns before it stay the same in every layer. They are computed once, and each step of the optimization
runs only the suffix, which attends to them.

Axes: R rows, T columns, P prefix columns, S = T − P suffix columns, M columns read, L layers after the edited one,
H heads, D width.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import struct

from rome_jax.data.tokens import TokenBatch
from rome_jax.edit.stages.shared_contexts import PackedRows, SharedContexts
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.layers import (
    MLP,
    Attention,
    Interventions,
    KVCache,
    LayerInterventions,
    columns,
    norm,
)
from rome_jax.models.stack import take_layer


@struct.dataclass
class Suffix:
    """The columns of R rows that an edit can change, and what they attend to.

    Attributes:
      hidden: [R, S, D] residual stream after the edited layer, without δ.
      attention: Mask of S queries over P prefix and S suffix columns, and the positions of the queries.
      cache: [L, R, H, P, head width] keys and values of the prefix columns.
    """

    hidden: jax.Array
    attention: Attention
    cache: KVCache


@functools.partial(jax.jit, static_argnames=("config", "num_prefix", "layer"))
def freeze_prefix(
    params: forward.Params,
    config: ModelConfig,
    batch: TokenBatch,
    num_prefix: int,
    hidden: jax.Array,
    layer: int,
    shared: SharedContexts | None = None,
) -> Suffix:
    """Computes keys and values of the prefix columns in all layers after `layer`.

    Args:
      params: Weights of the model.
      config: Configuration of the model (static).
      batch: [R, T] rows of the edit, aligned as in `EditInputs`.
      num_prefix: P (static).
      hidden: [R, T, D] residual stream after `layer`.
      layer: Edited layer (static).
      shared: Packed forms of the rows, if their shared columns have equal states. None runs every row by itself.
    """
    attention = forward.plain_attention(batch)

    def run(prefix: jax.Array, attention: Attention) -> KVCache:
        out = forward.run_layers(
            params, config, prefix, attention, start=layer + 1, keep_cache=True
        )
        assert out.cache is not None  # it was kept
        return out.cache

    prefix = hidden[:, :num_prefix]
    if shared is None:
        before = attention.mask[:, :num_prefix, :num_prefix]
        cache = run(prefix, Attention(attention.positions[:, :num_prefix], before))
    else:
        packed = shared.prefixes
        cache = run(packed.pack(prefix), forward.plain_attention(packed.batch))
        cache = _unpack_cache(packed, cache)
    after = Attention(attention.positions[:, num_prefix:], attention.mask[:, num_prefix:])
    return Suffix(hidden[:, num_prefix:], after, cache)


def _unpack_cache(packed: PackedRows, cache: KVCache) -> KVCache:
    """Gathers a cache of packed rows, [L, Q, H, columns, K], into plain rows, [L, R, H, P, K]."""

    def unpack(leaf: jax.Array) -> jax.Array:
        return packed.unpack(leaf.transpose(1, 3, 0, 2, 4)).transpose(2, 0, 3, 1, 4)

    return jax.tree.map(unpack, cache)


def mlp_output(
    params: forward.Params, config: ModelConfig, after_attention: jax.Array, layer: int
) -> jax.Array:
    """Runs the MLP of a layer whose attention and MLP follow each other.

    Args:
      params: Weights of the model.
      config: Configuration of the model (static).
      after_attention: [R, D] residual stream between attention and MLP.
      layer: Index of the layer (static).

    Returns:
      float32 [R, D] what the MLP adds to the residual stream.
    """
    weights = take_layer(params["blocks"], layer)
    normed = norm(config).apply({"params": weights["ln_2"]}, after_attention[:, None])
    here = LayerInterventions(layer, Interventions())
    value, _ = MLP(config).apply({"params": weights["mlp"]}, normed, here)
    return value[:, 0].astype(jnp.float32)


def run_suffix(
    params: forward.Params,
    config: ModelConfig,
    suffix: Suffix,
    hidden: jax.Array,
    read: jax.Array,
    layer: int,
) -> jax.Array:
    """Runs the suffix through all layers after `layer`; reverse-mode gradients are supported.

    Args:
      params: Weights of the model.
      config: Configuration of the model (static).
      suffix: What the suffix attends to.
      hidden: [R, S, D] residual stream after `layer`, with δ.
      read: int32 [R, M] suffix columns to return.
      layer: Edited layer (static).

    Returns:
      [R, M, D] residual stream after the last layer.
    """
    if layer == config.num_layers - 1:
        return columns(hidden, read)
    # The last layer also runs all columns. Running it apart would hold the weights of another layer.
    hidden = forward.run_layers(
        params,
        config,
        hidden,
        suffix.attention,
        start=layer + 1,
        cache=suffix.cache,
        remat=True,
    ).hidden
    return columns(hidden, read)
