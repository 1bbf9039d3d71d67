"""Linen modules that the model families share. Each module describes one layer and knows nothing about the stack.

Axes: B rows, T tokens that are run, P tokens that are read (all T unless `read` is given), C columns of the cache (0
without a cache), H heads, G heads of keys and values (H unless queries share them), K head width, D width of the
residual stream, F width of the MLP.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from rome_jax.models.config import Activation, ModelConfig, Norm, Rotary, RotaryPairs
from rome_jax.models.interventions import Delta, Leaf, Site, add_deltas
from rome_jax.models.patches import Patch, RunPatch, apply_patches
from rome_jax.models.precision import MatmulPrecision, dot_general, einsum, promote_inputs

ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    Activation.GELU_TANH: functools.partial(nn.gelu, approximate=True),
    Activation.GELU: functools.partial(nn.gelu, approximate=False),
    Activation.RELU: nn.relu,
    Activation.SILU: nn.silu,
}


@struct.dataclass
class Attention:
    """Which token attends to which column, and where each token is in its sequence.

    Attributes:
      positions: int32 [B, T], each token's position in its sequence.
      mask: bool [B, T, C + T], True where a token may attend: first the cache's columns, then those that are run.
    """

    positions: jax.Array
    mask: jax.Array


@struct.dataclass
class KVCache:
    """Keys (already rotated) and values of C columns that have been run.

    One layer's arrays are [B, G, C, K] and a stack's are [L, B, G, C, K]. Heads come before columns because both
    products of attention read the cache in this order, so no step has to transpose it.

    Attributes:
      keys: The keys.
      values: The values, in the same shape.
      first: The layer that index 0 of a stack belongs to (static).
    """

    keys: jax.Array
    values: jax.Array
    first: int = struct.field(pytree_node=False, default=0)


@struct.dataclass
class Interventions:
    """Everything that a forward pass does differently.

    Attributes:
      patches: Values that are replaced or added at named sites.
      deltas: Edits of the weights with case axis B, or None.
    """

    patches: tuple[Patch | RunPatch, ...] = ()
    deltas: Delta | None = None


@struct.dataclass
class LayerInterventions:
    """The interventions of a forward pass, as seen from one layer.

    Attributes:
      layer: The index of the layer; it may be traced.
      interventions: The interventions in all layers.
    """

    layer: jax.Array | int
    interventions: Interventions

    def patch(self, site: Site, value: jax.Array) -> jax.Array:
        """Returns the `value` of a site after the patches that apply to it in this layer."""
        return apply_patches(self.interventions.patches, site, self.layer, value)

    def add_deltas(
        self, leaf: Leaf, inputs: jax.Array, outputs: jax.Array, precision: MatmulPrecision
    ) -> jax.Array:
        """Returns the `outputs` of a projection plus what the deltas add to them in this layer."""
        deltas = self.interventions.deltas
        return add_deltas(deltas, leaf, self.layer, inputs, outputs, precision)


class BlockOutput(struct.PyTreeNode):
    """The result of one Block.

    Attributes:
      hidden: [B, P, D], the residual stream after the layer.
      cache: Keys and values of the T tokens that were run, [B, G, T, K].
      sites: The value at every site; `jax.jit` drops those that are not used.
    """

    hidden: jax.Array
    cache: KVCache
    sites: dict[Site, jax.Array]


def norm(config: ModelConfig, name: str | None = None) -> nn.LayerNorm | nn.RMSNorm:
    """Builds the config's norm. linen's defaults (fast variance, epsilon 1e-6) are not those of the models."""
    kind = nn.RMSNorm if config.norm is Norm.RMS else nn.LayerNorm
    return kind(epsilon=config.norm_epsilon, use_fast_variance=False, name=name)


def columns(values: jax.Array, read: jax.Array | None) -> jax.Array:
    """Selects columns of `values` [B, T, ...] for each row.

    Args:
      values: [B, T, ...], or [1, T, ...] if all rows share it.
      read: int32 [B, P], the columns of each row, or [1, P] for all rows; None selects all T columns.

    Returns:
      [B, P, ...].

    Example:
      >>> values = jnp.array([[10, 11, 12], [20, 21, 22]])
      >>> columns(values, jnp.array([[2], [0]])).tolist()
      [[12], [20]]
    """
    if read is None:
        return values
    return jnp.take_along_axis(values, read.reshape(read.shape + (1,) * (values.ndim - 2)), axis=1)


def dense(
    config: ModelConfig,
    leaf: Leaf,
    features: int | tuple[int, ...],
    inputs: jax.Array,
    here: LayerInterventions,
    *,
    use_bias: bool = True,
) -> jax.Array:
    """Applies the projection of a leaf and adds what the deltas contribute. Call it inside a compact module."""
    outputs = nn.DenseGeneral(
        features,
        use_bias=use_bias,
        precision=config.precision,  # type: ignore[arg-type]  # linen's annotation has no algorithms
        dot_general=dot_general,
        promote_dtype=promote_inputs,
        kernel_init=nn.initializers.normal(0.02),
        name=leaf.value[-1],
    )(inputs)
    return here.add_deltas(leaf, inputs, outputs, config.precision)


def rotate(heads: jax.Array, positions: jax.Array, rotary: Rotary) -> jax.Array:
    """Applies rotary position embedding.

    Args:
      heads: [B, T, H, K] queries or keys.
      positions: int32 [B, T].
      rotary: The embedding; dimensions beyond `rotary.dim` are returned unchanged.

    Returns:
      [B, T, H, K], of the dtype of `heads`.

    Example:
      >>> heads = jnp.array([1.0, 0.0, 5.0]).reshape(1, 1, 1, 3)
      >>> rotate(heads, jnp.array([[1]]), Rotary(dim=2)).round(3).tolist()  # cos 1, sin 1, unchanged
      [[[[0.54..., 0.84..., 5.0]]]]

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021), equation 34.
    """
    angle = positions[..., None].astype(jnp.float32) * rotary.frequencies()  # [B, T, dim / 2]
    sin, cos = jnp.sin(angle)[:, :, None], jnp.cos(angle)[:, :, None]
    turned, kept = heads[..., : rotary.dim], heads[..., rotary.dim :]
    interleaved = rotary.pairs is RotaryPairs.INTERLEAVED
    if interleaved:
        first, second = turned[..., ::2], turned[..., 1::2]
    else:
        first, second = jnp.split(turned, 2, axis=-1)
    pairs = (first * cos - second * sin, second * cos + first * sin)
    turned = jnp.stack(pairs, axis=-1 if interleaved else -2)
    turned = turned.reshape(*heads.shape[:-1], rotary.dim).astype(heads.dtype)
    return jnp.concatenate([turned, kept], axis=-1)


class SelfAttention(nn.Module):
    """Multi-head attention over the cached columns and the tokens that are run.

    Attributes:
      config: The model's config.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        hidden: jax.Array,
        attention: Attention,
        here: LayerInterventions,
        *,
        cache: KVCache | None = None,
        read: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache, dict[Site, jax.Array]]:
        """Computes keys and values of all T tokens, and the attention of those in `read` over them.

        Args:
          hidden: [B, T, D], the normalized residual stream.
          attention: Positions and mask of all T tokens.
          here: The interventions in this layer; patches are P columns wide.
          cache: [B, G, C, K], keys and values of earlier columns.
          read: See `columns`.

        Returns:
          What attention adds to the residual stream [B, P, D], the keys and values [B, G, T, K] of the tokens that
          were run, and the values at the sites of attention.
        """
        config = self.config
        query, key, value = self._project(hidden, here, read)
        if config.qk_norm:
            query, key = norm(config, "query_norm")(query), norm(config, "key_norm")(key)
        if config.rotary is not None:
            query = rotate(query, columns(attention.positions, read), config.rotary)
            key = rotate(key, attention.positions, config.rotary)
        # XLA's CPU backend is slow at batched products unless the batch axes, rows and heads, are adjacent.
        query, key, value = (
            x.swapaxes(1, 2) for x in (query, key, value)
        )  # [B, H or G, P or T, K]
        own = KVCache(key, value)

        # Scores and softmax are float32 whatever the dtype of the weights: half precision overflows here.
        scores = attention_scores(config, query, cache, own)
        if config.scale_scores:
            scores = scores / config.head_dim**0.5
        if config.scale_by_layer:
            scores = scores / (here.layer + 1)
        # The floor is finite: a padding token that may attend to nothing gets a uniform average instead of NaN.
        visible = columns(attention.mask, read)[:, None]
        scores = jnp.where(visible, scores, jnp.finfo(jnp.float32).min)
        pattern = jax.nn.softmax(scores, axis=-1).astype(hidden.dtype)
        pattern = here.patch(Site.ATTN_PATTERN, pattern)  # [B, H, P, C + T]

        mixed = mixed_values(config, pattern, cache, own).astype(hidden.dtype).swapaxes(1, 2)
        mixed = mixed.reshape(*mixed.shape[:2], config.attention_width)  # [B, P, H K]
        out = dense(config, Leaf.ATTN_OUT, config.width, mixed, here, use_bias=config.out_bias)
        output = here.patch(Site.ATTN_OUT, out)
        return output, own, {Site.ATTN_PATTERN: pattern, Site.ATTN_OUT: output}

    def _project(
        self, hidden: jax.Array, here: LayerInterventions, read: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Projects to queries [B, P, H, K], and to keys and values [B, T, G, K]."""
        config = self.config
        project = functools.partial(dense, config, here=here, use_bias=config.qkv_bias)
        if config.fused_qkv:
            # An axis of its own for the three parts lets a mesh split each of them by heads.
            fused = project(Leaf.ATTN_QKV, (3, config.attention_width), hidden)
            query, key, value = jnp.moveaxis(fused, -2, 0)
            query = columns(query, read)
        else:
            query = project(Leaf.ATTN_QUERY, config.attention_width, columns(hidden, read))
            key = project(Leaf.ATTN_KEY, config.kv_width, hidden)
            value = project(Leaf.ATTN_VALUE, config.kv_width, hidden)
        query, key, value = (
            x.reshape(*x.shape[:2], -1, config.head_dim) for x in (query, key, value)
        )
        return query, key, value


# The next two functions keep the cached columns and the tokens' own columns apart. Joining them first would be
# shorter, but it would copy the cache in every layer and at every step of a generation.


def attention_scores(
    config: ModelConfig, query: jax.Array, cache: KVCache | None, own: KVCache
) -> jax.Array:
    """Multiplies queries [B, H, P, K] by the keys of the cache, if there is one, and by their own: [B, H, P, C + T]."""
    product = functools.partial(_product, config, "bhpk,bhsk->bhps", _by_group(config, query))
    scores = product(own.keys)
    if cache is not None:
        scores = jnp.concatenate([product(cache.keys), scores], axis=-1)
    return scores.reshape(*query.shape[:3], -1)


def mixed_values(
    config: ModelConfig, pattern: jax.Array, cache: KVCache | None, own: KVCache
) -> jax.Array:
    """Averages the values of the cache, if there is one, and their own by a pattern [B, H, P, C + T]: [B, H, P, K]."""
    product = functools.partial(_product, config, "bhps,bhsk->bhpk")
    grouped = _by_group(config, pattern)
    if cache is None:
        mixed = product(grouped, own.values)
    else:
        num_cached = cache.values.shape[2]
        cached, rest = grouped[..., :num_cached], grouped[..., num_cached:]
        mixed = product(cached, cache.values) + product(rest, own.values)
    return mixed.reshape(*pattern.shape[:3], -1)


def _by_group(config: ModelConfig, heads: jax.Array) -> jax.Array:
    """Joins the heads that share keys and values: [B, H, P, X] -> [B, G, H / G · P, X]."""
    return heads.reshape(heads.shape[0], config.num_kv_heads, -1, heads.shape[-1])


def _product(config: ModelConfig, equation: str, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """Multiplies as `jnp.einsum` does, at the config's precision and with a float32 result."""
    return einsum(equation, lhs, rhs, config.precision, preferred_element_type=jnp.float32)


class MLP(nn.Module):
    """Up-projection, activation, down-projection: the associative memory k -> v of the paper (section 3.1).

    In a gated MLP (Shazeer, 2020) the key k is the product that enters the down-projection: act(gate(h)) · up(h).

    Attributes:
      config: The model's config.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, hidden: jax.Array, here: LayerInterventions
    ) -> tuple[jax.Array, dict[Site, jax.Array]]:
        """Computes what the MLP adds to the residual stream.

        Args:
          hidden: [B, P, D], the normalized residual stream.
          here: The interventions in this layer.

        Returns:
          [B, P, D], and the values at the sites of the MLP.
        """
        config = self.config
        project = functools.partial(dense, config, here=here, use_bias=config.mlp_bias)
        activate = ACTIVATIONS[config.activation]
        hidden = here.patch(Site.MLP_IN, hidden)
        pre = here.patch(Site.MLP_PRE, project(Leaf.MLP_UP, config.mlp_width, hidden))
        sites = {Site.MLP_IN: hidden, Site.MLP_PRE: pre}
        if config.gated:
            gate = here.patch(Site.MLP_GATE, project(Leaf.MLP_GATE, config.mlp_width, hidden))
            sites[Site.MLP_GATE] = gate
            key = activate(gate) * pre
        else:
            key = activate(pre)
        key = here.patch(Site.MLP_KEY, key)
        value = here.patch(Site.MLP_OUT, project(Leaf.MLP_DOWN, config.width, key))
        return value, sites | {Site.MLP_KEY: key, Site.MLP_OUT: value}


__all__: Sequence[str] = (
    "MLP",
    "Attention",
    "BlockOutput",
    "Interventions",
    "KVCache",
    "LayerInterventions",
    "SelfAttention",
    "columns",
    "norm",
    "rotate",
)
