"""GPT-J (Wang and Komatsuzaki, 2021): rotary positions; attention and MLP read the same norm, side by side."""

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
    """One layer: n = ln_1(h); h + attn(n) + mlp(n)."""

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
            self.config, fused=False, use_bias=False, name="attn"
        )(normed, attention, cache, at)
        value, mlp_sites = MLP(self.config, name="mlp")(normed, at)
        hidden = patched(at, Site.RESIDUAL, hidden + attn + value)
        return BlockOutput(hidden, cache, attn_sites | mlp_sites | {Site.RESIDUAL: hidden})
