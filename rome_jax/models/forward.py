"""The functional driver: embed tokens, run any range of layers, unembed.

Params are one nested dict with the layers stacked: every leaf below `blocks` has a leading axis [L, ...], and kernels
are [in, out]. The driver loops over that axis and applies the linen Block, so a model of 48 layers compiles
as fast as a model of two. Everything here is pure and meant to run under `jax.jit`.

Axes: L layers, B rows, T tokens that are run, P tokens that are read, C columns of a cache, H heads, G heads of keys
and values, K head width, D width of the residual stream, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rome_jax.data.tokens import SequenceTooLongError, TokenBatch
from rome_jax.models.block import Block, Head
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Delta, Site, check_leaves, check_sites
from rome_jax.models.layers import Attention, BlockOutput, Interventions, KVCache, norm
from rome_jax.models.masks import branch_mask, causal_mask, position_ids, segment_mask
from rome_jax.models.patches import Patch, RunPatch, apply_patches
from rome_jax.models.placement import DATA_AXIS, constrain
from rome_jax.models.stack import LayersOutput, checkpoint, take_layer, tie

Params = dict[str, Any]


def embed(
    params: Params,
    config: ModelConfig,
    ids: jax.Array | np.ndarray,
    positions: jax.Array,
    patches: Sequence[Patch | RunPatch] = (),
) -> jax.Array:
    """Computes the residual stream before layer 0.

    Args:
      params: Params of the whole model.
      config: The model's config.
      ids: int32 [B, T], token ids.
      positions: int32 [B, T], the position of each token in its sequence.
      patches: Patches; those at `Site.EMBED` change the token embeddings before positions are added.

    Returns:
      [B, T, D].

    Example:
      >>> ids = jnp.array([[5, 6, 7]])
      >>> embed(model.params, model.config, ids, jnp.arange(3)[None]).shape
      (1, 3, 128)
    """
    hidden = _look_up(params["wte"], ids)
    hidden = apply_patches(patches, Site.EMBED, None, hidden)
    if config.rotary is None:
        hidden = hidden + _look_up(params["wpe"], positions)
    return hidden


def _look_up(table: Params, rows: jax.Array | np.ndarray) -> jax.Array:
    """Takes rows out of an embedding."""
    embedding, rows = tie(table["embedding"], jnp.asarray(rows))
    return embedding[rows]


def run_layer(
    params: Params,
    config: ModelConfig,
    hidden: jax.Array,
    attention: Attention,
    layer: int | jax.Array,
    *,
    interventions: Interventions = Interventions(),
    cache: KVCache | None = None,
    read: jax.Array | None = None,
) -> BlockOutput:
    """Runs one layer of the stack.

    Args:
      params, config, hidden, attention: As in `run_layers`.
      layer: The layer's index; it may be traced, so that one program serves all layers.
      interventions: As in `run_layers`; with `read`, patches are P columns wide.
      cache: Keys and values of this layer alone, [B, G, C, K].
      read: int32 [B, P], the columns to compute the layer's output for, or [1, P] for all rows; None means all T.
        All T columns give keys and values in either case.

    Returns:
      `BlockOutput` for the columns in `read`.

    Raises:
      ValueError: If a delta changes a weight that the model does not have.
    """
    if interventions.deltas is not None:
        check_leaves(config, [update.leaf for update in interventions.deltas.updates])
    weights = take_layer(params["blocks"], layer)
    return _apply(Block(config), weights, hidden, attention, cache, layer, interventions, read)


def _apply(module: nn.Module, params: Params, *arguments: Any) -> Any:
    """Applies a linen module to its params."""
    return module.apply({"params": params}, *arguments)


def run_layers(
    params: Params,
    config: ModelConfig,
    hidden: jax.Array,
    attention: Attention,
    *,
    start: int | jax.Array = 0,
    stop: int | jax.Array | None = None,
    interventions: Interventions = Interventions(),
    capture: Sequence[Site] = (),
    cache: KVCache | None = None,
    keep_cache: bool = False,
    remat: bool = False,
    unroll: bool = False,
) -> LayersOutput:
    """Runs the layers start, ..., stop - 1.

    Args:
      params: Params of the whole model.
      config: The model's config (static).
      hidden: [B, T, D], the residual stream before layer `start`.
      attention: Positions of the T tokens, and their mask over the cache's columns and the tokens themselves.
      start: First layer, 0 by default. A Python integer compiles one program per range. An array lets one program
        serve every range, but allows neither captures nor a kept cache nor a reverse-mode gradient.
      stop: One more than the last layer, as `start`; None means all layers.
      interventions: Patches and deltas; deltas need case axis B.
      capture: Sites to return; `Site.RESIDUAL` after layer i is the input of layer i + 1.
      cache: [layers, B, G, C, K], keys and values of earlier columns in the layers that begin with `cache.first`; it
        is only read.
      keep_cache: Whether to return the keys and values of the T tokens.
      remat: Whether to `checkpoint` each layer instead of storing everything it computes and a copy of its weights.
        Set it where gradients are taken.
      unroll: Whether to compile the layers one after another instead of as a loop. This compiles more slowly, but
        trains a small model on a CPU about twice as fast.

    Returns:
      `LayersOutput`, with one entry in `captures` for each layer that was run.

    Raises:
      ValueError: If the bounds are outside the model, if they are arrays and `capture` or `keep_cache` is given, or if
        the layers do not have a site.

    Example:
      >>> batch = rome_jax.encode(model.tokenizer, ["Gothulf Punby plays the sport of"])
      >>> attention = plain_attention(batch)
      >>> hidden = embed(model.params, model.config, batch.ids, attention.positions)
      >>> below = run_layers(model.params, model.config, hidden, attention, stop=4).hidden
      >>> hidden = run_layers(model.params, model.config, below, attention, start=4).hidden
      >>> model.tokenizer.decode([int(unembed(model.params, model.config, hidden[0, -1]).argmax())])
      ' rowing'
    """
    stop = config.num_layers if stop is None else stop
    hidden = constrain(hidden, params["blocks"], DATA_AXIS)
    capture = tuple(capture)
    patched = [patch.site for patch in interventions.patches if patch.site is not Site.EMBED]
    check_sites(config, [*capture, *patched])

    def run(hidden, layer):
        out = run_layer(
            params,
            config,
            hidden,
            attention,
            layer,
            interventions=interventions,
            cache=None if cache is None else take_layer(cache, layer - cache.first),
        )
        captured = {site: out.sites[site] for site in capture}
        return out.hidden, (captured, out.cache if keep_cache else None)

    if not (isinstance(start, int) and isinstance(stop, int)):
        if capture or keep_cache:
            raise ValueError(
                f"start={start} and stop={stop} must be Python integers when capture or keep_cache is given."
            )
        last = jax.lax.fori_loop(start, stop, lambda i, h: run(h, i)[0], hidden)
        return LayersOutput(last, {})

    if not 0 <= start <= stop <= config.num_layers:
        raise ValueError(
            f"start={start}, stop={stop}: the range must be within 0 to {config.num_layers}."
        )
    if start == stop and not (capture or keep_cache):
        return LayersOutput(hidden, {})
    if remat:
        run = checkpoint(run)
    layers = jnp.arange(start, stop)
    hidden, (captures, kept) = jax.lax.scan(run, hidden, layers, unroll=unroll)
    return LayersOutput(hidden, captures, kept.replace(first=start) if keep_cache else None)


def run_last_layer(
    params: Params,
    config: ModelConfig,
    hidden: jax.Array,
    attention: Attention,
    read: jax.Array,
    *,
    interventions: Interventions = Interventions(),
    cache: KVCache | None = None,
) -> jax.Array:
    """Runs the last layer for those columns only that logits are needed for.

    No layer follows that would attend to the other columns, so they only give keys and values. With T = 6 and
    `read` = [2, 5]:

        column                     0  1  2  3  4  5
        hidden, [B, T, D]          x  x  x  x  x  x
        keys and values            x  x  x  x  x  x
        queries                          x        x
        attention and MLP                x        x
        result, [B, P, D]                x        x

    Args:
      params, config, hidden, attention, cache: As in `run_layers`.
      read: int32 [B, P], the columns to return, or [P] for all rows.
      interventions: Deltas, and patches of the columns in `read`, which are P columns wide.

    Returns:
      [B, P, D], the residual stream after the last layer.

    Example:
      >>> batch = rome_jax.encode(model.tokenizer, ["Gothulf Punby plays the sport of"])
      >>> states = capture(model.params, model.config, batch, (Site.RESIDUAL, Site.ATTN_PATTERN))
      >>> hidden = states[Site.RESIDUAL][4]  # after the last layer but one
      >>> run = jax.jit(run_last_layer, static_argnames="config")
      >>> run(model.params, model.config, hidden, plain_attention(batch), read=jnp.array([6])).shape
      (1, 1, 128)
    """
    last = config.num_layers - 1
    return run_layer(
        params,
        config,
        hidden,
        attention,
        last,
        interventions=interventions,
        cache=None if cache is None else take_layer(cache, last - cache.first),
        read=jnp.atleast_2d(read),
    ).hidden


def unembed(params: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Computes next-token logits from the residual stream after the last layer.

    Args:
      params: Params of the whole model.
      config: The model's config.
      hidden: [..., D]. Pass only the positions whose logits are needed: V is large.

    Returns:
      float32 [..., V].
    """
    hidden = _apply(norm(config, "ln_f"), params["ln_f"], hidden)
    head = params.get("lm_head", {})  # GPT-2's tied head has no params of its own
    return _apply(Head(config), head, hidden, params["wte"]["embedding"])


