"""The functional driver: embed, any range of layers, unembed.

Params are one nested dict with the layers stacked: every leaf below `blocks` has a leading axis [L, ...] and
kernels are [in, out]. The driver loops over that axis and applies the family's linen Block, so a model of 48 layers
compiles as fast as one of two. Everything here is pure and meant to run under `jax.jit`.

Axes: L layers, B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from rome_jax.data.tokens import SequenceTooLongError, TokenBatch
from rome_jax.models import gpt2, gptj
from rome_jax.models.config import Family, ModelConfig
from rome_jax.models.interventions import Delta, Patch, Site, apply_patches
from rome_jax.models.layers import (
    Attention,
    BlockOutput,
    Interventions,
    KVCache,
    branch_mask,
    causal_mask,
    layer_norm,
    position_ids,
    segment_mask,
)

Params = dict[str, Any]

BLOCKS: dict[Family, type[nn.Module]] = {Family.GPT2: gpt2.Block, Family.GPTJ: gptj.Block}


@struct.dataclass
class LayersOutput:
    """What a range of layers returns.

    Attributes:
      hidden: [B, T, D], the residual stream after the last of them.
      captures: by site, [layers run, B, T, ...]; ATTN_PATTERN [layers run, B, H, T, C + T].
      cache: [layers run, B, H, T, K], keys and values of the columns that ran, if `keep_cache`.
    """

    hidden: jax.Array
    captures: dict[Site, jax.Array]
    cache: KVCache | None = None


def embed(
    params: Params,
    config: ModelConfig,
    ids: jax.Array,
    positions: jax.Array,
    patches: Sequence[Patch] = (),
) -> jax.Array:
    """ids and positions int32 [B, T] -> residual stream [B, T, D] before layer 0."""
    hidden = params["wte"]["embedding"][ids]
    hidden = apply_patches(patches, Site.EMBED, None, hidden)
    if not config.rotary_dim:
        hidden = hidden + params["wpe"]["embedding"][positions]
    return hidden


def run_layer(
    params: Params,
    config: ModelConfig,
    hidden: jax.Array,
    attention: Attention,
    layer: int | jax.Array,
    *,
    interventions: Interventions = Interventions(),
    cache: KVCache | None = None,
) -> BlockOutput:
    """Runs one layer of the stack; `layer` may be traced, so that one program serves them all.

    Args:
      params, config, hidden, attention, interventions: as for `run_layers`.
      layer: its index.
      cache: of this layer alone, [B, H, C, K].
    """
    block = BLOCKS[config.family](config)
    weights = _at(params["blocks"], layer)
    return block.apply({"params": weights}, hidden, attention, cache, layer, interventions)


# Keeps matrix products for the backward pass and recomputes the rest, above all each layer's slice of the weights.
checkpoint = functools.partial(
    jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
)


def _at(stack: Any, index: int | jax.Array) -> Any:
    """One layer of a stacked tree. Indexing dynamically copies one; slicing out a range would copy them all."""
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), stack
    )


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
      params: of the whole model.
      config: static.
      hidden: [B, T, D], the residual stream before layer `start`.
      attention: positions, and the mask over the cache's columns and those that run.
      start, stop: Python integers, or arrays (one program for every range), which allow no captures and no
        reverse-mode gradient.
      interventions: patches and deltas; deltas with case axis B.
      capture: sites to return; RESIDUAL after layer i is the input of layer i + 1.
      cache: [layers, B, H, C, K], keys and values of earlier columns in the layers from `cache.first` on; only read.
      keep_cache: return the keys and values of the columns that run; with Python bounds only.
      remat: `checkpoint` each layer instead of storing all that it computes and a copy of its weights; set it where
        gradients are taken.
      unroll: compile every layer apart: slower to compile, about twice as fast to train a small model on a CPU.

    Returns:
      `LayersOutput`; captures have one entry for each layer that ran.

    Raises:
      ValueError: bounds outside the model, or captures with traced bounds.
    """
    stop = config.num_layers if stop is None else stop
    capture = tuple(capture)

    def run(hidden, layer):
        out = run_layer(
            params,
            config,
            hidden,
            attention,
            layer,
            interventions=interventions,
            cache=None if cache is None else _at(cache, layer - cache.first),
        )
        return out.hidden, (
            {site: out.sites[site] for site in capture},
            out.cache if keep_cache else None,
        )

    if not (isinstance(start, int) and isinstance(stop, int)):
        if capture or keep_cache:
            raise ValueError(
                "start and stop must be Python integers when capture or keep_cache is given."
            )
        last = jax.lax.fori_loop(start, stop, lambda i, h: run(h, i)[0], hidden)
        return LayersOutput(last, {})

    if not 0 <= start <= stop <= config.num_layers:
        raise ValueError(
            f"start={start}, stop={stop}: the range must lie within 0 to {config.num_layers}."
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
    """The last layer, for the columns alone whose logits are wanted; the others give keys and values.

    Args:
      params, config, hidden, attention, cache: as for `run_layers`.
      read: int32 [B, P], or [P] for all rows, the columns that are wanted.
      interventions: deltas, and patches of the columns that are read: P columns wide; none at ATTN_PATTERN.

    Returns:
      [B, P, D], the residual stream after the model.

    Raises:
      ValueError: a patch at ATTN_PATTERN, whose columns are not those that it has in other layers.
    """
    if any(patch.site is Site.ATTN_PATTERN for patch in interventions.patches):
        raise ValueError("patterns of attention cannot be patched here: use run_layers.")
    last = config.num_layers - 1
    read = jnp.broadcast_to(read, (hidden.shape[0], read.shape[-1]))
    cache = None if cache is None else _at(cache, last - cache.first)
    deltas = Interventions((), interventions.deltas)
    own = run_layer(
        params, config, hidden, attention, last, interventions=deltas, cache=cache
    ).cache
    if cache is not None:
        parts = ((cache.keys, own.keys), (cache.values, own.values))
        own = KVCache(*(jnp.concatenate(pair, axis=2) for pair in parts))
    rows = len(attention.mask)
    mask = jnp.take_along_axis(attention.mask, read[:rows, :, None], axis=1)
    # Keys and values of what is read are among these; their second computation goes unseen.
    attention = Attention(
        jnp.take_along_axis(attention.positions, read[: len(attention.positions)], axis=1),
        jnp.pad(mask, ((0, 0), (0, 0), (0, read.shape[1]))),
    )
    hidden = jnp.take_along_axis(hidden, read[..., None], axis=1)
    return run_layer(
        params, config, hidden, attention, last, interventions=interventions, cache=own
    ).hidden


def unembed(params: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Residual stream [..., D] -> float32 logits [..., V]. Give only the positions whose logits are needed."""
    hidden = layer_norm(config, "ln_f").apply({"params": params["ln_f"]}, hidden)
    head = {"params": params.get("lm_head", {})}  # GPT-2's tied head has none of its own
    return Head(config).apply(head, hidden, params["wte"]["embedding"])


def plain_attention(batch: TokenBatch) -> Attention:
    """Positions and causal mask of a batch, padded or packed."""
    mask = jnp.asarray(batch.mask)
    if batch.segments is None:
        return Attention(position_ids(mask), causal_mask(mask))
    visible = causal_mask(mask) & segment_mask(jnp.asarray(batch.segments))
    if batch.branches is not None:
        visible &= branch_mask(jnp.asarray(batch.branches))
    # A token comes after all that it sees.
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
    """Embeds a batch and runs the layers below `stop` (all of them by default); see `run_layers`.

    Raises:
      SequenceTooLongError: more columns than the model has positions.
    """
    # Branches stand side by side: no token comes after all columns before it.
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
    """Next-token logits of a batch, each row under its own edit if deltas are given.

    Args:
      params, config: the model.
      batch: B rows of T tokens; `batch.case` says which delta each row sees.
      positions: int32 [B, P], the columns whose logits are wanted; None means all T.
      patches: interventions at named sites.
      deltas: one edit, or N with a case axis: N edited models without one copied weight.

    Returns:
      float32 [B, P, V], or [B, T, V]. Values in the padding mean nothing.

    Example:
      >>> logits(model.params, model.config, encode(model.tokenizer, ["The"])).shape  # doctest: +SKIP
      (1, 1, 50257)
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
    """The values at named sites in every layer below `stop`: by site, [layers, B, T, ...].

    `Site.ATTN_PATTERN` gives [layers, B, H, T, T]. Values in the padding mean nothing.

    Example:
      >>> kept = capture(model.params, model.config, batch, (Site.RESIDUAL, Site.ATTN_PATTERN))  # doctest: +SKIP
      >>> kept[Site.ATTN_PATTERN][5, 0, :, -1]  # doctest: +SKIP
    """
    out = hidden_states(
        params, config, batch, stop=stop, patches=patches, deltas=deltas, capture=sites
    )
    return out.captures


class Transformer(nn.Module):
    """The same model as one linen module, `nn.scan` over the same Block: the same params, the same logits.

    For initialisation (`Transformer(config).init(key, ids, mask)["params"]`) and for users of plain linen.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """ids int32 [B, T], mask bool [B, T] -> float32 logits [B, T, V]."""
        config = self.config
        attention = plain_attention(TokenBatch(ids, mask))
        normal = nn.initializers.normal(0.02)
        wte = nn.Embed(config.vocab_size, config.width, embedding_init=normal, name="wte")
        hidden = wte(ids)
        if not config.rotary_dim:
            wpe = nn.Embed(config.context_length, config.width, embedding_init=normal, name="wpe")
            hidden = hidden + wpe(attention.positions)
        scan = nn.scan(
            lambda block, carry, _: (block(carry, attention).hidden, None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=config.num_layers,
        )
        hidden, _ = scan(BLOCKS[config.family](config, name="blocks"), hidden, None)
        hidden = layer_norm(config, "ln_f")(hidden)
        return Head(config, name="lm_head")(hidden, wte.embedding)


class Head(nn.Module):
    """The unembedding: its own kernel, or the transposed embedding if tied. GPT-J's has a bias in both cases."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: jax.Array, embedding: jax.Array) -> jax.Array:
        """hidden [..., D], embedding [V, D] -> float32 logits [..., V]."""
        config = self.config
        kernel = embedding.T
        if not config.tie_embeddings:
            kernel = self.param("kernel", nn.initializers.normal(0.02), kernel.shape)
        logits = jnp.matmul(
            hidden, kernel, precision=config.precision, preferred_element_type=jnp.float32
        )
        if config.family is Family.GPTJ:
            bias = self.param("bias", nn.initializers.zeros, (config.vocab_size,))
            logits = logits + bias.astype(jnp.float32)
        return logits


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Random params of the right shapes: normal(0.02) kernels, as GPT-2 was initialised."""
    token = jnp.zeros((1, 1), jnp.int32)
    return jax.jit(Transformer(config).init)(key, token, jnp.ones((1, 1), bool))["params"]


def param_shapes(config: ModelConfig) -> Params:
    """The tree of `init_params` as `jax.ShapeDtypeStruct`s: nothing is computed."""
    return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
