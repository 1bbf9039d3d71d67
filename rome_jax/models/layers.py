"""Linen modules that the families share. Each is ONE layer's; nothing here knows of the stack.

Axes: B rows, T tokens that run, C columns of the cache (0 without one), H heads, K head width, D width, F MLP width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from rome_jax.models.config import Activation, ModelConfig
from rome_jax.models.interventions import (
    Delta,
    Leaf,
    Patch,
    RunPatch,
    Site,
    add_deltas,
    apply_patches,
)

ACTIVATIONS = {
    Activation.GELU_TANH: functools.partial(nn.gelu, approximate=True),
    Activation.GELU: functools.partial(nn.gelu, approximate=False),
    Activation.RELU: nn.relu,
    Activation.SILU: nn.silu,
}


@struct.dataclass
class Attention:
    """Who attends to whom.

    Attributes:
      positions: int32 [B, T], each token's place in its sequence.
      mask: bool [B, T, C + T], True where a token may look: at the cache's columns, then at those that run.
    """

    positions: jax.Array
    mask: jax.Array


@struct.dataclass
class KVCache:
    """Keys (rotated) and values of C columns that have run: [B, H, C, K] for one layer, [L, B, H, C, K] for a stack.

    Heads come before columns because both products of attention read the cache that way: no transposed copy a step.

    Attributes:
      keys, values: the arrays.
      first: the layer (static) that a stack begins with.
    """

    keys: jax.Array
    values: jax.Array
    first: int = struct.field(pytree_node=False, default=0)


@struct.dataclass
class Interventions:
    """Everything that a layer is asked to do differently: patches, and deltas with case axis B."""

    patches: tuple[Patch | RunPatch, ...] = ()
    deltas: Delta | None = None


class BlockOutput(struct.PyTreeNode):
    """What a Block returns. `sites` holds every site's value: jit drops those that nobody reads."""

    hidden: jax.Array  # [B, T, D]
    cache: KVCache  # of the T tokens alone
    sites: dict[Site, jax.Array]


def layer_norm(config: ModelConfig, name: str) -> nn.LayerNorm:
    """GPT's LayerNorm; linen's defaults (fast variance, epsilon 1e-6) are not it."""
    return nn.LayerNorm(epsilon=config.layer_norm_epsilon, use_fast_variance=False, name=name)


def dense(
    config: ModelConfig,
    leaf: Leaf,
    features: int,
    inputs: jax.Array,
    at: tuple,
    *,
    use_bias: bool = True,
) -> jax.Array:
    """A projection named by its leaf, with what the deltas add. Called inside a compact module."""
    layer, interventions = at
    outputs = nn.Dense(
        features,
        use_bias=use_bias,
        precision=config.precision,
        kernel_init=nn.initializers.normal(0.02),
        name=leaf.value[-1],
    )(inputs)
    return add_deltas(interventions.deltas, leaf, layer, inputs, outputs, config.precision)


def rotate(heads: jax.Array, positions: jax.Array, rotary_dim: int) -> jax.Array:
    """Rotary position embedding over INTERLEAVED pairs (2i, 2i+1), as GPT-J was trained (Su et al., 2021, eq. 34).

    Args:
      heads: [B, T, H, K] queries or keys.
      positions: int32 [B, T].
      rotary_dim: the leading dimensions that are rotated; the rest pass.
    """
    frequency = 10000.0 ** (-jnp.arange(0, rotary_dim, 2, dtype=jnp.float32) / rotary_dim)
    angle = positions[..., None].astype(jnp.float32) * frequency  # [B, T, rotary_dim / 2]
    sin, cos = jnp.sin(angle)[:, :, None], jnp.cos(angle)[:, :, None]
    rotated, passed = heads[..., :rotary_dim], heads[..., rotary_dim:]
    even, odd = rotated[..., ::2], rotated[..., 1::2]
    rotated = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    rotated = rotated.reshape(*heads.shape[:-1], rotary_dim).astype(heads.dtype)
    return jnp.concatenate([rotated, passed], axis=-1)


