"""GPT-2 (Radford et al., 2019): pre-norm blocks, attention first, then the MLP on what attention has written."""

from __future__ import annotations

import jax
from flax import linen as nn

from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Site
from rome_jax.models.layers import (
    MLP,
    Attention,
    BlockOutput,
    Interventions,
    KVCache,
    SelfAttention,
    layer_norm,
    patched,
)


class Block(nn.Module):
    """One layer: a = attn(ln_1(h)); m = mlp(ln_2(h + a)); h + a + m."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        hidden: jax.Array,
        attention: Attention,
        cache: KVCache | None = None,
        layer: jax.Array | int = 0,
        interventions: Interventions = Interventions(),
    ) -> BlockOutput:
        at = (layer, interventions)
        normed = layer_norm(self.config, "ln_1")(hidden)
        attn, cache, attn_sites = SelfAttention(
            self.config, fused=True, use_bias=True, name="attn"
        )(normed, attention, cache, at)
        hidden = hidden + attn
        normed = layer_norm(self.config, "ln_2")(hidden)
        value, mlp_sites = MLP(self.config, name="mlp")(normed, at)
        hidden = patched(at, Site.RESIDUAL, hidden + value)
        return BlockOutput(hidden, cache, attn_sites | mlp_sites | {Site.RESIDUAL: hidden})