def plain_attention(batch: TokenBatch) -> Attention:
    """Builds the positions and the causal mask of a batch, padded or packed.

    Example:
      >>> batch = rome_jax.data.tokens.pad([[5, 6], [7, 8, 9]], left=True)
      >>> plain_attention(batch).positions.tolist()
      [[0, 0, 1], [0, 1, 2]]
    """
    mask = jnp.asarray(batch.mask)
    if batch.segments is None:
        return Attention(position_ids(mask), causal_mask(mask))
    visible = causal_mask(mask) & segment_mask(jnp.asarray(batch.segments))
    if batch.branches is not None:
        visible &= branch_mask(jnp.asarray(batch.branches))
    # The position of a token is the number of tokens it sees before itself.
    return Attention(jnp.maximum(visible.sum(axis=-1, dtype=jnp.int32) - 1, 0), visible)


def hidden_states(
    params: Params,
    config: ModelConfig,
    batch: TokenBatch,
    *,
    stop: int | None = None,
    patches: tuple[Patch, ...] = (),
    deltas: Delta | None = None,
    capture: Sequence[Site] = (),
) -> LayersOutput:
    """Embeds a batch and runs the layers below `stop`.

    Args:
      params, config, batch, patches, deltas: As in `logits`.
      stop: See `run_layers`; None means all layers.
      capture: See `run_layers`.

    Returns:
      `LayersOutput`.

    Raises:
      SequenceTooLongError: If the batch has more columns than the model has positions.
    """
    # Branches are alternative continuations of one beginning: a token's position can be less than its column.
    if batch.branches is None and batch.ids.shape[1] > config.context_length:
        raise SequenceTooLongError(
            f"a batch of {batch.ids.shape[1]} columns is longer than the model's context of "
            f"{config.context_length}: shorten the texts, or pad less."
        )
    attention = plain_attention(batch)
    if deltas is not None:
        deltas = deltas.rows(batch.case, batch.ids.shape[0])
    hidden = embed(params, config, jnp.asarray(batch.ids), attention.positions, patches)
    interventions = Interventions(patches, deltas)
    return run_layers(
        params, config, hidden, attention, stop=stop, interventions=interventions, capture=capture
    )