class SelfAttention(nn.Module):
    """Multi-head attention; the query, key and value projections are `fused` in one leaf (GPT-2) or three (GPT-J)."""

    config: ModelConfig
    fused: bool
    use_bias: bool

    @nn.compact
    def __call__(
        self, hidden: jax.Array, attention: Attention, cache: KVCache | None, at: tuple
    ) -> tuple[jax.Array, KVCache, dict[Site, jax.Array]]:
        config = self.config
        project = functools.partial(dense, config, at=at, use_bias=self.use_bias)
        if self.fused:
            query, key, value = jnp.split(
                project(Leaf.ATTN_QKV, 3 * config.width, hidden), 3, axis=-1
            )
        else:
            leaves = (Leaf.ATTN_QUERY, Leaf.ATTN_KEY, Leaf.ATTN_VALUE)
            query, key, value = (project(leaf, config.width, hidden) for leaf in leaves)
        query, key, value = (
            x.reshape(*x.shape[:2], config.num_heads, config.head_dim) for x in (query, key, value)
        )
        if config.rotary_dim:
            query = rotate(query, attention.positions, config.rotary_dim)
            key = rotate(key, attention.positions, config.rotary_dim)
        # Heads first for every product: XLA's CPU backend is slow at batched products whose batch axes are apart.
        query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))  # [B, H, T, K]
        own = KVCache(key, value)
        parts = [own] if cache is None else [cache, own]
        product = functools.partial(
            jnp.einsum, precision=config.precision, preferred_element_type=jnp.float32
        )
        # Scores and softmax in float32, whatever the weights are: half precision overflows here.
        scores = [product("bhtk,bhsk->bhts", query, part.keys) for part in parts]
        scores = jnp.concatenate(scores, axis=-1) / config.head_dim**0.5
        # A finite floor: a padding row that may look at nothing gets a uniform average instead of NaN.
        scores = jnp.where(attention.mask[:, None], scores, jnp.finfo(jnp.float32).min)
        pattern = jax.nn.softmax(scores, axis=-1).astype(hidden.dtype)
        pattern = patched(at, Site.ATTN_PATTERN, pattern)  # [B, H, T, C + T]
        weights = jnp.split(pattern, [pattern.shape[-1] - key.shape[2]], axis=-1)[-len(parts) :]
        mixed = sum(
            product("bhts,bhsk->bhtk", weight, part.values)
            for weight, part in zip(weights, parts, strict=True)
        )
        mixed = mixed.astype(hidden.dtype).swapaxes(1, 2).reshape(*hidden.shape[:2], config.width)
        value = project(Leaf.ATTN_OUT, config.width, mixed)
        value = patched(at, Site.ATTN_OUT, value)
        return value, own, {Site.ATTN_PATTERN: pattern, Site.ATTN_OUT: value}


class MLP(nn.Module):
    """up-projection, activation, down-projection: the associative memory k -> v of the paper (section 3.1)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: jax.Array, at: tuple) -> tuple[jax.Array, dict[Site, jax.Array]]:
        config = self.config
        hidden = patched(at, Site.MLP_IN, hidden)
        pre = patched(at, Site.MLP_PRE, dense(config, Leaf.MLP_UP, config.mlp_width, hidden, at))
        key = patched(at, Site.MLP_KEY, ACTIVATIONS[config.activation](pre))
        value = patched(at, Site.MLP_OUT, dense(config, Leaf.MLP_DOWN, config.width, key, at))
        sites = {Site.MLP_IN: hidden, Site.MLP_PRE: pre, Site.MLP_KEY: key, Site.MLP_OUT: value}
        return value, sites


def patched(at: tuple, site: Site, value: jax.Array) -> jax.Array:
    """`value` after the patches of `at = (layer, interventions)`."""
    layer, interventions = at
    return apply_patches(interventions.patches, site, layer, value)


def causal_mask(mask: jax.Array) -> jax.Array:
    """bool [B, T] of real tokens -> bool [B, T, T]: each token sees the real ones up to itself."""
    length = mask.shape[-1]
    return jnp.tril(jnp.ones((length, length), bool)) & mask[:, None, :]


def position_ids(mask: jax.Array) -> jax.Array:
    """bool [B, T] of real tokens, contiguous in each row -> int32 [B, T] that counts from the first real one."""
    first = jnp.argmax(mask, axis=-1)
    return jnp.maximum(jnp.arange(mask.shape[-1]) - first[:, None], 0).astype(jnp.int32)


def segment_mask(segments: jax.Array) -> jax.Array:
    """int32 [B, T] -> bool [B, T, T]: whether two tokens of a row belong to one document."""
    return segments[:, :, None] == segments[:, None, :]


def branch_mask(branches: jax.Array) -> jax.Array:
    """int32 [B, T] -> bool [B, T, T]: whether a token sees another: of the shared beginning, or of its own branch."""
    return (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])


__all__: Sequence[str] = (
    "MLP",
    "Attention",
    "BlockOutput",
    "Interventions",
    "KVCache",
    "SelfAttention",
    "branch_mask",
    "causal_mask",
    "layer_norm",
    "patched",
    "position_ids",
    "rotate",
    "segment_mask",
)
