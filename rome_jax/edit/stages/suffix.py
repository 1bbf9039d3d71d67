"""What an edit can change, cut out of what it cannot.

Behind the edit layer, δ changes the fact token and, by the causal mask, only what follows it. Keys and values of the
columns before it stay the same at every layer: they are computed once, and each step of the optimisation runs the
suffix alone over them.

Axes: N requests, K templates, R = N·(K + 1) rows, T tokens, P prefix columns, S suffix columns, L layers, H heads.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import struct

from rome_jax.edit.stages.inputs import EditInputs
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.layers import Attention, KVCache


@struct.dataclass
class Suffix:
    """The columns of R rows that an edit can change; column s of row r is column `start[r] + s` of the batch.

    Attributes:
      hidden: [R, S, D], the residual stream after the edit layer, without δ.
      attention: of S queries over P prefix and S suffix columns.
      cache: [layers above, R, H, P, K], of the prefix columns.
    """

    hidden: jax.Array
    attention: Attention
    cache: KVCache


@functools.partial(jax.jit, static_argnames=("config", "layer"))
def freeze_prefix(
    params: forward.Params, config: ModelConfig, inputs: EditInputs, hidden: jax.Array, layer: int
) -> Suffix:
    """Computes keys and values before the fact token in all layers above `layer`.

    Args:
      params, config: the model.
      inputs: token arrays of N requests.
      hidden: [R, T, D], the residual stream after `layer`.
      layer: the edit layer, static.
    """
    num_prefix, num_suffix = inputs.num_prefix, inputs.num_suffix
    num_rows, length, _ = hidden.shape
    whole = forward.plain_attention(inputs.batch)
    # Prefix columns from a row's start on hold suffix tokens too: they are computed, and nobody looks at them.
    attention = Attention(whole.positions[:, :num_prefix], whole.mask[:, :num_prefix, :num_prefix])
    prefix, contexts = hidden[:, :num_prefix], inputs.contexts
    if contexts is not None:
        prefix = contexts.pack(prefix, contexts.num_own_prefix)
        attention = contexts.attention(attention, contexts.num_own_prefix)
    cache = forward.run_layers(
        params, config, prefix, attention, start=layer + 1, keep_cache=True
    ).cache
    if contexts is not None:  # back to a row a request
        columns = jnp.broadcast_to(jnp.arange(num_prefix), (num_rows, num_prefix))
        row, column = contexts.place(columns, contexts.num_own_prefix)
        cache = jax.tree.map(
            lambda leaf: leaf.transpose(1, 3, 0, 2, 4)[row, column].transpose(2, 0, 3, 1, 4), cache
        )

    start = inputs.start.reshape(-1, 1)  # [R, 1]
    columns = start + jnp.arange(num_suffix)
    inside, columns = columns < length, jnp.minimum(columns, length - 1)  # [R, S]
    rows = jnp.arange(num_rows)[:, None]
    mask = whole.mask[rows, columns]  # [R, S, T]
    before = mask[..., :num_prefix] & (jnp.arange(num_prefix) < start[:, :, None])
    own = jnp.take_along_axis(mask, columns[:, None], axis=2) & inside[:, None]
    return Suffix(
        hidden[rows, columns],
        Attention(whole.positions[rows, columns], jnp.concatenate([before, own], axis=2)),
        cache,
    )


def run_suffix(
    params: forward.Params,
    config: ModelConfig,
    suffix: Suffix,
    hidden: jax.Array,
    read: jax.Array,
    layer: int,
) -> jax.Array:
    """Runs the suffix through all layers above `layer`; for reverse-mode gradients too.

    Args:
      params, config: the model.
      suffix: what it attends to.
      hidden: [R, S, D], the residual stream after `layer`, with δ.
      read: int32 [R, M], the suffix columns that are wanted.
      layer: the edit layer, static.

    Returns:
      [R, M, D], the residual stream after the last layer.
    """
    last = config.num_layers - 1
    if layer == last:
        return jnp.take_along_axis(hidden, read[..., None], axis=1)
    hidden = forward.run_layers(
        params,
        config,
        hidden,
        suffix.attention,
        start=layer + 1,
        stop=last,
        cache=suffix.cache,
        remat=True,
    ).hidden

    last_layer = functools.partial(forward.run_last_layer, params, config, cache=suffix.cache)
    return forward.checkpoint(last_layer)(hidden, suffix.attention, read)