@functools.partial(jax.jit, static_argnames="config")
def logits(
    params: Params,
    config: ModelConfig,
    batch: TokenBatch,
    *,
    positions: jax.Array | None = None,
    patches: tuple[Patch, ...] = (),
    deltas: Delta | None = None,
) -> jax.Array:
    """Computes next-token logits of a batch; each row sees its own edit if deltas are given.

    Args:
      params: Params of the whole model.
      config: The model's config (static).
      batch: B rows of T tokens; `batch.case` assigns a delta to each row.
      positions: int32 [B, P], the columns whose logits are needed; None means all T.
      patches: Values to replace or add at named sites.
      deltas: One edit, or N edits with a case axis. N edited models then run without a copy of any weight.

    Returns:
      float32 [B, P, V], or [B, T, V]. Values at padding columns are meaningless.

    Raises:
      SequenceTooLongError: If the batch has more columns than the model has positions.
      ValueError: If the deltas do not fit the rows, or a delta is dense; see `Delta.rows`.

    Example:
      >>> batch = rome_jax.encode(model.tokenizer, ["Gothulf Punby plays the sport of"])
      >>> logits(model.params, model.config, batch).shape
      (1, 7, 1536)
    """
    hidden = hidden_states(params, config, batch, patches=patches, deltas=deltas).hidden
    if positions is not None:
        hidden = jnp.take_along_axis(hidden, positions[..., None], axis=1)
    return unembed(params, config, hidden)


@functools.partial(jax.jit, static_argnames=("config", "sites", "stop"))
def capture(
    params: Params,
    config: ModelConfig,
    batch: TokenBatch,
    sites: tuple[Site, ...],
    *,
    stop: int | None = None,
    patches: tuple[Patch, ...] = (),
    deltas: Delta | None = None,
) -> dict[Site, jax.Array]:
    """Computes the values at named sites in every layer below `stop`.

    Args:
      params, config, batch, patches, deltas: As in `logits`.
      sites: The sites to return (static).
      stop: One more than the last layer (static); None means all layers.

    Returns:
      [layers, B, T, ...] by site; `Site.ATTN_PATTERN` gives [layers, B, H, T, T]. Values at padding columns are
      meaningless.

    Example:
      >>> batch = rome_jax.encode(model.tokenizer, ["Gothulf Punby plays the sport of"])
      >>> values = capture(model.params, model.config, batch, (Site.RESIDUAL, Site.ATTN_PATTERN))
      >>> values[Site.ATTN_PATTERN][5, 0, :, -1].shape  # layer 5, row 0, all heads, the last token
      (4, 7)
    """
    out = hidden_states(
        params, config, batch, stop=stop, patches=patches, deltas=deltas, capture=sites
    )
    return out.captures
