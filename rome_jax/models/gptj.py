"""GPT-J (Wang and Komatsuzaki, 2021): rotary positions, and attention and MLP in parallel on the same norm."""

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
    LayerInterventions,
    SelfAttention,
    columns,
    layer_norm,
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
        read: jax.Array | None = None,
    ) -> BlockOutput:
        """Runs the layer; see `rome_jax.models.forward.run_layer`."""
        here = LayerInterventions(layer, interventions)
        normed = layer_norm(self.config, "ln_1")(hidden)
        attn, own, attn_sites = SelfAttention(
            self.config, fused=False, use_bias=False, name="attn"
        )(normed, attention, here, cache=cache, read=read)
        value, mlp_sites = MLP(self.config, name="mlp")(columns(normed, read), here)
        hidden = here.patch(Site.RESIDUAL, columns(hidden, read) + attn + value)
        return BlockOutput(hidden, own, attn_sites | mlp_sites | {Site.RESIDUAL: hidden})
