"""The whole model as one linen module, which creates params and serves users of plain linen."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from rome_jax.data.tokens import TokenBatch
from rome_jax.models.block import Block, Head
from rome_jax.models.config import ModelConfig
from rome_jax.models.forward import Params, plain_attention
from rome_jax.models.layers import norm


class Transformer(nn.Module):
    """The same model as one linen module, with `nn.scan` over the same Block, the same params and the same logits.

    It initializes params (`Transformer(config).init(key, ids, mask)["params"]`) and serves users of plain linen.

    Attributes:
      config: The model's config.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Computes logits: ids int32 [B, T], mask bool [B, T] -> float32 [B, T, V]."""
        config = self.config
        attention = plain_attention(TokenBatch(ids, mask))
        normal = nn.initializers.normal(0.02)
        wte = nn.Embed(config.vocab_size, config.width, embedding_init=normal, name="wte")
        hidden = wte(ids)
        if config.rotary is None:
            wpe = nn.Embed(config.context_length, config.width, embedding_init=normal, name="wpe")
            hidden = hidden + wpe(attention.positions)
        scan = nn.scan(
            lambda block, carry, layer: (block(carry, attention, None, layer).hidden, None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=config.num_layers,
        )
        layers = jnp.arange(config.num_layers)
        hidden, _ = scan(Block(config, name="blocks"), hidden, layers)
        hidden = norm(config, "ln_f")(hidden)
        return Head(config, name="lm_head")(hidden, wte.embedding)


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Draws random params: kernels and embeddings from a normal distribution of standard deviation 0.02, as GPT-2.

    Args:
      config: The model's config.
      key: PRNG key.

    Returns:
      float32 params with stacked layers; `param_shapes` gives their shapes.
    """
    token = jnp.zeros((1, 1), jnp.int32)
    return jax.jit(Transformer(config).init)(key, token, jnp.ones((1, 1), bool))["params"]


def param_shapes(config: ModelConfig) -> Params:
    """Returns the tree of `init_params` as `jax.ShapeDtypeStruct`s, without computing anything.

    Example:
      >>> param_shapes(model.config)["wte"]["embedding"].shape
      (1536, 128)
    """
    return jax.tree.map(
        lambda shape: shape, _param_shapes(config)
    )  # a copy that the caller may change


@functools.lru_cache(maxsize=16)
def _param_shapes(config: ModelConfig) -> Params:
    """Traces `init_params` once per config."""
    return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
