"""One layer of a model, which applies attention and MLP to a residual stream, and the unembedding after the last."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Site
from rome_jax.models.layers import (
    MLP,
    Attention,
    BlockOutput,
    Interventions,
    KVCache,
    LayerInterventions,
    SelfAttention,
    columns,
    norm,
)
from rome_jax.models.precision import dot_general


class Block(nn.Module):
    """One layer of any family.

        in sequence:  a = attn(ln_1(h));  h + a + mlp(ln_2(h + a))
        in parallel:  h + attn(ln_1(h)) + mlp(ln_2(h)), where ln_2 is ln_1 if they share a norm

    Attributes:
      config: The model's config.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        hidden: jax.Array,
        attention: Attention,
        cache: KVCache | None = None,
        layer: jax.Array | int = 0,
        interventions: Interventions = Interventions(),
        read: jax.Array | None = None,
    ) -> BlockOutput:
        """Runs the layer; see `rome_jax.models.forward.run_layer`."""
        config = self.config
        here = LayerInterventions(layer, interventions)
        normed = norm(config, "ln_1")(hidden)
        attn, own, attn_sites = SelfAttention(config, name="attn")(
            normed, attention, here, cache=cache, read=read
        )
        before, after = columns(hidden, read), columns(hidden, read) + attn
        if config.shared_norm:
            normed = columns(normed, read)
        else:
            normed = norm(config, "ln_2")(before if config.parallel_residual else after)
        value, mlp_sites = MLP(config, name="mlp")(normed, here)
        hidden = here.patch(Site.RESIDUAL, after + value)
        return BlockOutput(hidden, own, attn_sites | mlp_sites | {Site.RESIDUAL: hidden})


class Head(nn.Module):
    """The unembedding: a kernel of its own, or the transposed embedding if tied, and a bias if the config has one.

    Attributes:
      config: The model's config.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: jax.Array, embedding: jax.Array) -> jax.Array:
        """Computes logits: hidden [..., D], embedding [V, D] -> float32 [..., V]."""
        config = self.config
        kernel, axis = embedding, 1
        if not config.tie_embeddings:
            shape = embedding.shape[::-1]
            kernel, axis = self.param("kernel", nn.initializers.normal(0.02), shape), 0
        contracted = ((hidden.ndim - 1,), (axis,))
        logits = dot_general(
            hidden,
            kernel,
            (contracted, ((), ())),
            config.precision,
            preferred_element_type=jnp.float32,
        )
        if config.head_bias:
            bias = self.param("bias", nn.initializers.zeros, (config.vocab_size,))
            logits = logits + bias.astype(jnp.float32)
        return logits
